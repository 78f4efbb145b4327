"""A sparse state against the dense one: the same bits, memory for what was written, tiers that change nothing."""

import dataclasses
import mmap
import os

import numpy as np
import pytest

import ramnet_np
from ramnet_np import (
    MemoryTiers,
    RAMState,
    SparseRAMState,
    backends,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
    use_backend,
)
from ramnet_np.backend import load_backend
from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.core.disk_pages import DiskPages
from ramnet_np.core.row_format import row_format
from ramnet_np.core.slot_numbers import number_slots
from ramnet_np.core.slot_rows import enter_rows, find_rows
from tests.operation_cases import CASES, draw

ON_CPU = [name for name in ("numpy", "numba") if backends()[name].startswith("available")]
NAMES = ["plain", "mask", "cape-all-positions", "mass-aware", "gsu-per-token", "K-is-M", "M-large", "empty-batch"]


def segment(inputs, state, backend, start=0, stop=None):
    """The operation over some tokens of a case, from ``state``."""
    now, T = slice(start, stop), inputs.dy.shape[1]
    options = {k: v for k, v in inputs.options.items() if k not in ("return_state", "state")}
    positions = options.pop("positions", np.broadcast_to(np.arange(T), inputs.dy.shape[:2]))[:, now]
    if "mask" in options:
        options["mask"] = options["mask"][:, now]
    gamma = inputs.gamma if isinstance(inputs.gamma, float) else inputs.gamma[:, now]
    arrays = [array[:, now] for array in inputs.arrays]
    return ram_attention_forward(*arrays, gamma, positions=positions, state=state, backend=backend, **options)


def initial(kind, case, dtype, **options):
    return kind.initial(case.B, case.H, case.slots, case.C, dtype, **options)


def assert_same_state(sparse, dense):
    for ours, theirs in zip(sparse.dense(), dense, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def small(folder, rows=256):
    """Tiers with room for so many rows of 16 channels of float32 in the host."""
    return MemoryTiers(host=rows * 17 * 4, disk=folder)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_a_dense_state(name, backend):
    case = next(case for case in CASES if case.name == name)
    inputs, cut = draw(case, np.float32), case.T // 3
    sparse, dense = initial(SparseRAMState, case, np.float32), initial(RAMState, case, np.float32)
    with use_backend(backend):
        for start, stop in ((0, cut), (cut, None)):
            y, sparse_after, ctx = segment(inputs, sparse, backend, start, stop)
            expected, dense, dense_ctx = segment(inputs, dense, backend, start, stop)
            assert sparse_after is sparse
            np.testing.assert_array_equal(y, expected)
            assert_same_state(sparse, dense)
            dy = inputs.dy[:, start:stop]
            grads, theirs = ram_attention_backward(dy, ctx), ram_attention_backward(dy, dense_ctx)
            assert grads.state is None
            for ours, expected in zip(grads[:4], theirs[:4], strict=True):
                np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("backend", ON_CPU)
def test_steps_give_the_bits_of_steps_of_a_dense_state(backend):
    case = next(case for case in CASES if case.name == "cape")
    inputs = draw(case, np.float32)
    sparse, dense = initial(SparseRAMState, case, np.float32), initial(RAMState, case, np.float32)
    for t in range(12):
        arrays, options = [a[:, t : t + 1] for a in inputs.arrays], dict(positions=np.array([t]), backend=backend)
        y, returned = ram_attention_step(*arrays, state=sparse, cape_heads=2, **options)
        expected, _ = ram_attention_step(*arrays, state=dense, cape_heads=2, **options)
        assert returned is sparse
        np.testing.assert_array_equal(y, expected)
    assert_same_state(sparse, dense)


@pytest.mark.parametrize("backend", ON_CPU)
def test_contents_in_16_bits_are_those_of_a_dense_state_that_is_rounded(backend, tmp_path):
    case = next(case for case in CASES if case.name == "M-large")
    inputs, rows = draw(case, np.float32), small(tmp_path)._replace(rows="bfloat16")
    sparse, above = (initial(SparseRAMState, case, np.float32, tiers=t) for t in (rows, MemoryTiers(rows="bfloat16")))
    dense = initial(RAMState, case, np.float32)
    for start in range(0, case.T, 5):
        y, _, _ = segment(inputs, sparse, backend, start, start + 5)
        expected, dense, _ = segment(inputs, dense, backend, start, start + 5)
        other, _, _ = segment(inputs, above, backend, start, start + 5)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(other, expected)
        bits = dense.slots.view(np.uint32).astype(np.uint64)
        dense.slots[...] = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    assert_same_state(sparse, dense)
    assert sparse.disk_nbytes > 0
    assert above.rows.nbytes < initial_nbytes(above)


def initial_nbytes(state):
    """Bytes of the same slots in float32."""
    whole = SparseRAMState(state.shape, np.float32, initial_mass=state.initial_mass)
    for keys, rows in state.blocks():
        whole.scatter(keys, rows)
    return whole.rows.nbytes


def test_numbers_of_16_bits_are_the_nearest():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7FC00001, 0x80000001])
    rows = np.repeat(bits.astype(np.uint32).view(np.float32)[:, None], 4, axis=1)
    found = row_format(3, np.float32, "bfloat16")
    expected = [0x3F800000, 0x3F800000, 0x3F820000, 0x3F810000, 0x7F800000, 0xFF800000, 0x7FFF0000, 0x80000000]
    again = found.unpack(found.pack(rows)).view(np.uint32)
    assert again[:, 0].tolist() == again[:, 2].tolist() == expected
    assert again[:, 3].tolist() == bits.tolist()
    with pytest.raises(ValueError, match=r"memory.rows must be bfloat16 or None, got 'float16'"):
        SparseRAMState.initial(1, 1, 16, 4, tiers=MemoryTiers(rows="float16"))
    with pytest.raises(ValueError, match=r"memory.rows must be None for a state of float64, got 'bfloat16'"):
        SparseRAMState.initial(1, 1, 16, 4, np.float64, tiers=MemoryTiers(rows="bfloat16"))


