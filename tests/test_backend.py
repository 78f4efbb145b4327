"""Choosing a backend."""

import contextvars
import dataclasses
import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ramnet_np
from ramnet_np import backends, ram_attention_forward, use_backend
from ramnet_np.backend import (
    backend_for,
    load_backend,
    register_backend,
    selected_backend,
    unregister_backend,
)
from ramnet_np.core.accelerated import ACCELERATED, accelerated
from ramnet_np.core.checks import full_positions
from tests.core.test_attention import draw


def test_numpy_is_always_there():
    assert backends()["numpy"] == "available"
    assert load_backend("numpy").name == "numpy"


def test_numpy_arrays_go_to_numba_where_it_is_installed():
    assert backend_for(np.zeros(2)).name == "numba"


def test_without_numba_the_core_serves(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("ramnet_np.backend._loaded", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    assert backend_for(np.zeros(2)).name == "numpy"
    assert "needs numba, not installed" in backends()["numba"]
    with monkeypatch.context() as browser:
        browser.setattr(sys, "platform", "emscripten")
        assert backends()["numba"] == "needs numba, which browsers do not have"
    with pytest.raises(RuntimeError, match="backend 'numba' needs numba, not installed"):
        ram_attention_forward(*draw(), top_k=3, backend="numba")


def test_the_core_imports_without_numba():
    """In a fresh interpreter where importing numba fails."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np, ramnet_np\n"
        "x = np.ones((1, 2, 1, 2, 2)); v = np.ones((1, 2, 1, 3))\n"
        "y, _, _ = ramnet_np.ram_attention_forward(x, x, v, top_k=2, backend='numpy')\n"
        "print(y.shape, [m for m in ('cupy', 'torch', 'jax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 2, 1, 3) []\n"


def test_use_backend_as_context_manager_and_as_call():
    with use_backend("numpy"):
        assert selected_backend() == "numpy"
        assert ram_attention_forward(*draw(), top_k=3)[2].backend.name == "numpy"
        with use_backend("numba"):
            assert backend_for(np.zeros(2)).name == "numba"
        assert selected_backend() == "numpy"
    assert selected_backend() is None
    use_backend("numpy")
    assert selected_backend() == "numpy"
    use_backend(None)
    assert selected_backend() is None


def test_a_choice_reaches_a_thread_that_is_started_with_its_context():
    """As the docstring says; a thread started without it decides by its arrays."""
    with use_backend("numpy"):
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(contextvars.copy_context().run, selected_backend).result() == "numpy"
        assert selected_backend() == "numpy"
    assert "thread" in use_backend.__doc__


def test_the_argument_wins_over_use_backend():
    with use_backend("numba"):
        assert ram_attention_forward(*draw(), top_k=3, backend="numpy")[2].backend.name == "numpy"


@pytest.mark.parametrize("choose", [use_backend, lambda name: ram_attention_forward(*draw(), top_k=3, backend=name)])
def test_unknown_backend(choose):
    with pytest.raises(ValueError, match=r"backend must be one of 'numpy', 'numba'.*, got 'fast'"):
        choose("fast")
    assert selected_backend() is None


def test_a_backend_that_fails_to_import_says_why():
    register_backend("broken", "ramnet_np.no_such_module")
    try:
        assert "could not be loaded: No module named" in backends()["broken"]
        with pytest.raises(RuntimeError, match="backend 'broken' could not be loaded"):
            use_backend("broken")
    finally:
        unregister_backend("broken")
    assert "broken" not in backends()


def recording(**fields):
    """The NumPy backend, but its decoder notes the positions and how many sides it is given."""
    core, log = load_backend("numpy"), []

    def decode_forward(logits, top_k, renorm, cape_heads, positions):
        log.append((len(logits), positions))
        positions = full_positions(positions, logits[0].shape[:2], logits[0])
        return core.decode_forward(logits, top_k, renorm, cape_heads, positions)

    return dataclasses.replace(core, decode_forward=decode_forward, **fields), log


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("positions", [None, np.arange(6, dtype=np.int32) + 3])
def test_positions_reach_a_backend_in_full_unless_it_takes_them_short(monkeypatch, short, positions):
    backend, log = recording(accepts_short_positions=short)
    monkeypatch.setattr("ramnet_np.core.attention.backend_for", lambda *_: backend)
    y, _, _ = ram_attention_forward(*draw(), top_k=3, cape_heads=1, positions=positions)
    [(sides, given)] = log
    assert sides == 2  # writes and reads in one call
    if not short:
        assert given.shape == (y.shape[0], 6)
    elif positions is not None:
        assert given.shape == (6,)
    else:
        assert given is None
    assert given is None or given.dtype == np.int64
    monkeypatch.undo()
    expected, _, _ = ram_attention_forward(*draw(), top_k=3, cape_heads=1, positions=positions, backend="numpy")
    np.testing.assert_array_equal(y, expected)


def test_an_address_alone_is_one_side(monkeypatch):
    backend, log = recording()
    monkeypatch.setattr("ramnet_np.core.attention.backend_for", lambda *_: backend)
    logits = draw()[0]
    index, weight = ramnet_np.decode_address(logits, top_k=3)
    assert [sides for sides, _ in log] == [1]
    monkeypatch.undo()
    expected = ramnet_np.decode_address(logits, top_k=3, backend="numpy")
    np.testing.assert_array_equal(index, expected.index)
    np.testing.assert_array_equal(weight, expected.weight)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_sides_with_options_of_their_own_are_decoded_as_one_by_one(backend):
    write_logits, read_logits, _ = draw()
    positions = full_positions(None, write_logits.shape[:2], write_logits)
    decoders = load_backend(backend)
    sides = decoders.decode_forward((write_logits, read_logits), (3, 2), (True, False), 1, positions)
    dlogits = decoders.decode_backward(tuple(weight for _, weight, _ in sides), tuple(saved for *_, saved in sides))
    for i, (logits, k, renorm) in enumerate(((write_logits, 3, True), (read_logits, 2, False))):
        [(index, weight, saved)] = decoders.decode_forward((logits,), (k,), (renorm,), 1, positions)
        np.testing.assert_array_equal(sides[i][0], index)
        np.testing.assert_array_equal(sides[i][1], weight)
        np.testing.assert_array_equal(dlogits[i], decoders.decode_backward((weight,), (saved,))[0])


@pytest.fixture
def layer():
    """An accelerated function that says which version ran, and is forgotten afterwards."""

    @accelerated
    def which(x, ctx=None):
        return "mathematics"

    yield which
    ACCELERATED.pop("which")


def test_numpy_arrays_get_the_plain_mathematics(monkeypatch, layer):
    """Without a backend being loaded, and also if the selected one has fast layers."""
    monkeypatch.setattr("ramnet_np.backend._loaded", {})
    assert layer(np.zeros(2)) == "mathematics"
    assert ramnet_np.backend._loaded == {}


def test_the_arrays_of_a_backend_get_its_fast_layers(monkeypatch, layer):
    class Array(np.ndarray):
        """Stands for an array of CuPy."""

    monkeypatch.setattr(Array, "__module__", "cupy")
    core = load_backend("numpy")
    fast = dataclasses.replace(core, name="cupy", array_kind="cupy", layers={"which": lambda x, ctx=None: "fast"})
    monkeypatch.setattr("ramnet_np.backend._loaded", {"cupy": fast, "numpy": core})
    array = np.zeros(2).view(Array)
    assert layer(array) == layer(x=array) == "fast"
    fast.layers["which"] = lambda x, ctx=None: "fast" if x.size > 2 else NotImplemented
    assert [layer(np.zeros(n).view(Array)) for n in (2, 3)] == ["mathematics", "fast"]
    fast.layers["which"] = lambda x, ctx=None: "fast"
    assert layer(1.0, (array, 3)) == "fast"  # an array at the head of a context
    assert layer(np.zeros(2), (np.zeros(2),)) == "mathematics"
    with use_backend("numpy"):
        assert layer(array) == "mathematics"


def test_two_accelerated_functions_cannot_have_one_name(layer):
    with pytest.raises(ValueError, match="two accelerated functions are called 'which'"):
        accelerated(layer.__wrapped__)


def test_public_names_exist():
    assert all(hasattr(ramnet_np, name) for name in ramnet_np.__all__)
