"""The Numba backend in forked processes, in several threads of Python, and where a kernel fails."""

import importlib
import os
import pkgutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels import cpu
from ramnet_np.kernels.cpu import threads
from ramnet_np.kernels.cpu.compiling import inner, parallel_kernel
from ramnet_np.kernels.cpu.share import share_out

from tests.operation_cases import Case, draw, run

FORK = """
import multiprocessing, sys, threading, warnings
import numba
import numpy as np
import ramnet_np.kernels.cpu.threads  # what happens at a fork is known before it
from ramnet_np import RAMState, ram_attention_forward, ram_attention_step

warnings.simplefilter("ignore")  # newer Pythons warn of a fork with threads
x, v = np.zeros((1, 40, 2, 2, 4)), np.ones((1, 40, 2, 3))

def job(backend):
    try:
        return float(ram_attention_forward(x, x, v, backend=backend)[0].sum())
    except RuntimeError as error:
        return str(error)

def step(_):
    one = x[:, :1]
    state = RAMState.initial(1, 2, 16, 3, dtype=np.float64)
    return ram_attention_step(one, one, v[:, :1], state=state, backend="numba")[0].shape

expected = job("numpy")
if sys.argv[1] == "used":
    assert job("numba") == expected
with multiprocessing.get_context("fork").Pool(1) as pool:
    calls = (job, ("numpy",)), (job, ("numba",)), (step, (0,))
    numpy, numba_, shape = (pool.apply_async(*call).get(60) for call in calls)
assert numpy == expected
assert shape == (1, 1, 2, 3)
print(numba.threading_layer() if sys.argv[1] == "used" else "", "same" if numba_ == expected else numba_)
"""


def python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestFork:
    """A forked child computes or says at once why it cannot and what to do: no signal ends it, nobody waits for it."""

    def test_before_the_parent_used_threads(self):
        assert python(FORK, "unused") == "same"

    def test_after_the_parent_used_the_workqueue(self):
        assert python(FORK, "used", NUMBA_THREADING_LAYER="workqueue") == "workqueue same"

    def test_after_the_parent_used_openmp(self):
        omppool = pytest.importorskip("numba.np.ufunc.omppool")
        answer = python(FORK, "used", NUMBA_THREADING_LAYER="omp")
        if omppool.openmp_vendor == "GNU":
            assert answer == (
                'omp backend "numba" cannot run in a process forked after it started its threads: start the process '
                'with multiprocessing.get_context("spawn"), or use backend "numpy" in it'
            )
        else:
            assert answer == "omp same"


THREADS = """
import threading
import numba
import numpy as np
from ramnet_np import ram_attention_forward

rng = np.random.default_rng(0)
w, r = rng.normal(size=(2, 2, 60, 4, 3, 4))
v = rng.normal(size=(2, 60, 4, 8))
expected = ram_attention_forward(w, r, v, backend="numpy")[0]
wrong = []

def job():
    for _ in range(20):
        y = ram_attention_forward(w, r, v, backend="numba")[0]
        if not np.allclose(y, expected):
            wrong.append(y)

threads = [threading.Thread(target=job) for _ in range(4)]  # the first calls too, while no layer is known
for thread in threads: thread.start()
for thread in threads: thread.join()
print(numba.threading_layer(), len(wrong))
"""


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_threads_of_python_may_call_at_once(layer):
    assert python(THREADS, NUMBA_THREADING_LAYER=layer) in {f"{layer} 0", "omp 0", "tbb 0", "workqueue 0"}


