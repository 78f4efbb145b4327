"""Packed sequences, ``cu_seqlens``: what each would give alone, on every backend; and what is refused.

On GPUs the same cases are in test_cuda_agreement.py; in Numba's simulator, in test_numba_cuda_agreement.py.
"""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cpu.spans import spans
from ramnet_np.kernels.cuda.memory.packed import _packed_row, list_spans, packed_row

from ramnet_np import ram_attention_backward, ram_attention_forward
from ramnet_np.core.dense import dense_ram_attention
from ramnet_np.core.packed import packed_positions
from tests.operation_cases import (
    PACKED,
    Case,
    assert_agree,
    assert_same_bits,
    draw,
    of_filled,
    packed,
    run,
    run_one_by_one,
)
from tests.tolerances import assert_close

BY_NAME = {"ids": lambda case: case.name}
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "numba"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


@pytest.mark.parametrize("case", [case for case in PACKED if case.slots <= 1024], **BY_NAME)
def test_the_core_equals_the_dense_oracle(case):
    inputs = draw(case)
    options = {k: v for k, v in inputs.options.items() if k not in ("return_state", "proxy_eps")}
    expected, states = dense_ram_attention(*inputs.arrays, inputs.gamma, **options)
    y, final, _ = ram_attention_forward(*inputs.arrays, inputs.gamma, backend="numpy", **options)
    assert_close(y, expected, name="y")
    assert_close(final.slots, states.slots, name="slots")
    assert_close(final.mass, states.mass, name="mass")


@DTYPES
@pytest.mark.parametrize("case", PACKED, **BY_NAME)
def test_numba_equals_numpy(case, dtype):
    inputs = draw(case, dtype)
    assert_agree(run(inputs, "numba"), run(inputs, "numpy"))


@BACKENDS
@DTYPES
@pytest.mark.parametrize("case", PACKED, **BY_NAME)
def test_a_packed_sequence_gives_the_bits_that_it_gives_alone(case, dtype, backend):
    inputs = draw(case, dtype)
    assert_same_bits(of_filled(run(inputs, backend), case.lengths), run_one_by_one(inputs, backend))


@BACKENDS
def test_an_empty_sequence_leaves_its_state(backend):
    inputs = draw(packed("empty", 3, 0, 2, state=True))
    results = run(inputs, backend)
    assert_same_bits(
        {"slots": results["slots"][1], "dslots": results["dslots"][1], "dmass": results["dmass"][1]},
        {
            "slots": inputs.options["state"].slots[1],
            "dslots": inputs.dstate.slots[1],
            "dmass": inputs.dstate.mass[1],
        },
    )


def test_positions_start_anew_at_every_offset():
    inputs = draw(packed("cape", 5, 9, options={"cape_heads": 3}))
    (y, *_), (given, *_) = (
        ram_attention_forward(*inputs.arrays, **inputs.options, positions=positions)
        for positions in (None, np.array([*range(5), *range(9)]))
    )
    assert_same_bits({"y": y}, {"y": given})
    assert packed_positions(np.array([0, 5, 5, 14]), like=np.zeros(1)).tolist() == [*range(5), *range(9)]


@pytest.mark.parametrize("other", [0, 1, 5])
def test_batch_invariant_bits_do_not_depend_on_the_batch(other):
    """H = 1 and C = 64: without the option, a batch of 8 has other slices of channels than one of 1."""
    case = Case("batch", B=8, T=20, H=1, C=64, gamma="token")
    inputs = draw(case, np.float32)
    options = {**inputs.options, "batch_invariant": True}

    def results(rows):
        arrays = [a[rows] for a in inputs.arrays]
        y, state, ctx = ram_attention_forward(*arrays, inputs.gamma[rows], backend="numba", **options)
        grads = ram_attention_backward(inputs.dy[rows], ctx)
        return {"y": y[:1], "slots": state.slots[:1], "dw": grads.write_logits[:1], "dr": grads.read_logits[:1]}

    assert_same_bits(results(slice(other, other + 1)), results([other, *range(other), *range(other + 1, 8)]))


