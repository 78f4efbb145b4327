"""Packed rows and left-padded batches: every mixer computes what each sequence alone would give, and its gradients."""

import numpy as np
import pytest

from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.live_tokens import live_tokens
from tests.mixer_cases import MIXERS
from tests.tolerances import assert_close

SMALL = {"vocab": 11, "width": 8, "layers": 2, "heads": 2, "order": 2, "radix": 3, "top_k": 4, "cape": (2, 1)}
CASES = MIXERS | {
    "ram": {"mixer": "ram"},
    "ram-mass": {"mixer": "ram", "init_mass": 0.5, "short_conv": 2, "ffn": "none"},
}
NAMES = pytest.mark.parametrize("name", CASES)
LENGTHS = (4, 0, 1, 6)
OFFSETS = np.cumsum((0, *LENGTHS))
RNG = np.random.default_rng(5)
ROWS = [RNG.integers(0, 11, (1, length)) for length in LENGTHS]
FILLED = [row for row in ROWS if row.size]


def make(name):
    """A small model whose parameters are far from their initial values."""
    model = RAMNet(RAMNetConfig(**SMALL, **CASES[name]), dtype=np.float64)
    rng = np.random.default_rng(0)
    for p in model.params.values():
        p += 0.4 * rng.normal(size=p.shape)
    return model


def padded(rows, before=2):
    """A left-padded batch: ids, mask, and positions that count from 0 at the first token of each."""
    T = before + max(row.size for row in rows)
    ids, mask = RNG.integers(0, 11, (len(rows), T)), np.zeros((len(rows), T), bool)
    for b, row in enumerate(rows):
        ids[b, T - row.size :], mask[b, T - row.size :] = row[0], True
    return ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0)


def alone(model, rows, dlogits):
    """Logits and the sum of the gradients of rows that run one by one."""
    logits, total = [], dict.fromkeys(model.params, 0)
    for row, d in zip(rows, dlogits, strict=True):
        own, ctx = model.forward(row)
        logits.append(own[0])
        for key, grad in model.backward(d[None], ctx).items():
            total[key] = total[key] + grad
    return logits, total


@NAMES
def test_a_packed_row_gives_what_its_sequences_give(name):
    model = make(name)
    dlogits = [RNG.normal(size=(row.size, 11)) for row in FILLED]
    expected, gradients = alone(model, FILLED, dlogits)
    logits, ctx = model.forward(np.concatenate(ROWS, axis=1), cu_seqlens=OFFSETS)
    assert_close(logits[0], np.concatenate(expected), name="logits")
    for key, grad in model.backward(np.concatenate(dlogits)[None], ctx).items():
        assert_close(grad, gradients[key], gradient=True, name=key)


@NAMES
def test_a_left_padded_batch_gives_what_its_rows_give(name):
    model = make(name)
    dlogits = [RNG.normal(size=(row.size, 11)) for row in FILLED]
    expected, gradients = alone(model, FILLED, dlogits)
    ids, mask, positions = padded(FILLED)
    logits, ctx = model.forward(ids, mask=mask, positions=positions, select=mask)
    assert_close(logits, np.concatenate(expected), name="logits")
    for key, grad in model.backward(np.concatenate(dlogits), ctx).items():
        assert_close(grad, gradients[key], gradient=True, name=key)


@NAMES
def test_padding_is_not_looked_at(name):
    model = make(name)
    ids, mask, positions = padded(FILLED)
    other = np.where(mask, ids, (ids + 1) % 11)
    one, two = (model.forward(x, mask=mask, positions=positions, select=mask)[0] for x in (ids, other))
    np.testing.assert_array_equal(one, two)


@NAMES
@pytest.mark.parametrize("recompute", ["ffn", "block"])
def test_recomputing_gives_the_same_bits(name, recompute):
    model, ids = make(name), np.concatenate(ROWS, axis=1)
    dlogits = RNG.normal(size=(*ids.shape, 11))
    grads = []
    for choice in ("none", recompute):
        _, ctx = model.forward(ids, cu_seqlens=OFFSETS, recompute=choice)
        grads.append(model.backward(dlogits, ctx))
    for key in grads[0]:
        np.testing.assert_array_equal(grads[0][key], grads[1][key])


@NAMES
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_a_left_padded_batch_is_continued_as_its_prompts_are(name, sampling):
    model = make(name)
    ids, mask, _ = padded(FILLED)
    written = model.generate(ids, 5, mask=mask, **sampling)
    np.testing.assert_array_equal(written[:, : ids.shape[1]], ids)
    for row, expected in zip(written, model.generate([row[0] for row in FILLED], 5, **sampling), strict=True):
        np.testing.assert_array_equal(row[-5:], expected[-5:])


def test_a_packed_sequence_without_a_live_token_is_counted():
    live = live_tokens((1, 6), np.array([[True, True, False, True, False, False]]), np.array([0, 3, 4, 6]))
    assert live.counts.tolist() == [2, 1, 0]
    assert live.rows(np.zeros(1)).shape == (3, 2)


