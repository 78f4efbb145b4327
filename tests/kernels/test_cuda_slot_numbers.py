"""Numbers of a segment's slots on a GPU: the kernels on the CPU, then on a GPU, against the core's."""

import importlib
import shutil
import sys

import numpy as np
import pytest

from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.core.arrays import on_host
from ramnet_np.core.slot_numbers import number_slots
from tests.kernels.cuda_on_cpu import FakeCuPy, OnDevice, compile_for_cpu

module = importlib.import_module("ramnet_np.kernels.cuda.sparse.numbers")
CASES = [(slots, T, masked) for slots, T in ((50, 40), (900, 12), (2**31 - 1, 60)) for masked in (False, True)]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")
    library = compile_for_cpu(module.NUMBERS, tmp_path_factory.mktemp("kernels"))

    class Launch:
        def __init__(self, specialisation, name, grid, threads):
            self.name, self.grid = name, grid

        def __call__(self, params):
            getattr(library, f"run_{self.name}")(params.tobytes(), self.grid[0], 1, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", FakeCuPy())
        patch.setattr(module, "Launch", Launch)
        yield


def drawn(slots, T, masked):
    """Writes, of which some are the same for all tokens, reads of another K, and a mask."""
    rng = np.random.default_rng(slots + T)
    write, read = (rng.integers(0, slots, (2, T, 3, K), dtype=np.int32) for K in (5, 4))
    write[..., 1:3] = write[:, :1, :, 1:3]
    read[:, T // 2 :, :, 0] = write[:, : T - T // 2, :, 0]
    write[:, -1, :, 0] = slots - 1
    return write, read, rng.random((2, T)) < 0.6 if masked else None


@pytest.mark.parametrize(("slots", "T", "masked"), CASES)
def test_numbers_are_those_of_the_core(on_cpu, slots, T, masked):
    given = drawn(slots, T, masked)
    ours = module.number_slots(*(None if array is None else array.view(OnDevice) for array in given), slots)
    expected = ACCELERATED["number_slots"](*given, slots)
    for name, one, other in zip(expected._fields, ours, expected, strict=True):
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize(("slots", "T", "masked"), CASES)
def test_the_first_token_that_uses_a_slot(on_cpu, slots, T, masked):
    write, read, mask = drawn(slots, T, masked)
    arrays = (None if array is None else array.view(OnDevice) for array in (write, read, mask))
    numbers = module.number_on_gpu(*arrays, slots)
    first = {}
    for side in (write, read):
        for (b, t, h, _), slot in np.ndenumerate(side):
            key = (b * 3 + h) * slots + int(slot)
            first[key] = min(t, first.get(key, t))
    count = numbers.on_host[0][-1]
    assert numbers.first_tokens()[:count].tolist() == [first[key] for key in numbers.keys[:count].tolist()]


def test_cells_go_round_at_the_end_of_a_table(on_cpu):
    slots = np.arange(1000, dtype=np.int32)
    places = (slots.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(module.table_of(8, 2**31)[1])
    alike = slots[places == 15][:8].reshape(2, 1, 1, 1, 4)  # all belong into the last of 16 cells
    ours = module.number_slots(*alike.view(OnDevice), None, 2**31 - 1)
    assert ours.keys.tolist() == alike.ravel().tolist()
    assert ours.read.ravel().tolist() == [4, 5, 6, 7]


def test_a_segment_without_tokens_is_left_to_the_core(on_cpu):
    nothing = np.zeros((2, 0, 3, 5), np.int32).view(OnDevice)
    assert module.number_slots(nothing, nothing, None, 8) is NotImplemented


def test_the_table_is_a_hash_table_where_slots_are_many():
    assert module.table_of(540, 6 * 50) == (300, 0)
    assert module.table_of(540, 6 * 900) == (2048, 53)  # whose keys collide, and wrap around


@pytest.mark.gpu
@pytest.mark.parametrize(("slots", "T", "masked"), [*CASES, (1024, 4000, False), (4**10, 4000, True)])
def test_numbers_on_a_gpu_are_those_of_the_core(slots, T, masked):
    cp = pytest.importorskip("cupy")
    given = drawn(slots, T, masked)
    ours = number_slots(*(None if array is None else cp.asarray(array) for array in given), slots)
    for name, one, other in zip(ours._fields, ours, ACCELERATED["number_slots"](*given, slots), strict=True):
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(on_host(one), other, err_msg=name)
