"""The Numba backend's results depend on its inputs alone: not on threads, not on the run, not on what memory held."""

import hashlib
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from ramnet_np.kernels.cpu.content import slice_width

from ramnet_np import ram_attention_backward, ram_attention_forward
from ramnet_np.backend import load_backend
from tests.operation_cases import CASES, Case, assert_same_bits, draw, run

CASE = {case.name: case for case in CASES}
PARALLEL = [
    Case("many-heads", B=3, T=90, H=4, C=24, gamma="token", masked=0.2, options={"cape_heads": 2}),
    Case("slices", B=1, T=200, H=1, C=64, options={"mass_aware": True}),
    Case("slices-uneven", B=1, T=130, H=3, C=53, state=True, gamma=0.6),
    Case("singly", B=2, T=5, H=1, U=2, P=3, K=9, C=40),
]
named = pytest.mark.parametrize("case", PARALLEL, ids=lambda case: case.name)


@named
def test_one_thread_and_two_give_the_same_bits(case):
    inputs, threads = draw(case, np.float32), numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = run(inputs, "numba")
        numba.set_num_threads(2)
        two = run(inputs, "numba")
    finally:
        numba.set_num_threads(threads)
    assert_same_bits(one, two)


def digest(cases: list[Case]) -> str:
    """A hash of every bit that the backend computes for these cases."""
    bits = hashlib.sha256()
    for case in cases:
        for name, value in run(draw(case, np.float32), "numba").items():
            bits.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return bits.hexdigest()


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_another_process_with_four_threads_gives_the_same_bits(layer):
    code = "from tests.kernels.test_cpu_repeatability import PARALLEL, digest; print(digest(PARALLEL))"
    environment = os.environ | {"NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": layer}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == digest(PARALLEL)


@pytest.mark.slow
def test_the_process_that_compiles_gets_the_bits_of_one_that_loads(tmp_path):
    """Or else the first run on a machine would differ from all later ones."""
    code = "from tests.kernels.test_cpu_repeatability import PARALLEL, digest; print(digest(PARALLEL[2:3]))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    outputs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in ("compiles", "loads")
    ]
    assert outputs[0] == outputs[1]


def test_slices_depend_on_shapes_alone():
    """Cutting channels elsewhere may change sums: nothing but B*H and C may decide where."""
    assert slice_width(1, 64) == 16
    assert slice_width(100, 64) == 64
    before = [slice_width(heads, 64) for heads in range(1, 20)]
    numba.set_num_threads(1)
    try:
        assert [slice_width(heads, 64) for heads in range(1, 20)] == before
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@named
def test_every_element_of_every_output_is_written(case, monkeypatch):
    """np.empty hands out NaN and impossible slots; whatever a kernel left unset and then used would show."""
    inputs = draw(case, np.float32)
    expected = run(inputs, "numba")
    poisoned = 0
    empty, empty_like = np.empty, np.empty_like

    def poison(array):
        nonlocal poisoned
        poisoned += array.size
        array.fill(np.nan if array.dtype.kind == "f" else array.dtype.kind != "b" and -(2**31))
        return array

    backend = load_backend("numba")
    monkeypatch.setattr(np, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(np, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    actual = run(inputs, backend.name)
    monkeypatch.undo()
    assert poisoned > 1000
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", ["plain", "everything", "slices"])
def test_ctx_is_not_consumed(name):
    inputs = draw(CASE[name], np.float32)
    _, _, ctx = ram_attention_forward(*inputs.arrays, inputs.gamma, backend="numba", **inputs.options)
    first, second = (ram_attention_backward(inputs.dy, ctx, inputs.dstate) for _ in range(2))
    assert_same_bits(first._replace(state=None)._asdict(), second._replace(state=None)._asdict())
    if first.state is not None:
        assert_same_bits(first.state._asdict(), second.state._asdict())


@pytest.mark.parametrize("name", ["everything", "given-state", "mask-given-state"])
def test_inputs_are_left_alone(name):
    inputs, untouched = draw(CASE[name], np.float32), draw(CASE[name], np.float32)
    run(inputs, "numba")
    for actual, expected in (
        (inputs.arrays, untouched.arrays),
        (inputs.options["state"], untouched.options["state"]),
        (inputs.dstate, untouched.dstate),
        ((inputs.dy,), (untouched.dy,)),
    ):
        assert all(map(np.array_equal, actual, expected))


def test_nothing_of_size_M_is_built():
    """2**30 slots: one array of that size would need gigabytes."""
    inputs = draw(Case("flat", U=30, P=2, T=20, K=5, dstate=False), np.float32)
    _, state, ctx = ram_attention_forward(*inputs.arrays, 0.5, backend="numba", **inputs.options)
    assert state is None
    assert max(part.size for part in (*ctx.memory.rows, *ctx.memory.writes, ctx.memory.versions)) < 1e6
    assert np.isfinite(ram_attention_backward(inputs.dy, ctx).write_logits).all()


def test_the_kernels_are_right_without_compilation():
    """As plain Python, so that what the compiler would hide (a bad index, an overflow) ends in an error."""
    code = """
import warnings
warnings.simplefilter("error")
import numpy as np
from tests.operation_cases import Case, assert_agree, draw, run
options = {"proxy_eps": 0.02, "mass_aware": True, "renorm": (True, False), "cape_heads": 1}
for case in (
    Case("everything", B=1, T=20, H=2, U=2, P=3, C=3, K=(3, 4), gamma="token", masked=0.2, state=True, options=options),
    Case("gsu", B=1, T=3, H=2, U=2, P=3, C=3, K=(9, 1), gamma=0.7, options={"update": "gsu"}),
    Case("U-6", B=1, T=2, H=1, U=6, P=2, C=2, K=3, gamma=0.5, dstate=False, logits="ties"),
):
    inputs = draw(case, np.float64)
    assert_agree(run(inputs, "numba"), run(inputs, "numpy"))
"""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
