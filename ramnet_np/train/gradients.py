"""Loss and gradients of a batch, at once or in parts whose gradients are added up.

    loss  = sum_i (n_i / n) loss_i        n_i of the n labels are in part i, loss_i is their mean
    grads = sum_i (n_i / n) grads_i       the same, as the gradient is linear in the loss

The parts are some of the rows each, one after the other, so only one of them has its activations in memory. The parts
of several ranks are parts of one batch in the same way: n counts the labels of all ranks, and the gradients of the last
part go to the sum over ranks as soon as they are made. Nothing is read back from a GPU, so that a step can be captured
as a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.layers.head_loss import HeadLoss, head_loss_and_gradients
from ramnet_np.layers.loss import IGNORE_INDEX
from ramnet_np.model import RAMNet
from ramnet_np.model.mixers.interface import Recompute
from ramnet_np.model.parameters import Params
from ramnet_np.train.carried import CarriedState


class Part(NamedTuple):
    """Some rows of a batch."""

    ids: Array  # (R, T)
    select: Array  # (R, T) bool or (N,) b*T + t: the tokens whose logits are wanted
    labels: Array  # (N,), of these tokens; IGNORE_INDEX counts for nothing
    cu_seqlens: Array | None = None  # of rows that are packed into one: R = 1


class Gradients(NamedTuple):
    """What a step is made of; the first three are scalars, on the GPU arrays without axes."""

    loss: Array  # mean over the labels that count
    correct: Array  # how many of them have the largest logit
    count: Array  # how many they are
    grads: Params


class OverRanks(Protocol):
    """The sums over ranks of a step, as :class:`~ramnet_np.train.gradient_sum.GradientSum` makes them."""

    def labels(self, own: Array) -> Array:
        """How many labels the whole batch has."""

    def add(self, grads: Params) -> None:
        """Gradients of this rank that are complete, in the order in which a backward makes them."""

    def total(self, loss: Array, correct: Array) -> Gradients:
        """Those of the whole batch."""


@on_gpu_of_arrays
def loss_and_gradients(
    model: RAMNet,
    parts: Sequence[Part],
    recompute: Recompute = "none",
    carried: CarriedState | None = None,
    start: Array | None = None,
    over_ranks: OverRanks | None = None,
) -> Gradients:
    """Mean cross-entropy over all labels of all parts, and the gradient of every parameter.

    ``parts``: of equally many rows, in the order of the batch. ``carried``: the state that the rows go on from, which
    becomes the state after them; ``start``: (B,), the position of each row's first token in its document, where 0
    empties the row's memory first. Gradients do not reach behind the first token of a window.
    ``over_ranks``: the parts are those of this rank, and the result is that of all ranks.

    >>> import numpy as np
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> ids = np.arange(8).reshape(2, 4)
    >>> part = Part(ids, np.ones((2, 4), bool), ids.ravel())
    >>> whole = loss_and_gradients(model, [part])
    >>> halves = [Part(ids[i : i + 1], np.ones((1, 4), bool), ids[i]) for i in range(2)]
    >>> bool(np.isclose(whole.loss, loss_and_gradients(model, halves).loss))
    True
    """
    if carried is not None:
        carried.begin(start)
    total = None
    if over_ranks or len(parts) > 1:
        total = sum((part.labels != IGNORE_INDEX).sum() for part in parts)
    if over_ranks:
        total = over_ranks.labels(total)
    compute = partial(_part, model, recompute, carried, start, total)
    grads: Params = {}
    loss, correct, count = compute(parts[0], 0, partial(_add, grads, over_ranks if len(parts) == 1 else None))[:3]
    for i, part in enumerate(parts[1:], 1):
        take = partial(_add, grads, over_ranks if i == len(parts) - 1 else None)
        one = compute(part, i * part.ids.shape[0], take)
        loss, correct = loss + one.loss, correct + one.correct
    if over_ranks:
        return over_ranks.total(loss, correct)
    return Gradients(loss, correct, count, {name: grads[name] for name in model.params})


def _add(sums: Params, over_ranks: OverRanks | None, grads: Params) -> None:
    """Add a part's gradients of some parameters to those before; ``over_ranks``, of the last part, gets the sums."""
    for name, grad in grads.items():
        if name in sums:
            sums[name] += grad
        else:
            sums[name] = grad
    if over_ranks:
        over_ranks.add({name: sums.pop(name) for name in grads})


def packed_part(part: Part, cu_seqlens: Array) -> Part:
    """The rows of a part as one row of packed sequences.

    >>> import numpy as np
    >>> part = Part(np.zeros((2, 3), int), np.ones((2, 3), bool), np.zeros(6, int))
    >>> packed_part(part, np.array([0, 2, 6])).ids.shape
    (1, 6)
    """
    select = part.select.reshape(1, -1) if part.select.ndim == 2 else part.select
    return Part(part.ids.reshape(1, -1), select, part.labels, cu_seqlens)


def _part(
    model: RAMNet,
    recompute: Recompute,
    carried: CarriedState | None,
    start: Array | None,
    total: Array | None,
    part: Part,
    first: int,
    take: Callable[[Params], None],
) -> HeadLoss:
    """The share of a part, whose first row is row ``first`` of the batch, in the loss; ``take`` gets its gradients."""
    state, positions = None, None
    rows, T = slice(first, first + part.ids.shape[0]), part.ids.shape[1]
    if carried is not None and start is not None:
        state = carried.rows(rows.start, rows.stop)
        positions = start[rows, None] + namespace_of(start).arange(T, dtype=start.dtype)
    x, state, ctx = model.forward_hidden(
        part.ids, state, select=part.select, positions=positions, cu_seqlens=part.cu_seqlens, recompute=recompute
    )
    found = head_loss_and_gradients(x, model.head, part.labels, total)
    for grads in model.backward_in_order(found.x, found.weight, ctx):
        take(grads)
    if carried is not None:
        carried.put(rows.start, rows.stop, state)  # behind the backward, which may compute the forward again
    return found
