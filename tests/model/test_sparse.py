"""A model with a sparse memory: the tokens and bits of a dense one, in any tiers, over files and after a kill."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("safetensors")  # a model runs without it
from safetensors.numpy import load_file

from ramnet_np import MemoryTiers, RAMNet, RAMNetConfig, SparseRAMState
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.sparse import sparse_state
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.states import arrays_of

CONFIG = RAMNetConfig(vocab=29, width=16, layers=2, heads=2, order=5, cape=(2, 1), init_std=1.0)  # slots far apart
CONFIGS = {"ram": CONFIG, "conv": replace(CONFIG, short_conv=3)}
DRAWN = Sampling(temperature=1.5, seed=4)


def prompts(lengths=(16, 3, 16)):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 29, length) for length in lengths]


def tiers(folder):
    """256 rows of 8 channels for each of two layers, the rest on the disk."""
    return MemoryTiers(host=2 * 256 * 9 * 4, disk=folder)


def drawn(generation, count):
    return [generation.next(DRAWN).tolist() for _ in range(count)]


def slots_of(generation):
    """Every row of every sparse state by its key, and the other arrays."""
    now, found = generation.standing(), []
    for array in arrays_of([stepper.state for stepper in now.steppers]):
        if isinstance(array, SparseRAMState):
            blocks = list(array.blocks())
            keys = np.concatenate([keys for keys, _ in blocks])
            found += [np.sort(keys), np.concatenate([rows for _, rows in blocks])[np.argsort(keys)]]
        else:
            found.append(array)
    return [a.tobytes() for a in (now.logits, now.positions, now.seen, *found)]


def digest(generation):
    return hashlib.sha256(b"".join(slots_of(generation))).hexdigest()


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_gives_the_bits_of_a_dense_memory(name, tmp_path):
    model = RAMNet(CONFIGS[name], seed=0)
    dense = Generation(model, prompts())
    sparse = {where: Generation(model, prompts(), memory=where) for where in (MemoryTiers(), tiers(tmp_path))}
    expected = drawn(dense, 4)
    for generation in sparse.values():
        assert drawn(generation, 4) == expected
        generation.read(prompts((2, 9, 9)))
        assert len(generation.standing().steppers) == 1
    dense.read(prompts((2, 9, 9)))
    for generation in sparse.values():
        np.testing.assert_array_equal(generation.standing().logits, dense.standing().logits)
    in_memory, on_disk = (slots_of(generation) for generation in sparse.values())
    assert in_memory == on_disk
    [stepper] = sparse[tiers(tmp_path)].standing().steppers
    assert all(part.disk_nbytes for part in arrays_of(stepper.state) if isinstance(part, SparseRAMState))


def test_a_saved_memory_goes_on_in_other_tiers(tmp_path, monkeypatch):
    monkeypatch.setattr("ramnet_np.model.state_file.BLOCK", 50)  # rows that are read at once
    model, path = RAMNet(CONFIG, seed=0), tmp_path / "a.state"
    generation = Generation(model, prompts(), memory=tiers(tmp_path))
    drawn(generation, 5)
    save_generation(path, generation)
    assert load_file(path)["0.0.values"].shape[1] == 9  # the library reads the file too
    expected = drawn(generation, 5)
    for memory in (None, MemoryTiers(), tiers(tmp_path)):
        again = load_generation(path, model, memory=memory)
        assert drawn(again, 5) == expected
        assert slots_of(again) == slots_of(generation)


def test_a_dense_memory_goes_on_as_a_sparse_one(tmp_path):
    model, path = RAMNet(CONFIG, seed=0), tmp_path / "a.state"
    dense, sparse = Generation(model, prompts()), Generation(model, prompts(), memory=MemoryTiers())
    save_generation(path, dense)
    again = load_generation(path, model, memory=tiers(tmp_path))
    assert slots_of(again) == slots_of(sparse)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_file_is_named(damage, tmp_path):
    model, path = RAMNet(CONFIG, seed=0), tmp_path / "a.state"
    save_generation(path, Generation(model, prompts(), memory=MemoryTiers()))
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data if damage == "flip" else data[:-7])
    with pytest.raises(ValueError, match=r"a.state' (is damaged|must be a state of a generation)"):
        load_generation(path, model)


WRITER = """
import sys
from pathlib import Path
from tests.model.test_sparse import *
model, folder = RAMNet(CONFIG, seed=0), Path(sys.argv[1])
generation = Generation(model, prompts(), memory=tiers(folder))
for n in range(10**6):
    drawn(generation, 1)
    print(digest(generation), flush=True)
    save_generation(folder / "a.state", generation)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_a_killed_process_leaves_a_whole_state_and_nothing_else(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        before = 0
        for _ in range(3):  # some saves, and then one or the next is cut
            while not (tmp_path / "a.state").exists() or (tmp_path / "a.state").stat().st_mtime_ns == before:
                time.sleep(0.005)
                assert writer.poll() is None
            before = (tmp_path / "a.state").stat().st_mtime_ns
        time.sleep(0.01)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        saved, _ = writer.communicate()
    again = load_generation(tmp_path / "a.state", RAMNet(CONFIG, seed=0))
    assert digest(again) in saved.split()[-2:]
    save_generation(tmp_path / "a.state", again)
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]  # nor what the killed one had begun


