"""The kernel of one token without a GPU: its C++ on the CPU, token after token, against the core."""

import importlib
import shutil
import sys

import numpy as np
import pytest

from ramnet_np import ram_attention_step
from ramnet_np.contract import DecodeOptions, MemoryOptions, RAMState
from tests.kernels.cuda_on_cpu import FakeCuPy, OnDevice, compile_for_cpu
from tests.tolerances import assert_close

step_module = importlib.import_module("ramnet_np.kernels.cuda.step.step")
B, H, C, TOKENS = 2, 3, 12, 6


def on(array):
    """The array on the "GPU", at a multiple of 16 bytes."""
    room = np.empty(array.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16
    aligned = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    aligned[...] = array
    return aligned.view(OnDevice)


@pytest.fixture
def step(tmp_path, monkeypatch):
    """``step`` with launches that run on the CPU."""
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")

    class Launch:
        def __init__(self, specialisation, name, grid, threads, shared=0, overlaps=False):
            self.name, self._grid = name, grid
            self._run = getattr(compile_for_cpu(specialisation, tmp_path), f"run_{name}")

        def __call__(self, params):
            self._run(params.tobytes(), *(*self._grid, 1, 1)[:3])

    cupy = FakeCuPy()
    cupy.empty = lambda shape, dtype: on(np.full(shape, np.nan, dtype))
    monkeypatch.setattr(step_module, "Launch", Launch)

    def step(*arguments):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "cupy", cupy)
            return step_module.step(*arguments)

    step_module.step_plan.cache_clear()
    yield step
    step_module.step_plan.cache_clear()


@pytest.mark.parametrize(
    ("order", "radix", "top_k", "update", "mass_aware"),
    [(3, 4, (4, 8), "gsu", False), (2, 3, (4, 3), "pdma", True), (3, 4, (40, 33), "pdma", False)],
    ids=["M-64", "M-9", "K-over-32"],
)
def test_tokens_are_those_of_the_core(step, order, radix, top_k, update, mass_aware):
    """Positions beyond 2**32 and below 0: of M = 64 the low half of one is enough, of M = 9 it is not."""
    rng = np.random.default_rng(0)
    M = radix**order
    state = RAMState(rng.standard_normal((B, H, M, C)), rng.random((B, H, M)))
    own = RAMState(*(on(part) for part in state))
    decode = DecodeOptions(*top_k, True, False, 2)
    options = MemoryOptions(slots=M, update=update, mass_aware=mass_aware)
    for token in range(TOKENS):
        write, read = rng.standard_normal((2, B, 1, H, order, radix))
        values, gamma = rng.standard_normal((B, 1, H, C)), rng.random((B, 1, H))
        positions = np.array([[2**33 + 11 * token + 5], [7 * token - 20]])
        mask = np.array([[True], [token != 2]])
        expected, _ = ram_attention_step(
            write, read, values, gamma, state=state, update=update, top_k=top_k, renorm=(True, False), cape_heads=2,
            positions=positions, mask=mask, mass_aware=mass_aware, backend="numpy",
        )  # fmt: skip
        y = step(*map(on, (write, read, values, gamma, positions, mask)), own, decode, options)
        for found, wanted in zip((y, *own), (expected, *state), strict=True):
            assert_close(np.asarray(found), wanted)