@pytest.mark.parametrize("backend", ON_CPU)
def test_tiers_change_no_bit(backend, tmp_path):
    case = next(case for case in CASES if case.name == "M-large")
    inputs = draw(case, np.float32)
    above, tiered = (
        initial(SparseRAMState, case, np.float32),
        initial(SparseRAMState, case, np.float32, tiers=small(tmp_path)),
    )
    pieces = [(0, None)] + [
        (start, start + 5) for start in range(0, case.T, 5)
    ]  # the later ones find slots that went down
    for start, stop in pieces:
        y, *_ = segment(inputs, tiered, backend, start, stop)
        np.testing.assert_array_equal(y, segment(inputs, above, backend, start, stop)[0])
    assert above.written == tiered.written > 4 * tiered.rows._up.count
    assert tiered.disk_nbytes > 0
    for ours, theirs in zip(_sorted(tiered), _sorted(above), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _sorted(state):
    blocks = list(state.blocks(64))
    keys, rows = np.concatenate([keys for keys, _ in blocks]), np.concatenate([rows for _, rows in blocks])
    order = np.argsort(keys)
    assert len(np.unique(keys)) == len(keys)
    return keys[order], rows[order]


@pytest.mark.parametrize("backend", ON_CPU)
def test_memory_follows_what_was_written(backend):
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(2, 1, 9, 2, 30, 2)), rng.normal(size=(1, 9, 2, 4))
    slots = 2**30
    state = SparseRAMState.initial(1, 2, slots, 4, np.float64)
    y, state, ctx = ram_attention_forward(*logits, values, state=state, top_k=3, backend=backend)
    expected, _, _ = ram_attention_forward(*logits, values, top_k=3, return_state=False, backend=backend)
    np.testing.assert_array_equal(y, expected)
    assert 0 < state.written <= 9 * 2 * 3
    assert state.nbytes < 100000
    assert ram_attention_backward(y, ctx).values.shape == values.shape


def test_the_largest_memory_has_slots_below_2_to_the_31():
    logits = np.zeros((1, 2, 1, 19, 3))  # 3**19 is above 2**30
    logits[..., 2] = 1  # slot M - 1
    state = SparseRAMState.initial(1, 1, 3**19, 2, np.float64)
    ram_attention_forward(logits, logits, np.ones((1, 2, 1, 2)), state=state, top_k=1)
    assert _sorted(state)[0].tolist() == [3**19 - 1]


def test_a_state_is_left_alone_where_it_is_not_returned():
    case = CASES[0]
    inputs, state = draw(case, np.float32), initial(SparseRAMState, case, np.float32)
    inputs.options["return_state"] = False
    logits = [array[:, :4] for array in inputs.arrays]
    _, none, _ = ram_attention_forward(*logits, state=state, return_state=False)
    assert none is None
    assert state.written == 0


