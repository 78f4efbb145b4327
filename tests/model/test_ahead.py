"""Tokens chosen ahead, with a stand-in for CUDA graphs: a launch makes the captured call again, on the same arrays."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="safetensors is not installed")

from ramnet_np import MemoryTiers
from ramnet_np.core.tiered_rows import TieredRows
from ramnet_np.model import RAMNet, ahead, generation, room
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.states import arrays_of
from tests.model.test_generation import DRAWN, MODELS, SMALL, make, prompts


class HostCopy:
    def __init__(self, like):
        self.host = np.empty_like(like)

    def start(self, array):
        self.host[...] = array

    def wait(self):
        return self.host.copy()


class Captured(list):
    def __init__(self):
        super().__init__()
        self.waits, self.freed = [], []


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were captured, and waits for the stream; generations choose ahead as on a GPU."""
    captured = Captured()

    def capture(call, stream, pool):
        graph = SimpleNamespace(launches=0)

        def arrays():
            one = call.__self__
            return [*one._now[1:], *arrays_of(one._stepper.state), one._token]

        def launch():
            graph.launches += 1
            before = arrays()
            call()
            assert all(a is b for a, b in zip(before, arrays(), strict=True))  # where a graph would find them

        graph.launch = launch
        captured.append(graph)
        return graph, None

    def of_standing(self):
        if self._ahead is None and self._step_together():
            self._ahead = ahead.TokensAhead(self._now, self._graphs)
        return self._ahead

    monkeypatch.setattr(ahead, "own_stream", lambda: SimpleNamespace(synchronize=lambda: captured.waits.append(None)))
    monkeypatch.setattr(ahead, "in_order_on", lambda stream: nullcontext())
    monkeypatch.setattr(ahead, "graph_pool", lambda: None)
    monkeypatch.setattr(ahead, "free_with", lambda owner, stream, pool: captured.freed.append(owner))
    monkeypatch.setattr(ahead, "HostCopy", HostCopy)
    monkeypatch.setattr(ahead, "capture", capture)
    monkeypatch.setattr(generation.Generation, "_tokens_ahead", of_standing)
    return captured


def tokens(model, sampling, count=8, graphs="auto", lengths=(4, 2, 4), **given):
    one = Generation(model, prompts(lengths), graphs=graphs, **given)
    return np.array([one.next(sampling) for _ in range(count)]), one.standing()


def bits_of(standing):
    return [(a.shape, a.tobytes()) for a in arrays_of(standing.steppers[0].state)]


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_standing_are_those_of_one_after_another(graphs, monkeypatch, name, sampling):
    model, lengths = make(name), (4, 4, 4) if name.startswith("softmax") else (4, 2, 4)
    got, now = tokens(model, sampling, lengths=lengths)
    launched, off = sum(graph.launches for graph in graphs), tokens(model, sampling, graphs="off", lengths=lengths)
    monkeypatch.undo()
    expected, standing = tokens(model, sampling, lengths=lengths)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(off[0], expected)
    for field in ("logits", "positions", "seen"):
        np.testing.assert_array_equal(getattr(now, field), getattr(standing, field))
    assert bits_of(now) == bits_of(standing)
    assert launched == 7


def test_settings_may_change_and_prompts_come_between(graphs, monkeypatch):
    def texts(one):
        parts = [one.next(s) for s in (DRAWN, DRAWN, DRAWN, Sampling(), DRAWN, DRAWN)]
        one.read(prompts((2, 1, 3)))
        return [*parts, *(one.next_on_host(DRAWN) for _ in range(4))]

    got = texts(Generation(make("ram"), prompts((4, 2, 4))))
    assert [graph.launches for graph in graphs] == [2, 1, 3]
    assert len(graphs.waits) == 4  # for the graph of each of the settings before, and once more after the prompts
    assert len(graphs.freed) == 2
    monkeypatch.undo()
    np.testing.assert_array_equal(got, texts(Generation(make("ram"), prompts((4, 2, 4)))))


GROWING = {
    "softmax": {"mixer": "softmax"},
    "conv": {"mixer": "softmax", "short_conv": 3},
    "hybrid": {"hybrid": "softmax", "hybrid_every": 2, "layers": 2},
}


@pytest.mark.parametrize("settings", GROWING.values(), ids=GROWING)
def test_a_memory_that_grows_moves_when_its_room_is_full(graphs, monkeypatch, tmp_path, settings):
    """At 8 and 16 tokens; saved anywhere, also there, it is what it is without room, and goes on as that does."""
    model = RAMNet(replace(SMALL, **settings), seed=1)
    monkeypatch.setattr(room, "LEAST", 8)
    one, got = Generation(model, prompts((4, 4))), []
    for count in range(16):
        got.append(one.next_on_host(DRAWN))
        if count in (0, 3, 4, 5, 11):
            save_generation(tmp_path / f"{count}.state", one)
    assert [graph.launches for graph in graphs] == [3, 7, 3]  # a token after each move runs as launches
    assert 20 in {array.shape[1] for array in arrays_of(one.standing().steppers[0].state)}  # not the room of 32
    got += [one.next_on_host(DRAWN) for _ in range(2)]
    assert [graph.launches for graph in graphs] == [3, 7, 5]  # a look at the state moves nothing
    again = load_generation(tmp_path / "4.state", model)
    np.testing.assert_array_equal([again.next_on_host(DRAWN) for _ in range(13)], got[5:])
    monkeypatch.undo()
    plain, expected = Generation(model, prompts((4, 4))), []
    for count in range(16):
        expected.append(plain.next_on_host(DRAWN))
        if (saved := tmp_path / f"{count}.state").exists():
            save_generation(tmp_path / "plain.state", plain)
            assert saved.read_bytes() == (tmp_path / "plain.state").read_bytes()
    np.testing.assert_array_equal(got[:16], expected)