def test_training_goes_on_from_a_sparse_state_and_ends_at_its_edge():
    model, ids = RAMNet(CONFIG, seed=0, dtype=np.float64), np.stack(prompts((6, 6)))
    sparse, dense = sparse_state(model, 2), model.initial_state(2)
    for start in (0, 6):
        positions = np.arange(start, start + 6)
        x, returned, ctx = model.forward_hidden(ids, sparse, positions=positions)
        expected, dense, dense_ctx = model.forward_hidden(ids, dense, positions=positions)
        assert returned[0] is sparse[0]
        np.testing.assert_array_equal(x, expected)
        grads, theirs = (model.backward_hidden(x, np.zeros_like(model.head), c) for c in (ctx, dense_ctx))
        for name, grad in grads.items():
            np.testing.assert_array_equal(grad, theirs[name], err_msg=name)


def test_layers_that_took_tokens_before_another_failed_are_not_gone_on_with(monkeypatch):
    model, ids, positions = RAMNet(CONFIG, seed=0), prompts((6,))[0][None], np.arange(6)
    state = sparse_state(model, 1)
    second, gather = state[1], SparseRAMState.gather

    def damaged(self, keys):
        if self is second:
            raise OSError("memory.disk is damaged")
        return gather(self, keys)

    with pytest.raises(ValueError, match="ids must lie between 0 and 28"):
        model.forward_with_state(ids + 29, state, positions=positions)
    with pytest.raises(ValueError, match="positions must"):
        model.forward_with_state(ids, state, positions=positions[:2])
    monkeypatch.setattr(SparseRAMState, "gather", damaged)
    with pytest.raises(OSError, match="damaged"):
        model.forward(ids, state=state, positions=positions)
    assert not any(memory._lost for memory in state)  # nothing has changed
    with pytest.raises(OSError, match="damaged"):
        model.forward_with_state(ids, state, positions=positions)
    monkeypatch.undo()
    assert state[0].written
    for call in (model.forward_with_state, model.step):
        with pytest.raises(ValueError, match=r"must be whole, got one that a segment left half written: .* is damaged"):
            call(ids[:, :1], state, positions=positions[:1])


def test_a_file_is_made_for_a_backend_that_is_there(tmp_path):
    model = RAMNet(CONFIG, seed=0)
    save_generation(tmp_path / "a.state", Generation(model, prompts(), memory=MemoryTiers()))
    with pytest.raises(ValueError, match="'nope'"):
        load_generation(tmp_path / "a.state", model, backend="nope")


def test_what_is_refused():
    with pytest.raises(ValueError, match="mixer must be 'ram' for a sparse memory, got 'softmax'"):
        sparse_state(RAMNet(RAMNetConfig(mixer="softmax", vocab=29, width=16, layers=2)), 1)
    with pytest.raises(
        ValueError, match="learned_slots must be False for a sparse memory, whose slots all start alike"
    ):
        sparse_state(RAMNet(replace(CONFIG, learned_slots=True)), 1)
    model, ids = RAMNet(CONFIG, seed=0), prompts((6,))[0][None]
    with pytest.raises(ValueError, match=r"memory.host must hold at least 256 slots of a layer, .* got 50 bytes"):
        sparse_state(model, 1, MemoryTiers(host=100))
    state = sparse_state(model, 1)
    x, _, ctx = model.forward_hidden(ids, state, positions=np.arange(6), recompute="block")
    with pytest.raises(ValueError, match="recompute must not be 'block' with a SparseRAMState"):
        model.backward_hidden(x, np.zeros_like(model.head), ctx)
    with pytest.raises(ValueError, match="state must hold other slots for every layer"):
        model.step(ids[:, :1], [state[0], state[0]], np.array([0]))
    with pytest.raises(ValueError, match="state must hold other slots for every layer"):
        model.forward_with_state(ids, [state[0], state[0]], positions=np.arange(6))
    for call in (lambda: sparse_state(model, 1, "64GiB"), lambda: Generation(model, [ids[0]], memory="64GiB")):
        with pytest.raises(TypeError, match=r"memory must be tiers, such as .*, got str"):
            call()


def test_as_many_slots_as_an_int32_numbers():
    model = RAMNet(RAMNetConfig(vocab=29, width=16, layers=2, heads=2, order=30, radix=2), seed=0)
    generation = Generation(model, prompts(), memory=MemoryTiers())
    drawn(generation, 3)
    [stepper] = generation.standing().steppers
    assert sum(memory.nbytes for memory in stepper.state) < 10**6
