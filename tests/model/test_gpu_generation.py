"""Generation on a GPU: the tokens of the CPU, the bits of launches with CUDA graphs, states that cross over.

Needs a GPU.
"""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

from ramnet_np.core.cuda_graph import own_stream
from ramnet_np.data.codec import ByteCodec
from ramnet_np.layers.sampling import mark_seen, sample_tokens
from ramnet_np.layers.uniform import row_seeds, uniform
from ramnet_np.model import RAMNet, RAMNetConfig, ahead, room
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling, next_token
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.states import arrays_of
from ramnet_np.runs.writing import encode_prompts, write
from tests.model.test_ahead import GROWING
from tests.model.test_generation import DRAWN, MODELS, SMALL
from tests.model.test_sampling import LOGITS, SEEN, SETTINGS, probabilities

pytestmark = pytest.mark.gpu

ROUNDING = 1e-3  # of logits in float32, which spread over several units


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def make(name, dtype="float32", device="gpu"):
    model = RAMNet(replace(SMALL, **MODELS[name]), seed=1)
    return model.to(device, dtype) if device == "gpu" else model.to(device, np.dtype(dtype))


def prompts(cp, count, alike=False):
    rng = np.random.default_rng(8)
    return [cp.asarray(rng.integers(0, 29, 5 if alike else 1 + row % 7)) for row in range(count)]


def tokens(generation, sampling, count=10):
    """(B, count), read at the end."""
    made = [generation.next(sampling) for _ in range(count)]
    return np.stack([token.get() for token in made], axis=1)


# ---- tokens from logits ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_token_is_the_one_of_the_core(cp, settings, dtype):
    logits = cp.asarray(LOGITS).astype(np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if "b" in dtype else dtype)
    on_cpu = logits.astype(np.float64 if dtype == "float64" else np.float32).get()
    for u in (0.1, 0.5, 0.77, 0.999):
        us, sampling = np.full(len(LOGITS), u), Sampling(**{"temperature": 1.0} | settings)
        got = next_token(logits, sampling, cp.asarray(us), cp.asarray(SEEN))
        assert got.get().tolist() == next_token(on_cpu, sampling, us, SEEN).tolist()
    greedy = Sampling(repetition_penalty=settings.get("repetition_penalty", 1.0))
    got = next_token(logits, greedy, None, cp.asarray(SEEN))
    assert got.get().tolist() == next_token(on_cpu, greedy, None, SEEN).tolist()


@pytest.mark.parametrize("width", [1, 31, 32, 33, 1024, 1025, 32_000, 131_073])
def test_any_width_of_a_row(cp, width):
    rng = np.random.default_rng(width)
    for scale in (0.3, 6.0):
        logits, u, seen = rng.normal(size=(5, width)) * scale, rng.random(5), rng.random((5, width)) < 0.2
        logits[0] = 0  # all tokens alike: no share of them is a whole number with these settings
        on_gpu = cp.asarray(logits), cp.asarray(u), cp.asarray(seen)
        several = {"top_k": 41, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2}
        for settings in ({}, {"top_p": 0.9137}, {"top_k": 50}, several):
            expected = sample_tokens(logits, u, seen, temperature=0.8, **settings)
            got = sample_tokens(*on_gpu, temperature=0.8, **settings)
            assert got.get().tolist() == expected.tolist()
            assert got.get().tolist() == sample_tokens(*on_gpu, temperature=0.8, **settings).get().tolist()
        assert sample_tokens(on_gpu[0]).get().tolist() == logits.argmax(axis=-1).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_logits_whose_largest_is_not_finite_give_no_token(cp, dtype):
    """A NaN counts as the largest wherever it stands; a token that cannot come is -inf, and does no harm."""
    logits = np.random.default_rng(4).normal(size=(6, 2000))
    logits[0, 1234] = np.nan
    logits[1] = np.nan
    logits[2, 1500] = np.inf
    logits[3] = -np.inf
    logits[4, 7], logits[4, 1999] = -np.inf, np.nan
    logits[5, :1000] = -np.inf
    on_gpu = cp.asarray(logits).astype(np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if "b" in dtype else dtype)
    settings = {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 7}, {"temperature": 1.0, "min_p": 0.1}
    for sampling in (Sampling(), *(Sampling(**each) for each in settings)):
        got = next_token(on_gpu, sampling, cp.full(6, 0.5), None).get()
        assert got[:5].tolist() == [-1] * 5
        assert 1000 <= got[5] < 2000


def test_a_token_outside_the_vocabulary_is_refused(cp):
    with pytest.raises(ValueError, match=r"ids\[1\] must lie between 0 and 28, got 29 at index \(2,\)"):
        Generation(make("ram"), [cp.array([1, 2]), cp.array([3, 4, 29])])


@pytest.mark.parametrize("name", ["ram", "softmax"])  # with graphs, and without
def test_a_model_of_nan_ends_in_one_sentence_where_the_host_looks(cp, name):
    model = make(name)
    model.head[...] = np.nan
    one, words = (
        Generation(model, prompts(cp, 3)),
        "logits must be finite for a token to be chosen, got NaN or infinity",
    )
    with pytest.raises(FloatingPointError, match=words):
        one.next_on_host(DRAWN)
    with pytest.raises(ValueError, match="generation must be whole, got one that was ended by FloatingPointError"):
        one.next(DRAWN)
    unseen = Generation(model, prompts(cp, 3))
    assert [unseen.next(DRAWN).get().tolist() for _ in range(4)] == [[-1] * 3] * 4