def test_copies_and_batches_hold_the_same_rows(tmp_path):
    case = next(case for case in CASES if case.name == "M-large")
    inputs, state = draw(case, np.float32), initial(SparseRAMState, case, np.float32, tiers=small(tmp_path))
    segment(inputs, state, None)
    keys, rows = _sorted(state)
    copy, swapped = state.copy(), state.take([1, 0, 1])
    again = SparseRAMState.joined([swapped.take([1]), swapped.take([2])])
    for other in (copy, again):
        for ours, theirs in zip(_sorted(other), (keys, rows), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    before = rows.copy()
    segment(inputs, copy, None)
    np.testing.assert_array_equal(_sorted(state)[1], before)


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"slots must be between 1 and 2147483647, got 2147483648"):
        SparseRAMState.initial(1, 1, 2**31, 4)
    with pytest.raises(ValueError, match=r"memory.host must hold at least 256 slots of a layer, 5120 bytes, got 5119"):
        SparseRAMState.initial(1, 1, 16, 4, tiers=MemoryTiers(host=5119))
    with pytest.raises(OSError, match=r"memory.disk must be a folder to write in, got .*nowhere"):
        SparseRAMState.initial(1, 1, 16, 4, tiers=MemoryTiers(host=5120, disk=tmp_path / "nowhere"))
    logits, values = np.zeros((1, 2, 1, 2, 4)), np.zeros((1, 2, 1, 3))
    with pytest.raises(ValueError, match=r"state must have shape .* = \(1, 1, 16, 3\) and be float64, got SparseRAMS"):
        ram_attention_forward(logits, logits, values, state=SparseRAMState.initial(1, 1, 16, 4, np.float64))
    state = SparseRAMState.initial(1, 1, 16, 3, np.float64)
    y, _, ctx = ram_attention_forward(logits, logits, values, state=state)
    with pytest.raises(ValueError, match=r"dstate must be None where state is a SparseRAMState"):
        ram_attention_backward(y, ctx, state.dense())
    with pytest.raises(ValueError, match=r"cu_seqlens must be None where state is a SparseRAMState"):
        ram_attention_forward(logits, logits, values, state=state, cu_seqlens=np.array([0, 2]))
    state.close()
    with pytest.raises(ValueError, match=r"state must be whole, got one that was closed"):
        ram_attention_forward(logits, logits, values, state=state)


