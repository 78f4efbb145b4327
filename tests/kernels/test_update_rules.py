"""Update rules in every tier: each has all rules of the core's table, and refuses one that it does not know."""

import ctypes
import itertools
import shutil
import subprocess

import numpy as np
import pytest
from numba import njit
from ramnet_np.kernels import cpu
from ramnet_np.kernels.cpu.retention import kernel_options
from ramnet_np.kernels.cuda.memory.retention import known_rules, require_rule
from ramnet_np.kernels.numba_cuda.compiler import float32
from ramnet_np.kernels.numba_cuda.retention import RULES as NUMBA_CUDA_RULES
from ramnet_np.kernels.numba_cuda.retention import retention_of

from ramnet_np import RAMState, ram_attention_forward, ram_attention_step
from ramnet_np.contract import MemoryOptions
from ramnet_np.core import dense
from ramnet_np.core.retention import RULES
from tests.kernels.cuda_on_cpu import source_for_cpu
from tests.tolerances import assert_close

TABLES = {
    "dense oracle": dense.RETAINED,
    "numba": cpu.retention.RULES,
    "cupy": known_rules(),
    "numba-cuda": NUMBA_CUDA_RULES,
}
REFUSALS = {
    "numba": lambda update: kernel_options(MemoryOptions(4, update), np.dtype(np.float32)),
    "cupy": require_rule,
    "numba-cuda": lambda update: retention_of(update, float32),
}


@pytest.mark.parametrize("update", RULES)
@pytest.mark.parametrize("tier", TABLES)
def test_every_tier_has_every_rule(tier, update):
    assert update in TABLES[tier]


@pytest.mark.parametrize("tier", REFUSALS)
def test_a_tier_refuses_a_rule_that_it_does_not_know(tier, extra_rule):
    for update in RULES:
        if update != extra_rule:
            REFUSALS[tier](update)
    with pytest.raises(ValueError, match=r"'extra'$") as refused:
        REFUSALS[tier](extra_rule)
    text = str(refused.value)
    assert "\n" not in text
    assert all(name in text for name in (tier, *TABLES[tier]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("update", RULES)
def test_numba_rules_are_those_of_the_core(update, dtype):
    w = np.array([0.0, 1e-12, 1e-4, 0.3, 0.5, 0.9, 1 - 1e-6, 1.0], dtype)
    rule, smallest = RULES[update], dtype(np.finfo(dtype).epsneg)
    kernels = cpu.retention.RULES[update]
    retention, slopes = kernels.retention, kernels.slopes  # parts of kernels: no calls from Python
    compiled_retention = njit(lambda *given: retention(*given))
    compiled_slopes = njit(lambda *given: slopes(*given))
    far = 1 if dtype == np.float32 else 8  # where exp(-|gamma|) is small, tiny and 0
    given = (
        -1e30,
        *(far * gamma for gamma in (-103.0, -90.0, -72.0, 72.0, 90.0, 103.0)),
        -3.0,
        0.0,
        0.4,
        1.0,
        2.5,
        40.0,
        1e30,
    )
    gammas = [dtype(gamma) for gamma in given if gamma >= rule.least_gamma]
    assert len(gammas) >= 2
    for gamma, proxy_eps in itertools.product(gammas, (dtype(0), dtype(0.05))):
        alpha = rule.forward(w, gamma)
        assert_close(np.array([compiled_retention(x, gamma) for x in w], dtype), alpha)
        slopes = np.array(
            [compiled_slopes(x, gamma, a, proxy_eps, smallest) for x, a in zip(w, alpha, strict=True)], dtype
        )
        for actual, expected in zip(slopes.T, rule.backward(w, gamma, alpha, proxy_eps), strict=True):
            assert_close(actual, expected, gradient=True)


SLOPES_ON_CPU = r"""
extern "C" void gsu_slopes_NUMBER(NUMBER w, NUMBER gamma, NUMBER* into) {
    const Slopes<NUMBER> slopes = rules::gsu<NUMBER>::slopes(w, gamma, rules::gsu<NUMBER>::alpha(w, gamma), 0);
    into[0] = slopes.w, into[1] = slopes.gamma;
}
"""


@pytest.fixture(scope="module")
def gsu_of_cuda(tmp_path_factory):
    """(w, gamma) -> slopes, of the CUDA C++ source, compiled for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler here")
    folder = tmp_path_factory.mktemp("gsu")
    shim = (
        "#include <cmath>\n#include <cstring>\n#define __device__\n#define __forceinline__ inline\n#define UPDATE gsu\n"
    )
    shim += "struct { unsigned x; } blockIdx, gridDim;\nstruct int4 {}; struct uint4 {};\n"
    shim += "inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }\n"
    shim += "inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }\n"
    source = source_for_cpu("memory/retention.cuh") + "".join(
        SLOPES_ON_CPU.replace("NUMBER", number) for number in ("float", "double")
    )
    (folder / "gsu.cpp").write_text(shim + source)
    command = ["g++", "-std=c++20", "-w", "-shared", "-fPIC", "gsu.cpp", "-o", "gsu.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "gsu.so"))

    def slopes(w, gamma):
        into, name = np.empty(2, w.dtype), "float" if w.dtype == np.float32 else "double"
        kind = getattr(ctypes, f"c_{name}")
        getattr(library, f"gsu_slopes_{name}")(kind(w), kind(gamma), into.ctypes.data_as(ctypes.c_void_p))
        return into

    return slopes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slopes_of_gsu_in_cuda_are_those_of_the_core_and_finite(gsu_of_cuda, dtype):
    w, far = np.array([0.0, 1e-12, 0.3, 0.9, 1.0], dtype), 1 if dtype == np.float32 else 8
    for gamma in (-103.0, -90.0, -72.0, -3.0, 0.0, 2.5, 72.0, 90.0, 103.0):
        g = dtype(far * gamma)
        expected = np.array(RULES["gsu"].backward(w, g, RULES["gsu"].forward(w, g), 0.0))
        actual = np.array([gsu_of_cuda(x, g) for x in w]).T
        assert np.isfinite(actual * 1e6).all()  # an adjoint has room
        assert_close(actual, expected, gradient=True)


def test_numba_refuses_before_it_changes_a_state(extra_rule):
    x = np.zeros((1, 1, 1, 2, 3))
    state = RAMState.initial(1, 1, 9, 2, dtype=np.float64)
    sentence = r"^update must be one of 'pdma', 'gsu'.* on backend 'numba', got 'extra'$"
    with pytest.raises(ValueError, match=sentence):
        ram_attention_forward(x, x, np.ones((1, 1, 1, 2)), update=extra_rule, top_k=2, backend="numba")
    with pytest.raises(ValueError, match=sentence):
        ram_attention_step(x, x, np.ones((1, 1, 1, 2)), update=extra_rule, top_k=2, state=state, backend="numba")
    assert not state.slots.any()
    assert (state.mass == 1 / 9).all()