def test_draws_have_the_distribution_of_the_definition(cp):
    stats = pytest.importorskip("scipy.stats")
    n, row, settings = 20_000, 5, {"temperature": 1.5, "top_p": 0.95, "repetition_penalty": 1.3}
    expected = probabilities(LOGITS[row], SEEN[row], **settings)
    logits, seen = (cp.asarray(np.repeat(each[row : row + 1], n, axis=0)) for each in (LOGITS, SEEN))
    u = uniform(row_seeds(11, n, logits), cp.full(n, 7))
    drawn = np.bincount(next_token(logits, Sampling(**settings), u, seen).get(), minlength=23)
    often = expected * n > 5
    assert drawn[expected == 0].sum() == 0
    counted, wanted = [*drawn[often], drawn[~often].sum()], [*(expected[often] * n), expected[~often].sum() * n]
    counted, wanted = np.array(counted), np.array(wanted)
    assert stats.chisquare(counted[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


def test_numbers_and_marks_are_those_of_the_core(cp):
    rng = np.random.default_rng(2)
    seeds, positions = rng.integers(0, 2**64, 300, dtype=np.uint64), rng.integers(0, 2**40, 300)
    np.testing.assert_array_equal(uniform(cp.asarray(seeds), cp.asarray(positions)).get(), uniform(seeds, positions))
    seen, marks = np.zeros((300, 7), bool), rng.integers(0, 7, 300)
    on_gpu = cp.asarray(seen)
    mark_seen(seen, marks)
    mark_seen(on_gpu, cp.asarray(marks))
    np.testing.assert_array_equal(on_gpu.get(), seen)


# ---- generation ----


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_the_parallel_forward(cp, name):
    """To float32's rounding: of each batch, and so alone and beside others; and the same from run to run."""
    model = make(name)
    for batch in (1, 3, 16, 64):
        ids = prompts(cp, batch, alike=name.startswith("softmax"))
        got = tokens(Generation(model, ids), Sampling())
        np.testing.assert_array_equal(tokens(Generation(model, ids), Sampling()), got)
        assert batch < 16 or len(np.unique(got)) > 3
        for row, prompt in enumerate(ids[:16]):
            whole = cp.concatenate([prompt, cp.asarray(got[row])])
            logits = model.forward(whole[None])[0][0, -11:-1].get()
            chosen = np.take_along_axis(logits, got[row][:, None], axis=-1)[:, 0]
            assert (logits.max(axis=-1) - chosen < ROUNDING).all()


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_the_cpu_alone_and_beside_others(cp, name, sampling):
    model, on_cpu, ids = make(name, "float64"), make(name, "float64", "cpu"), prompts(cp, 16)
    together = tokens(Generation(model, ids), sampling)
    one = Generation(on_cpu, [prompt.get() for prompt in ids])
    np.testing.assert_array_equal(together, np.stack([one.next(sampling) for _ in range(10)], axis=1))
    for row in (0, 5, 15):
        alone = replace(sampling, seed=sampling.seed + row)
        np.testing.assert_array_equal(tokens(Generation(model, [ids[row]]), alone)[0], together[row])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_graphs_give_the_bits_of_launches(cp, name, dtype, monkeypatch):
    captured = []
    capture = ahead.capture
    monkeypatch.setattr(ahead, "capture", lambda *given: captured.append(given) or capture(*given))
    model, ids, found = make(name, dtype), prompts(cp, 5, alike=True), {}
    for graphs in ("on", "off"):
        for sampling in (DRAWN, Sampling()):
            one = Generation(model, ids, graphs=graphs)
            made, now = tokens(one, sampling), one.standing()
            arrays = [now.logits, now.positions, now.seen, *arrays_of(now.steppers[0].state)]
            found[graphs, sampling] = [made.tobytes(), *(array.get().tobytes() for array in arrays)]
    assert len(captured) == 2
    for sampling in (DRAWN, Sampling()):
        assert found["on", sampling] == found["off", sampling]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("settings", GROWING.values(), ids=GROWING)
def test_a_memory_that_grows_has_the_same_bits_in_any_room(cp, settings, dtype, monkeypatch, tmp_path):
    """Captured once, and with room for 8 tokens four times; a state that is saved midway goes on as it would have."""
    captured, capture = [], ahead.capture
    monkeypatch.setattr(ahead, "capture", lambda *given: captured.append(given) or capture(*given))
    model, ids = RAMNet(replace(SMALL, **settings), seed=1).to("gpu", dtype), prompts(cp, 3, alike=True)
    found = []
    for least, graphs in (256, "off"), (256, "on"), (8, "on"):
        monkeypatch.setattr(room, "LEAST", least)
        one = Generation(model, ids, graphs=graphs)
        made = [one.next_on_host(DRAWN).tolist() for _ in range(19)]
        save_generation(tmp_path / f"{len(found)}.state", one)
        made += [one.next_on_host(DRAWN).tolist() for _ in range(12)]
        now = one.standing()
        arrays = [now.logits, now.positions, now.seen, *arrays_of(now.steppers[0].state)]
        found.append(
            (made, [array.get().tobytes() for array in arrays], (tmp_path / f"{len(found)}.state").read_bytes())
        )
    assert found[0] == found[1] == found[2]
    assert len(captured) == 1 + 4
    again = load_generation(tmp_path / "2.state", model)
    assert [again.next_on_host(DRAWN).tolist() for _ in range(12)] == found[0][0][19:]


def test_settings_may_change_and_prompts_come_between(cp):
    def texts(one, ids, read):
        parts = [one.next(s) for s in (DRAWN, DRAWN, DRAWN, Sampling(), DRAWN, DRAWN)]
        one.read([read(each) for each in ids])
        return [read(each) for each in parts] + [one.next_on_host(DRAWN) for _ in range(4)]

    ids = prompts(cp, 5)
    got = texts(Generation(make("ram", "float64"), ids), ids, lambda each: each)
    expected = texts(
        Generation(make("ram", "float64", "cpu"), [each.get() for each in ids]), ids,
        lambda each: each.get() if hasattr(each, "get") else each,
    )  # fmt: skip
    np.testing.assert_array_equal([part.get() if hasattr(part, "get") else part for part in got], expected)


@pytest.mark.parametrize("name", ["ram", "ram-conv", "delta", "softmax"])
@pytest.mark.parametrize("way", ["gpu to cpu", "cpu to gpu", "gpu to gpu"])
def test_a_state_goes_from_one_device_to_the_other(cp, name, way, tmp_path):
    source, target = way.split(" to ")
    ids = [each.get() for each in prompts(cp, 3)]
    xp = {"cpu": np, "gpu": cp}
    whole = Generation(make(name, "float64", "cpu"), ids)
    expected = [whole.next(DRAWN) for _ in range(9)]
    one = Generation(make(name, "float64", source), [xp[source].asarray(each) for each in ids])
    got = [one.next_on_host(DRAWN) for _ in range(4)]
    save_generation(tmp_path / "a.state", one)
    again = load_generation(tmp_path / "a.state", make(name, "float64", target))
    np.testing.assert_array_equal([*got, *(again.next_on_host(DRAWN) for _ in range(5))], expected)


def test_text_is_that_of_the_cpu(cp):
    config = RAMNetConfig(vocab=256, width=16, layers=2, heads=2, order=3, radix=3, top_k=4, init_std=0.4)
    model, ids = RAMNet(config, seed=1, dtype=np.float64), encode_prompts(["Tom", "A"], ByteCodec())
    expected = list(write(Generation(model, ids), 30, DRAWN, ByteCodec(), ("\n",)))
    on_gpu = Generation(model.to("gpu"), [cp.asarray(each) for each in ids])
    assert list(write(on_gpu, 30, DRAWN, ByteCodec(), ("\n",))) == expected


def test_a_host_that_reads_late_gets_every_token(cp):
    """Tokens are arrays of their own: the next graph does not change them."""
    one, other = (Generation(make("ram"), prompts(cp, 4)) for _ in range(2))
    on_host = np.stack([other.next_on_host(DRAWN) for _ in range(10)], axis=1)
    np.testing.assert_array_equal(tokens(one, DRAWN), on_host)


def test_callers_may_be_on_any_stream(cp):
    expected = tokens(Generation(make("ram"), prompts(cp, 4)), DRAWN)
    one, made = Generation(make("ram"), prompts(cp, 4)), []
    for stream in (cp.cuda.Stream.null, cp.cuda.Stream(non_blocking=True), own_stream()) * 3:
        cp.cuda.Device().synchronize()
        with stream:
            made.append(one.next_on_host(DRAWN))
    np.testing.assert_array_equal(np.stack(made, axis=1), expected[:, :9])


def test_a_capture_that_fails_is_said_and_generation_goes_on(cp, monkeypatch):
    expected = tokens(Generation(make("delta"), prompts(cp, 3)), DRAWN)

    def refuse(stream):
        raise RuntimeError("not today\nand more")

    monkeypatch.setattr("ramnet_np.core.cuda_graph.begin_capture", refuse)
    with pytest.warns(UserWarning, match=r"a token could not be captured \(RuntimeError: not today\)"):
        got = tokens(Generation(make("delta"), prompts(cp, 3)), DRAWN)
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(RuntimeError, match=r"could not be captured as a CUDA graph \(RuntimeError: not today\)"):
        tokens(Generation(make("delta"), prompts(cp, 3), graphs="on"), DRAWN)


def test_memory_comes_back(cp):
    """After several generations, each with a graph of its own."""
    model, left = make("ram"), []
    for _ in range(6):
        tokens(Generation(model, prompts(cp, 64)), DRAWN)
        cp.get_default_memory_pool().free_all_blocks()
        left.append(cp.cuda.runtime.memGetInfo()[0])
    assert left[-1] >= left[1] - 2**22
