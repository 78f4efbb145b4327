"""A sparse state in careless hands: wrong arguments, Ctrl-C at any line, memory that runs out."""

import copy
import os
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ramnet_np import MemoryTiers, RAMState, SparseRAMState, ram_attention_forward, ram_attention_step, use_backend
from ramnet_np.core import slot_rows
from ramnet_np.core.slot_rows import SlotRows
from tests.core.test_sparse_state import ON_CPU, _sorted, small

LOGITS, VALUES = np.zeros((2, 2, 1, 2, 4)), np.ones((2, 2, 1, 3))


def make(shape=(1, 1, 16, 4), *arguments, **options):
    return SparseRAMState(shape, *arguments, **options)


def of_arrays(slots, mass, dtype=np.float64):
    return SparseRAMState.of_dense(RAMState(np.zeros(slots), np.ones(mass, dtype)))


def store(keys, rows):
    """Nothing is stored, and nothing is lost."""
    state = make()
    try:
        state.scatter(np.array(keys), rows)
    finally:
        assert (state.written, list(state.blocks())) == (0, [])


WRONG = {
    r"batch must be an integer, got 1\.5": lambda: make((1.5, 1, 16, 4)),
    r"heads must be an integer, got True": lambda: make((1, True, 16, 4)),
    r"slots must be between 1 and 2147483647, got 0": lambda: make((1, 1, 0, 4)),
    r"channels must be between 0 and 2147483647, got -1": lambda: make((1, 1, 16, -1)),
    r"shape must be \(B, H, M, C\), got \(1, 2, 3\)": lambda: make((1, 2, 3)),
    r"shape must be \(B, H, M, C\), got 3": lambda: make(3),
    r"batch \* heads \* slots must be below 2\*\*63": lambda: make((2**18, 2**15, 2**31 - 1, 4)),
    r"dtype must be float32 or float64, .*, got 'int32'": lambda: make(dtype=np.int32),
    r"dtype must be float32 or float64, .*, got 'float16'": lambda: make(dtype=np.float16),
    r"dtype must be float32 or float64, .*, got 'abc'": lambda: make(dtype="abc"),
    r"xp must be numpy or cupy, got 'numpy'": lambda: make(xp="numpy"),
    r"initial_mass must be a finite number above 0 in float32, got nan": lambda: make(initial_mass=np.nan),
    r"initial_mass must be a finite number above 0 in float32, got -1": lambda: make(initial_mass=-1),
    r"initial_mass must be a finite number above 0 in float32, got 1e-60": lambda: make(initial_mass=1e-60),
    r"initial_mass must be a finite number above 0 in float32, got 1e\+60": lambda: make(initial_mass=1e60),
    r"initial_mass must be a finite number above 0 in float64, got 1000": lambda: make(
        dtype=np.float64, initial_mass=10**400
    ),
    r"initial_mass must be a number, got '1'": lambda: make(initial_mass="1"),
    r"memory must be tiers, such as .*, got str": lambda: make(tiers="64GiB"),
    r"memory must be tiers, such as .*, got dict": lambda: make(tiers={}),
    r"memory\.host must be a number of bytes, got '64GiB'": lambda: make(tiers=MemoryTiers(host="64GiB")),
    r"memory\.gpu must be a number of bytes, got 1e6|got 1000000\.0": lambda: make(tiers=MemoryTiers(gpu=1e6)),
    r"memory\.host must be at least 0 bytes, got -1": lambda: make(tiers=MemoryTiers(host=-1)),
    r"memory\.disk must be a folder, got 3": lambda: make(tiers=MemoryTiers(host=10**6, disk=3)),
    r"memory\.disk must be a folder, got 'a.x00b', which holds a null": lambda: make(
        tiers=MemoryTiers(host=10**6, disk="a\0b")
    ),
    r"memory\.host must say how many bytes stay above memory\.disk": lambda: make(tiers=MemoryTiers(disk=Path("."))),
    r"memory\.disk_bytes needs a folder memory\.disk": lambda: make(tiers=MemoryTiers(host=10**6, disk_bytes=1)),
    r"memory\.gpu must be None for a state on the CPU": lambda: make(tiers=MemoryTiers(gpu=10**6)),
    r"sequences must be between 0 and 0, got -1": lambda: make().take([-1]),
    r"sequences must be between 0 and 0, got 1": lambda: make().take([0, 1]),
    r"sequences must be an integer, got True": lambda: make().take([True]),
    r"sequences must be numbers of sequences, got 1": lambda: make().take(1),
    r"states must be one SparseRAMState or more, got none": lambda: SparseRAMState.joined([]),
    r"states must be .*, got SparseRAMState, RAMState": lambda: SparseRAMState.joined(
        [make(), RAMState.initial(1, 1, 2, 2)]
    ),
    r"states must differ in their batch alone, got \(1, 16, .* and \(1, 32, ": (
        lambda: SparseRAMState.joined([make(), make((1, 1, 32, 4))])
    ),
    r"states must differ in their batch alone, got .*0\.0625\) and .*0\.5\)": (
        lambda: SparseRAMState.joined([make(), make(initial_mass=0.5)])
    ),
    r"states must be a list of SparseRAMStates, got SparseRAMState": lambda: SparseRAMState.joined(make()),
    r"states must be a list of SparseRAMStates, got NoneType": lambda: SparseRAMState.joined(None),
    r"sequences must be those of each of the 2 states, got 1": (lambda: SparseRAMState.joined([make(), make()], [[0]])),
    r"state must be a RAMState \(slots, mass\), got str": lambda: SparseRAMState.of_dense("dense"),
    r"state must be arrays slots and mass, got list and list": lambda: SparseRAMState.of_dense(RAMState([], [])),
    r"state must be slots .*, got \(1, 1, 4, 2\) and \(1, 1, 5\)": lambda: of_arrays((1, 1, 4, 2), (1, 1, 5)),
    r"state must be slots .*, got \(1, 4, 2\) and \(1, 4\)": lambda: of_arrays((1, 4, 2), (1, 4)),
    r"state must be slots and mass of one dtype, got float64 and float32": (
        lambda: of_arrays((1, 1, 4, 2), (1, 1, 4), np.float32)
    ),
    r"keys must be an array of int64, got list": lambda: make().gather([1]),
    r"keys must be an array of int64, got float64": lambda: make().gather(np.ones(1)),
    r"keys must have shape \(N,\), got \(1, 1\)": lambda: make().gather(np.ones((1, 1), np.int64)),
    r"keys must be between 0 and 15, got 16": lambda: store([3, 16], np.ones((2, 5), np.float32)),
    r"keys must be between 0 and 15, got -1": lambda: store([-1], np.ones((1, 5), np.float32)),
    r"rows must be an array of float32, got float64": lambda: store([1], np.ones((1, 5))),
    r"rows must have shape \(N, C \+ 1\) = \(1, 5\), got \(1, 4\)": lambda: store([1], np.ones((1, 4), np.float32)),
    r"size must be between 1 and .*, got 0": lambda: make().blocks(0),
    r"size must be between 1 and .*, got -5": lambda: make().blocks(-5),
    r"a SparseRAMState cannot be pickled, .*: dense\(\) and blocks\(\) have them": lambda: pickle.dumps(make()),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_a_state_cannot_be_made_of_is_one_sentence(words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        WRONG[words]()
    assert "\n" not in str(caught.value)


def test_a_shape_may_be_a_list_of_numpy_integers_and_a_folder_a_string(tmp_path):
    state = make([np.int64(2), 1, 16, 3], np.float64, tiers=MemoryTiers(host=10**6, disk=str(tmp_path)))
    ram_attention_forward(LOGITS, LOGITS, VALUES, state=state)
    assert state.written == state.take(np.array([0, 1])).written > 0


def test_python_copies_a_state_with_its_rows():
    state = make((2, 1, 16, 3), np.float64)
    ram_attention_forward(LOGITS, LOGITS, VALUES, state=state)
    before = _sorted(state)
    copies = copy.copy(state), copy.deepcopy({"a": [state]})["a"][0]
    ram_attention_forward(LOGITS, LOGITS, VALUES, state=state)
    for one in copies:
        for ours, theirs in zip(_sorted(one), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_closed_state_is_stepped_on_by_no_backend(backend):
    state, token = make((2, 1, 16, 3), np.float64), (LOGITS[:, :1], LOGITS[:, :1], VALUES[:, :1])
    state.close()
    with pytest.raises(ValueError, match="state must be whole, got one that was closed"):
        ram_attention_step(*token, state=state, backend=backend)
    assert state.written == 0


def interrupted(call, moment, error=KeyboardInterrupt):
    """Make ``call``, which ``error`` ends at line ``moment`` of all that run in files of the state; whether it did."""
    left = moment

    def local(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise error
        return local

    def trace(frame, event, argument):
        name = Path(frame.f_code.co_filename).name
        return local if name in ("sparse_state.py", "tiered_rows.py", "disk_pages.py", "slot_rows.py") else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except error:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture
def filled(tmp_path):
    """A state with most of its rows on the disk, and a call that moves some up and others down."""
    rng, state = np.random.default_rng(0), make((1, 1, 2**20, 16), tiers=small(tmp_path))
    rows = rng.normal(size=(600, 17)).astype(np.float32)
    written = rng.choice(2**20, 600, replace=False)
    state.scatter(written, rows)
    keys = rng.permutation(np.concatenate([written[:10], rng.choice(2**20, 10, replace=False)]))

    def read_and_write(state, count=20):
        state.gather(keys[:count])
        state.scatter(keys[:count], rows[:count])

    with use_backend("numpy"):
        yield state, read_and_write


def assert_same_rows(ours, theirs):
    for our, their in zip(_sorted(ours), _sorted(theirs), strict=True):
        np.testing.assert_array_equal(our, their)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_at_any_line_leaves_the_state_as_it_was_or_said_to_be_lost(filled, error):
    filled, read_and_write = filled
    state, moment, left_whole, lost = filled.copy(), 0, 0, 0
    while interrupted(partial(read_and_write, state), moment := moment + 1 + moment // 5, error):
        if state._lost:
            lost += 1
            with pytest.raises(ValueError, match=f"got one that a segment left half written: {error.__name__}"):
                state.blocks()
        else:
            left_whole += 1
            assert_same_rows(state, filled)
        state.close()
        state = filled.copy()
    assert lost > 1
    assert left_whole > 10
    assert state.written > 600


class FullMemory:
    """Stands in for what takes memory: the ``at``-th call finds none."""

    CALLS = (
        (np, "empty"), (np, "zeros"), (np, "full"), (np, "ones"), (np, "unique"), (np, "nonzero"),
        (slot_rows, "_grown"),
    )  # fmt: skip

    def __init__(self, patch, at=0):
        self.at, self.calls = at, 0
        for owner, name in self.CALLS:
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call):
        def counted(*arguments, **options):
            self.calls += 1
            if self.calls == self.at:
                raise MemoryError("no more")
            return call(*arguments, **options)

        return counted


def test_memory_that_runs_out_anywhere_loses_nothing(filled, monkeypatch):
    """For every n: the n-th array that reading and writing makes has no room. The state is then gone on with.

    Of 8 slots, which are stored together; of more some might be new and some old.
    """
    filled, read_and_write = filled[0], partial(filled[1], count=8)
    expected, failed = filled.copy(), 0
    read_and_write(expected)
    for at in range(1, 1000):
        state = filled.copy()
        with monkeypatch.context() as patch:
            memory = FullMemory(patch, at)
            try:
                read_and_write(state)
            except MemoryError:
                failed += 1
        if memory.calls < at:
            break
        assert_same_rows(state, filled)
        read_and_write(state)
        assert_same_rows(state, expected)
        state.close()
    assert failed == at - 1 > 15
    assert expected.disk_nbytes > filled.disk_nbytes


def test_room_ahead_is_done_without_where_the_disk_is_nearly_full(tmp_path, monkeypatch):
    room, calls = 60 * 16 * 17 * 4, []

    def allocate(file, start, stop):
        calls.append(stop)
        if stop > room:
            raise OSError(28, "No space left on device")
        file.truncate(stop)

    monkeypatch.setattr("ramnet_np.core.disk_pages._allocate", allocate)
    state, rows = make((1, 1, 2**20, 16), tiers=small(tmp_path)), np.ones((1, 17), np.float32)
    with pytest.raises(OSError, match=r"must have room for 69,632 bytes, got: No space left on device"):
        _ = [state.scatter(np.array([16 * page]), rows) for page in range(1000)]  # a page each
    assert room / 2 < max(stop for stop in calls if stop <= room)
    assert os.fstat(state.rows._disk._file.fileno()).st_size <= room


def test_rows_that_run_out_of_memory_are_those_of_before(monkeypatch):
    held = SlotRows(2, np.float32)
    held.put(np.array([5, 9]), np.ones((2, 2), np.float32))
    new, more = np.arange(100, 1100), np.zeros((1000, 2), np.float32)
    tables, full = [], np.full

    def no_memory(size, *arguments, **options):
        tables.append(size)
        raise MemoryError

    monkeypatch.setattr(np, "full", no_memory)
    with pytest.raises(MemoryError):
        held.put(new, more)
    monkeypatch.setattr(np, "full", full)
    assert tables
    assert (held.count, held.find(np.array([9, 5, 100])).tolist()) == (2, [1, 0, -1])
    held.put(new, more)
    assert held.find(new).tolist() == list(range(2, 1002))


def test_a_host_without_a_disk_holds_exactly_what_it_says():
    state, rows = make((1, 1, 2**20, 16), tiers=small(None)), np.ones((256, 17), np.float32)
    state.scatter(np.arange(256), rows)
    with pytest.raises(MemoryError, match="got room for 256 slots of a layer, all of them full"):
        state.scatter(np.array([256]), rows[:1])