def test_masks_and_packed_rows_go_together():
    """A masked token of a packed sequence is as if it were not there."""
    ids, mask = np.concatenate(ROWS, axis=1), np.ones((1, 11), bool)
    mask[0, 5:7] = False
    for name in ("delta-gate", "ram-conv"):
        model = make(name)
        positions = np.array([0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5])
        logits, _ = model.forward(ids, cu_seqlens=OFFSETS, mask=mask, positions=positions)
        short, _ = model.forward(ids[:, 7:], positions=np.arange(2, 6))
        assert_close(logits[:, 7:], short, name=name)


def test_the_states_of_packed_sequences_go_on():
    model = make("ram")
    ids, first = np.concatenate(ROWS, axis=1), np.array([0, 2, 2, 3, 7])
    one = np.concatenate([row[:, :size] for row, size in zip(ROWS, np.diff(first), strict=True)], axis=1)
    two = np.concatenate([row[:, size:] for row, size in zip(ROWS, np.diff(first), strict=True)], axis=1)
    _, state = model.forward_with_state(one, cu_seqlens=first)
    assert state[0].slots.shape[0] == len(LENGTHS)
    second = OFFSETS - first
    positions = np.concatenate([np.arange(a, b) for a, b in zip(np.diff(first), LENGTHS, strict=True)])
    logits, _ = model.forward_with_state(two, state, cu_seqlens=second, positions=positions)
    whole, _ = model.forward(ids, cu_seqlens=OFFSETS)
    later = np.concatenate(
        [np.arange(a, b) >= a + d for a, b, d in zip(OFFSETS, OFFSETS[1:], np.diff(first), strict=False)]
    )
    assert_close(logits[0], whole[0, later])


def test_traces_of_packed_and_padded_rows():
    model = make("ram-conv")
    addresses = model.trace(np.concatenate(ROWS, axis=1), cu_seqlens=OFFSETS)
    expected = model.trace(ROWS[3])
    for layer, alone_ in zip(addresses, expected, strict=True):
        np.testing.assert_array_equal(layer["write"].index[:, OFFSETS[3] :], alone_["write"].index)
    ids, mask, positions = padded(FILLED)
    addresses = model.trace(ids, mask=mask, positions=positions)
    np.testing.assert_array_equal(addresses[1]["read"].index[2:, -6:], expected[1]["read"].index)


REFUSED = {
    "a state of another mixer": (
        "delta", "forward_with_state", {"mask": np.ones((1, 11), bool)},
        "mask must be None where a state is given or returned, unless mixer is 'ram' and short_conv 0, got one with",
    ),
    "a state of a convolution": ("ram-conv", "forward_with_state", {"cu_seqlens": OFFSETS}, "cu_seqlens must be None"),
    "a mask of another shape": ("delta", "forward", {"mask": np.ones((1, 3), bool)}, "mask must be bool of shape"),
    "offsets that end early": ("linear", "forward", {"cu_seqlens": [0, 4]}, "cu_seqlens must end with the number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    name, method, given, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        getattr(make(name), method)(np.concatenate(ROWS, axis=1), **given)


def test_a_mask_must_leave_a_prompt():
    model, ids, mask = make("ram"), np.zeros((2, 3), int), np.array([[False, True, True], [False] * 3])
    with pytest.raises(ValueError, match="mask must leave a token of every row, got none in row 1"):
        model.generate(ids, 1, mask=mask)
    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\) with a mask, got a list of prompts"):
        model.generate([ids[0]], 1, mask=mask)


@pytest.mark.gpu
@NAMES
def test_a_gpu_computes_the_same(name):
    import cupy as cp

    model = make(name)
    on_gpu = model.to("gpu")
    packed_ids = np.concatenate(ROWS, axis=1)
    ids, mask, positions = padded(FILLED)
    for x, given in ((packed_ids, {"cu_seqlens": OFFSETS}), (ids, {"mask": mask, "positions": positions})):
        select = mask if "mask" in given else None
        expected, ctx = model.forward(x, select=select, **given)
        dlogits = RNG.normal(size=expected.shape)
        logits, gpu_ctx = on_gpu.forward(
            cp.asarray(x),
            select=None if select is None else cp.asarray(select),
            **{key: value if key == "cu_seqlens" else cp.asarray(value) for key, value in given.items()},
        )
        assert_close(cp.asnumpy(logits), expected, name="logits")
        grads = on_gpu.backward(cp.asarray(dlogits), gpu_ctx)
        for key, grad in model.backward(dlogits, ctx).items():
            assert_close(cp.asnumpy(grads[key]), grad, gradient=True, name=key)
    written = on_gpu.generate(cp.asarray(ids), 3, mask=cp.asarray(mask))
    np.testing.assert_array_equal(cp.asnumpy(written), model.generate(ids, 3, mask=mask))