def test_a_prompt_is_read_behind_a_memory_with_room(graphs, monkeypatch):
    def texts(one):
        parts = [one.next_on_host(DRAWN) for _ in range(3)]
        one.read(prompts((5, 5)))
        return parts + [one.next_on_host(DRAWN) for _ in range(4)]

    monkeypatch.setattr(room, "LEAST", 8)
    got = texts(Generation(make("softmax"), prompts((4, 4))))
    assert [graph.launches for graph in graphs] == [2, 3]
    monkeypatch.undo()
    np.testing.assert_array_equal(got, texts(Generation(make("softmax"), prompts((4, 4)))))


def test_a_state_is_saved_without_what_was_chosen_ahead(graphs, tmp_path):
    model = make("ram-conv")
    whole, _ = tokens(model, DRAWN)
    one = Generation(model, prompts((4, 2, 4)))
    first = [one.next_on_host(DRAWN) for _ in range(5)]
    save_generation(tmp_path / "a.state", one)
    again = load_generation(tmp_path / "a.state", model)
    np.testing.assert_array_equal([*first, *(again.next(DRAWN) for _ in range(3))], whole)
    np.testing.assert_array_equal([one.next(DRAWN) for _ in range(3)], whole[5:])


def test_what_was_chosen_ahead_is_chosen_again_where_someone_moves_the_sequences(graphs, monkeypatch):
    def texts(one):
        first = [one.next(DRAWN) for _ in range(3)]
        one.standing().positions[:] = 1000
        return first + [one.next(DRAWN) for _ in range(4)]

    got = texts(Generation(make("ram"), prompts((4, 4))))
    monkeypatch.undo()
    np.testing.assert_array_equal(got, texts(Generation(make("ram"), prompts((4, 4)))))


def test_a_token_is_chosen_once(graphs, monkeypatch):
    chosen, choose = [], ahead.next_token
    monkeypatch.setattr(ahead, "next_token", lambda *given: chosen.append(given) or choose(*given))
    tokens(make("ram"), DRAWN, count=8)
    assert len(chosen) == 9  # with the one ahead


def test_a_memory_whose_rows_move_is_in_no_graph(graphs):
    expected, _ = tokens(make("ram"), DRAWN)
    graphs.clear()
    got, _ = tokens(make("ram"), DRAWN, memory=MemoryTiers())
    np.testing.assert_array_equal(got, expected)
    assert graphs == []


def test_room_for_rows_is_made_before_each_launch_and_a_graph_goes_when_they_begin_to_move(graphs, monkeypatch):
    expected, _ = tokens(make("ram"), DRAWN, count=12)
    graphs.clear()
    prepared = []
    monkeypatch.setattr(TieredRows, "prepare", lambda rows: prepared.append(rows), raising=False)
    monkeypatch.setattr(TieredRows, "stays", True)  # as of rows on a GPU
    one = Generation(make("ram"), prompts((4, 2, 4)), memory=MemoryTiers())
    got, waits = [one.next(DRAWN) for _ in range(4)], len(graphs.waits)
    layers = one.model.config.layers
    assert ([graph.launches for graph in graphs], len(prepared)) == ([3], 3 * layers)
    monkeypatch.setattr(TieredRows, "stays", False)  # rows go to a disk
    got += [one.next(DRAWN) for _ in range(3)]
    assert [graph.launches for graph in graphs] == [3]
    assert len(graphs.waits) == waits + 1
    monkeypatch.setattr(TieredRows, "stays", True)
    got += [one.next(DRAWN) for _ in range(5)]
    assert [graph.launches for graph in graphs] == [3, 4]
    np.testing.assert_array_equal(got, expected)


def test_a_capture_that_fails_is_said_and_generation_goes_on(graphs, monkeypatch):
    expected, _ = tokens(make("delta"), DRAWN)

    refused = []

    def refuse(call, stream, pool):
        call.__self__._stepper.state[0] = "half done"
        refused.append(call)
        raise RuntimeError("not today\nand more")

    monkeypatch.setattr(ahead, "capture", refuse)
    with pytest.warns(UserWarning, match=r"without CUDA graphs, as a token could not be captured \(RuntimeError: not"):
        got, _ = tokens(make("delta"), DRAWN)
    np.testing.assert_array_equal(got, expected)
    assert len(refused) == 1  # and not tried again
    with pytest.raises(RuntimeError, match=r"could not be captured as a CUDA graph \(RuntimeError: not today\)"):
        tokens(make("delta"), DRAWN, graphs="on")


def test_ctrl_c_in_a_capture_is_not_gone_on_from(graphs, monkeypatch):
    def interrupt(call, stream, pool):
        call()
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead, "capture", interrupt)
    one = Generation(make("ram"), prompts((4, 2, 4)))
    first, state = one.next(DRAWN), one._now.steppers[0].state
    before = arrays_of(state)
    with pytest.raises(KeyboardInterrupt):
        one.next(DRAWN)
    assert all(a is b for a, b in zip(before, arrays_of(state), strict=True))
    with pytest.raises(ValueError, match="generation must be whole, got one that was ended by KeyboardInterrupt"):
        one.next(DRAWN)
    assert len(first) == 3


def test_graphs_are_one_of_three():
    with pytest.raises(ValueError, match="graphs must be one of 'auto', 'on', 'off', got 'never'"):
        tokens(make("delta"), DRAWN, graphs="never")
