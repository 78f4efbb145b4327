"""Generation: the same tokens one by one as at once, in a batch as alone, for every mixer."""

from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.core.bfloat16 import from_bfloat16
from ramnet_np.model import RAMNet, RAMNetConfig, stepping
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.settled import settled
from tests.mixer_cases import MIXERS

SMALL = RAMNetConfig(vocab=29, width=16, heads=2, order=3, radix=3, top_k=4, init_std=0.4, tie_embeddings=False)
MODELS = {"ram": {"cape": (2, 1), "gamma_mode": "dynamic"}, "ram-plain-scale": {"address_scale": False}, **MIXERS}
LENGTHS = (5, 1, 9, 5, 2)
DRAWN = Sampling(temperature=1.5, top_p=0.9, repetition_penalty=1.2, seed=4)


def make(name):
    return RAMNet(replace(SMALL, **MODELS[name]), seed=1)


def prompts(lengths=LENGTHS):
    rng = np.random.default_rng(8)
    return [rng.integers(0, 29, length) for length in lengths]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_the_parallel_forward(name):
    model = make(name)
    whole = model.generate(prompts(), 12)
    assert len(np.unique(np.concatenate([row[-12:] for row in whole]))) > 5  # else this shows little
    for row in whole:
        logits, _ = model.forward(row[None])
        np.testing.assert_array_equal(logits[0, -13:-1].argmax(axis=-1), row[-12:])


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_any_lengths_gives_what_each_gives_alone(name):
    model, sampling = make(name), {"temperature": 1.5, "min_p": 0.02, "repetition_penalty": 1.2}
    together = model.generate(prompts(), 10, seed=6, **sampling)
    for b, prompt in enumerate(prompts()):
        alone = model.generate(prompt[None], 10, seed=6 + b, **sampling)[0]
        np.testing.assert_array_equal(together[b], alone)
    np.testing.assert_array_equal(
        np.concatenate(model.generate(prompts(), 10, seed=6, **sampling)), np.concatenate(together)
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_in_parts_is_the_prompt(name):
    model = make(name)
    generation = Generation(model, prompts((3, 3, 4)))
    generation.read(prompts((2, 5, 2)))
    whole = [np.concatenate(parts) for parts in zip(prompts((3, 3, 4)), prompts((2, 5, 2)), strict=True)]
    expected = [row[-8:] for row in model.generate(whole, 8)]
    np.testing.assert_array_equal([generation.next(Sampling()) for _ in range(8)], np.transpose(expected))
    assert generation.standing().positions.tolist() == [13, 16, 14]


def rounded(model):
    """The model whose matrices, as generation computes with them, are rounded to bfloat16 and held in float32."""
    ready = settled(model, "bfloat16")
    floats = {name: from_bfloat16(p) if p.dtype == np.uint16 else p for name, p in ready.params.items()}
    return RAMNet(ready.config, params=floats)


@pytest.mark.parametrize("name", [*MODELS, "wide"])
def test_weights_in_16_bits_give_the_tokens_of_rounded_weights(name):
    """Alone and beside others, with matrices that kernels take and such that they leave to the mathematics."""
    wide = {"width": 160, "ffn_width": 128, "gamma_mode": "dynamic", "output_gate": True, "tie_embeddings": True}
    model = RAMNet(replace(SMALL, **(wide if name == "wide" else MODELS[name])), seed=1)
    one = Generation(model, prompts(), weights="bfloat16")
    wanted = Generation(rounded(model), prompts())
    assert one.standing().logits.dtype == np.float32
    for _ in range(8):
        np.testing.assert_allclose(one.standing().logits, wanted.standing().logits, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(one.next(DRAWN), wanted.next(DRAWN))
    assert abs(one.standing().logits - Generation(model, prompts()).standing().logits).max() > 1e-3  # rounding shows


def test_weights_in_16_bits_leave_the_rest_as_it_is():
    ready = settled(RAMNet(replace(SMALL, tie_embeddings=True, short_conv=3), seed=1), "bfloat16")
    for name, array in ready.params.items():
        is_matrix = array.ndim == 2 and "embeddings" not in name and "conv" not in name
        assert array.dtype == (np.uint16 if is_matrix else np.float32), name
    assert "lm_head.weight" in ready.params


@pytest.mark.parametrize("weights", ["float16", "bfloat16"])
def test_weights_that_are_not_served_are_refused_in_one_sentence(weights):
    words = "weights must be None but for a model in float32 on a CPU, got 'bfloat16' for one in float64 on a CPU"
    with pytest.raises(ValueError, match=words if weights == "bfloat16" else "weights must be one of 'bfloat16'"):
        Generation(RAMNet(SMALL, dtype=np.float64), prompts(), weights=weights)


def test_as_many_as_can_step_together_do():
    steppers = {
        name: len(Generation(make(name), prompts()).standing().steppers) for name in ("ram", "ram-conv", "softmax")
    }
    assert steppers == {"ram": 1, "ram-conv": 1, "softmax": 4}


def test_a_long_prompt_goes_through_in_pieces(monkeypatch):
    model, [prompt] = make("ram"), prompts((50,))
    expected = model.generate(prompt[None], 6)
    monkeypatch.setattr(stepping, "PIECE", 7)
    np.testing.assert_array_equal(model.generate(prompt[None], 6), expected)


def test_the_penalty_knows_prompt_and_tokens():
    model, start = make("ram"), np.arange(6)[None]
    out = model.generate(start, 20, repetition_penalty=3.0)
    logits = model.forward(out)[0][0]
    for t in range(6, 26):
        penalised = np.where(logits[t - 1] > 0, logits[t - 1] / 3, logits[t - 1] * 3)
        seen = np.isin(np.arange(29), out[0, :t])
        assert np.where(seen, penalised, logits[t - 1]).argmax() == out[0, t]
    assert (out != model.generate(start, 20)).any()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "ids must hold at least one sequence, got none"),
        ([np.array([1, 2]), np.array([], int)], r"ids\[1\] must have shape \(T,\) with at least one token, got \(0,\)"),
        ([np.array([1, 29])], r"ids\[0\] must lie between 0 and 28, got 29 at index \(1,\)"),
        ([np.array([0.5])], r"ids\[0\] must be integers, got float64"),
        ([[1, 2]], r"ids\[0\] must be an array of integers, got list"),
        (np.array([1, 2]), r"ids must have shape \(B, T\)"),
    ],
)
def test_a_wrong_prompt_is_named(ids, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make("ram").generate(ids, 2)


def test_an_unknown_setting_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'top'"):
        make("ram").generate(np.array([[1]]), 2, top=3)


@pytest.mark.parametrize("sampling", ["greedy", None, {"temperature": 1}])
def test_what_is_no_sampling_is_named(sampling):
    generation = Generation(make("ram"), prompts())
    with pytest.raises(TypeError, match="sampling must be a Sampling, such as"):
        generation.next(sampling)
    assert generation.next(DRAWN).shape == (len(prompts()),)  # nothing has changed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no more"), OSError("the disk is full")])
def test_a_generation_that_was_ended_in_the_middle_of_a_token_says_so(error, monkeypatch):
    generation = Generation(make("ram"), prompts())
    generation.next(DRAWN)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(stepping.Stepper, "step", fail)
    with pytest.raises(type(error)):
        generation.next(DRAWN)
    monkeypatch.undo()
    words = f"generation must be whole, got one that was ended by {type(error).__name__}"
    calls = [lambda: generation.next(DRAWN), lambda: generation.next_on_host(DRAWN), generation.standing]
    for call in (*calls, lambda: generation.read(prompts())):
        with pytest.raises(ValueError, match=words):
            call()