def test_a_host_without_a_disk_says_when_it_is_full():
    case = next(case for case in CASES if case.name == "M-large")
    state = initial(SparseRAMState, case, np.float32, tiers=small(None))
    with pytest.raises(MemoryError, match=r"memory.host must hold every slot .* room for 256 slots of a layer"):
        segment(draw(case, np.float32), state, None)
    with pytest.raises(ValueError, match=r"state must be whole, got one that a segment left half written"):
        segment(draw(case, np.float32), state, None)


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_numbers_are_those_of_the_core(masked):
    if "numba" not in ON_CPU:
        pytest.skip("without Numba there are no compiled ones")
    rng = np.random.default_rng(0)
    for slots, T in ((50, 40), (2**31 - 1, 300)):
        accesses = rng.integers(0, slots, (2, 2, T, 3, 5), dtype=np.int32)
        accesses[..., 1:3] = accesses[:, :, :1, :, 1:3]
        mask = rng.random((2, T)) < 0.6 if masked else None
        with use_backend("numba"):
            compiled = number_slots(*accesses, mask, slots)
        plain = ACCELERATED["number_slots"](*accesses, mask, slots)
        for name, ours, theirs in zip(plain._fields, compiled, plain, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("finder", ON_CPU)
@pytest.mark.parametrize("backend", ON_CPU)
def test_rows_are_found_and_others_are_not(backend, finder):
    """By each backend in the table that either has filled: a state may go from one to the other."""
    rng = np.random.default_rng(0)
    keys = np.concatenate([np.arange(500), 2**40 + 16 * np.arange(500), rng.integers(2**41, 2**62, 500)])
    entries = np.full(4096, -1, np.int32)
    with use_backend(backend):
        enter_rows(keys, entries, 0, 700)
        enter_rows(keys, entries, 700, 1500)
        assert sorted(entries[entries >= 0]) == list(range(1500))
    with use_backend(finder):
        found = find_rows(np.concatenate([keys[::-1], keys + 1000]), keys, entries)
    np.testing.assert_array_equal(found[:1500], np.arange(1500)[::-1])
    missing = ~np.isin(keys + 1000, keys)
    assert missing.any()
    assert (found[1500:][missing] == -1).all()
    assert (found[1500:][~missing] >= 0).all()


def full(folder, monkeypatch):
    """Tiers whose file finds no room on the disk."""

    def refuse(file, start, stop):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ramnet_np.core.disk_pages._allocate", refuse)
    return small(folder)


def test_a_full_disk_is_said_in_a_sentence(tmp_path, monkeypatch):
    case = next(case for case in CASES if case.name == "M-large")
    inputs = draw(case, np.float32)
    bounded = initial(SparseRAMState, case, np.float32, tiers=small(tmp_path)._replace(disk_bytes=20000))
    with pytest.raises(OSError, match=r"memory.disk must have room for .* got 20000 bytes, which hold 18 pages"):
        segment(inputs, bounded, None)
    no_room = initial(SparseRAMState, case, np.float32, tiers=full(tmp_path, monkeypatch))
    with pytest.raises(OSError, match=r"memory.disk '.*' must have room for .* bytes, got: No space left on device"):
        segment(inputs, no_room, None)


def test_a_page_that_has_changed_on_the_disk_is_refused(tmp_path):
    case = next(case for case in CASES if case.name == "M-large")
    inputs, state = draw(case, np.float32), initial(SparseRAMState, case, np.float32, tiers=small(tmp_path))
    segment(inputs, state, None)
    os.pwrite(state.rows._disk._file.fileno(), b"\x55", 40 * 16 * 17 * 4 + 3)
    with pytest.raises(OSError, match=r"memory.disk '.*' is damaged: the page of slots from key .* has changed since"):
        segment(inputs, state, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_does_not_write_over_the_pages_of_its_parent(tmp_path):
    state, row = (
        SparseRAMState.initial(1, 1, 2**20, 16, np.float32, tiers=small(tmp_path)),
        np.ones((1, 17), np.float32),
    )
    with use_backend("numpy"):
        for page in range(400):
            state.scatter(np.array([16 * page]), page * row)
        before, child = _sorted(state), os.fork()
        if child == 0:
            said = 0
            for call in (state.gather, lambda keys: state.scatter(keys + 2**19, np.repeat(row, 256, axis=0))):
                try:
                    call(np.arange(256))
                except OSError as error:
                    said += f"must be used by the process that opened it, {os.getppid()}, got one" in str(error)
            os._exit(said)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        for ours, theirs in zip(_sorted(state), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice")
def test_the_disk_reads_the_next_part_behind_this_ones_work(tmp_path):
    state = SparseRAMState.initial(1, 1, 2**20, 16, np.float32, tiers=small(tmp_path))
    keys, disk, record = np.arange(0, 2**14, 8), state.rows._disk, 16 * 17 * 4
    state.scatter(keys, np.ones((len(keys), 17), np.float32))
    events, advised = [], set()

    class Map:
        def madvise(self, advice, start, length):
            assert advice == mmap.MADV_WILLNEED
            assert start % mmap.PAGESIZE == 0
            advised.update(range(start, start + length))

    real, load = disk._map, disk.load
    disk.load = lambda pages: events.append((set(advised), disk._index.find(pages))) or load(pages)
    disk._map = Map()
    state.gather(keys[:64])
    disk._map, disk.load = real, load
    later = [event for event in events[1:] if len(event[1])]
    assert later
    for known, records in later:
        assert all(at * record in known and (at + 1) * record - 1 in known for at in records.tolist())


def test_tables_on_the_host_are_there_where_a_backend_for_gpus_is_selected(tmp_path, monkeypatch):
    gpu = dataclasses.replace(load_backend("numpy"), name="cupy", array_kind="cupy", also_serves=())
    monkeypatch.setitem(ramnet_np.backend._loaded, "cupy", gpu)
    pages, keys, rows = DiskPages(tmp_path, None, 2, np.float32), np.array([5, 900]), np.array([[1, 2], [3, 4]])
    with use_backend("cupy"):
        pages.store(keys, rows)
        found, loaded = pages.load(pages.down(keys))
    assert found.tolist() == keys.tolist()
    assert loaded.tolist() == rows.tolist()
    pages.close()