REFUSED = {
    "floats": ([0.0, 6.0], TypeError, "cu_seqlens must be integers, got float64"),
    "two axes": ([[0, 6]], ValueError, r"cu_seqlens must have shape \(N \+ 1,\) for N sequences, got shape \(1, 2\)"),
    "nothing": (np.zeros(0, int), ValueError, r"cu_seqlens must have shape .* got shape \(0,\)"),
    "ragged": ([[0], [0, 6]], ValueError, "cu_seqlens must be an array of offsets, got rows of unequal length"),
    "not from 0": ([1, 6], ValueError, "cu_seqlens must begin with 0, got 1"),
    "not to T": ([0, 3, 5], ValueError, "cu_seqlens must end with the number of tokens T = 6, got 5"),
    "falling": ([0, 4, 2, 6], ValueError, "cu_seqlens must not fall, got 2 after 4 at index 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_offsets_are_refused(case):
    offsets, error, words = REFUSED[case]
    arrays = draw(Case("bad", B=1, T=6)).arrays
    with pytest.raises(error, match=words):
        ram_attention_forward(*arrays, cu_seqlens=offsets)


def test_a_batch_and_states_of_another_number_are_refused():
    inputs = draw(Case("batch", B=2, T=6, state=True))
    with pytest.raises(ValueError, match=r"cu_seqlens needs all sequences in one row of tokens \(B = 1\), got B = 2"):
        ram_attention_forward(*inputs.arrays, cu_seqlens=[0, 6])
    with pytest.raises(ValueError, match=r"state.slots must have shape \(N, H, M, C\) = \(3, 3, 64, 16\), got \(2,"):
        ram_attention_forward(*(a[:1] for a in inputs.arrays), cu_seqlens=[0, 2, 4, 6], state=inputs.options["state"])


@pytest.mark.parametrize(
    ("given_state", "writes", "most"), [(False, 4, 2**29 - 1), (True, 4, 2**29 - 17), (False, 1, 2**31 - 2)]
)
def test_the_longest_sequence_has_as_many_versions_as_an_int32_can_number(given_state, writes, most):
    """One before the first token, or one of each of 64 slots; and one for every write."""

    def room(*lengths):
        where = np.zeros(len(lengths), np.int64)
        return spans(where, np.array(lengths), slots=64, writes=writes, reads=4, given_state=given_state)[1]

    before = 64 if given_state else 1
    assert room(most, 3).versions == before + writes * most + (24 if given_state else 1) + 3 * writes
    with pytest.raises(
        ValueError, match=rf"^T must be below {most + 1} on .* for {writes} writes a token, got {most + 1}$"
    ):
        room(3, most + 1)
    assert room().versions == 0


@pytest.mark.parametrize("lengths", [(5,), (3, 0, 8, 1), (0, 0, 2), (1,) * 40, (32, 33, 64, 65)])
def test_the_lists_of_the_gpu_kernels_say_where_each_sequence_is(lengths):
    offsets = np.cumsum((0, *lengths))
    spans, chunks, of_token = list_spans(offsets, 32)
    assert sorted(spans["sequence"]) == [*range(len(lengths))]
    assert all(a >= b for a, b in itertools.pairwise(spans["tokens"]))
    for span in spans:
        assert (span["begin"], span["tokens"]) == (offsets[span["sequence"]], lengths[span["sequence"]])
    expected = [(s, c) for s, span in enumerate(spans) for c in range(max(1, -(-int(span["tokens"]) // 32)))]
    assert chunks.tolist() == expected
    assert all(chunks["span"][span["first_chunk"]] == s for s, span in enumerate(spans))
    for token, span in enumerate(of_token):
        assert spans["begin"][span] <= token < spans["begin"][span] + spans["tokens"][span]


def test_the_lists_are_put_on_the_gpu_once_and_told_apart_there(monkeypatch):
    copies, offsets = [], np.array([0, 3, 3, 70, 72])
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: 0), get_current_stream=lambda: SimpleNamespace(ptr=0x1000)
    )
    cupy = SimpleNamespace(cuda=cuda, asarray=lambda array: copies.append(array) or array.copy())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    _packed_row.cache_clear()
    row, lists = packed_row(offsets, 32), list_spans(offsets, 32)
    assert packed_row(offsets.copy(), 32) is row
    assert len(copies) == 1
    for ours, wanted in zip(row, lists, strict=False):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, wanted.view(np.int32))
    assert (row.sequences, row.chunks, row.longest) == (4, 6, 67)
    assert packed_row(offsets, 64).chunks == 5
    assert packed_row(np.array([0]), 64).longest == 0
    _packed_row.cache_clear()