@pytest.mark.parametrize(("layer", "take_turns"), [("workqueue", True), ("omp", False), ("tbb", False)])
def test_calls_take_turns_until_the_layer_is_known_to_serve_many(monkeypatch, layer, take_turns):
    monkeypatch.setattr(threads, "_turns", threading.Lock())
    monkeypatch.setattr(threads.numba, "threading_layer", lambda: layer)
    alone = []
    call = threads.parallel_call(lambda: alone.append(threads._turns is not None and threads._turns.locked()))
    call()
    call()
    assert alone == [True, take_turns]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_wait_for_a_turn_that_a_thread_of_its_parent_had(monkeypatch):
    monkeypatch.setattr(threads, "_turns", threading.Lock())
    monkeypatch.setattr(threads, "_forked", False)
    monkeypatch.setattr(threads, "_threads_were_lost", lambda: False)
    monkeypatch.setattr(threads, "_settle", lambda: None)
    with threads._turns:
        threads._after_fork_in_child()
        assert not threads._turns.locked()
    monkeypatch.setattr(threads, "_turns", None)  # of a layer that serves many
    threads._after_fork_in_child()
    assert threads._turns is None
    assert not threads._forked


@pytest.mark.parametrize(
    ("layer", "vendor", "lost"),
    [("omp", "GNU", True), ("omp", "Intel", False), ("tbb", "GNU", False), ("workqueue", "GNU", False)],
)
def test_which_threads_a_fork_loses(monkeypatch, layer, vendor, lost):
    monkeypatch.setattr(threads.numba, "threading_layer", lambda: layer)
    pool = SimpleNamespace(openmp_vendor=vendor)
    monkeypatch.setattr(threads, "importlib", SimpleNamespace(import_module=lambda name: pool))
    assert threads._threads_were_lost() == lost


def test_a_fork_before_any_threads_were_started_loses_none(monkeypatch):
    """Numba then has no layer: the backend was imported, and no kernel ran that shares work out."""

    def threading_layer():
        raise ValueError("Threading layer is not initialized.")

    monkeypatch.setattr(threads.numba, "threading_layer", threading_layer)
    assert not threads._threads_were_lost()


def test_a_child_of_a_child_has_no_threads_either(monkeypatch):
    monkeypatch.setattr(threads, "_forked", True)
    monkeypatch.setattr(threads, "_turns", None)
    monkeypatch.setattr(threads, "_threads_were_lost", lambda: False)
    threads._after_fork_in_child()
    with pytest.raises(RuntimeError, match='backend "numba" cannot run in a process forked after it started its'):
        threads.parallel_call(lambda: None)()


@pytest.mark.parametrize(("dtype", "eps"), [(np.float64, 0.0), (np.float32, 1e-50)])
@pytest.mark.parametrize("mass_aware", [False, True])
def test_a_division_of_0_by_0_is_nan_as_in_numpy(dtype, eps, mass_aware):
    options = {"mass_aware": mass_aware, "eps": eps}
    inputs = draw(Case("no-mass", B=1, T=6, H=2, U=2, P=4, C=3, K=3, gamma=0.5, state=True, options=options), dtype)
    inputs.options["state"].mass[...] = 0
    inputs.arrays[0][..., 0] = -1e4  # slots with a weight of exactly 0
    with np.errstate(all="ignore"):
        actual, expected = run(inputs, "numba"), run(inputs, "numpy")
    for name, value in expected.items():
        np.testing.assert_array_equal(np.isnan(actual[name]), np.isnan(value), err_msg=name)


def test_every_function_computes_as_numpy_where_it_divides_by_0():
    functions = 0
    for module in pkgutil.iter_modules(cpu.__path__):
        for value in vars(importlib.import_module(f"{cpu.__name__}.{module.name}")).values():
            value = getattr(value, "compiled", value)
            if hasattr(value, "targetoptions"):
                functions += 1
                assert value.targetoptions["error_model"] == "numpy", value
    assert functions > 20


@inner
def _piece(number, size, out):
    out[number] = np.empty(size).size


@parallel_kernel
def _sizes(size, out):
    share_out(_piece, out.size, (size, out))


def test_a_kernel_without_memory_for_its_arrays_says_so():
    out = np.zeros(3)
    _sizes(5, out)
    assert out.tolist() == [5, 5, 5]
    with pytest.raises(MemoryError, match="too little memory for the working arrays of a kernel on the CPU"):
        _sizes(2**58, out)
    _sizes(6, out)  # and the next call computes
    assert out.tolist() == [6, 6, 6]
