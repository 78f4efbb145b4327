"""A product of few rows is launched with the sizes that its kernel counts: compiled without a GPU, each is compared.

Sizes that reach a kernel as definitions cannot differ from the host's. These kernels compute some from them, and the
host computes the same once more, for the grid, the threads and the shared memory.
"""

import pytest
from ramnet_np.kernels.cuda.layers.few_rows import Limits, _shape

from tests.kernels.test_cuda_compile import FOLDER, H100, compile_source

GPU = Limits(block_bytes=227 * 1024, clusters=True)
SHARED = {  # bytes that a launch asks for, by source
    "layers/few_rows.cu": "0",
    "layers/few_rows_mma.cu": "DEPTH * COPIES * THREADS * 16",
    "layers/few_rows_tile.cu": "(STAGES * STAGE > sizeof(Partial) ? STAGES * STAGE : sizeof(Partial))",
}
SHAPES = {
    "float": _shape("float", 5, 1024, (1024, 64), True, False, True, GPU),
    "gated double": _shape("double", 16, 1023, (96, 96), True, True, False, GPU),
    "one row": _shape("bfloat16", 1, 1024, (1024, 64), True, False, True, GPU),
    "gated rows": _shape("float16", 16, 2816, (1024, 1024), False, True, True, GPU),
    "64 rows": _shape("bfloat16", 64, 2816, (1024,), False, False, True, GPU),
    "256 gated rows": _shape("bfloat16", 256, 1024, (2816, 2816), True, True, True, GPU),
    "short rows": _shape("bfloat16", 33, 8, (8,), False, False, True, Limits(99 * 1024, clusters=False)),
}


def compiles(shape, **changes) -> bool:
    """Whether the kernel counts what the host does."""
    shape, source = shape._replace(**changes), shape.specialisation.source
    threads = "32 * WARPS" if source == "layers/few_rows.cu" else "THREADS"
    split = "SPLIT" if source == "layers/few_rows_tile.cu" else "1"
    counted = {"EACH": shape.each, "ROWS": shape.together, threads: shape.threads, split: shape.split}
    counted[SHARED[source]] = shape.shared
    checks = "".join(f'static_assert({name} == {number}, "differs");\n' for name, number in counted.items())
    text = (FOLDER / source).read_text(encoding="utf-8")
    compiled, log = compile_source(shape.specialisation, H100, f"{text}\n{checks}")
    assert compiled or "differs" in log, log
    return compiled


@pytest.mark.parametrize("name", SHAPES)
def test_host_and_kernel_count_the_same(name):
    assert compiles(SHAPES[name])


def test_another_count_is_noticed():
    for change in ({"each": 8}, {"together": 32}, {"threads": 512}, {"shared": 2**14}):
        assert not compiles(SHAPES["one row"], **change), change
    assert not compiles(SHAPES["64 rows"], split=1)


def test_every_kernel_of_few_rows_is_compared():
    assert {shape.specialisation.source for shape in SHAPES.values()} == set(SHARED)
    assert {f"layers/{path.name}" for path in (FOLDER / "layers").glob("few_rows*.cu")} == set(SHARED)
