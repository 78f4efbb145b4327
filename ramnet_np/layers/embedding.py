"""The embedding: one row of a table per token."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_floats, require_ids, require_like


@readable
class EmbeddingContext(NamedTuple):
    """What ``embedding_backward`` needs."""

    ids: Array  # (...,) which row every token took
    rows: int  # of the table
    y: ArraySpec


@on_gpu_of_arrays
def embedding_forward(ids: Array, table: Array) -> tuple[Array, EmbeddingContext]:
    """Look up a row for every id.

        y[n] = table[ids[n]]

    ``ids``: (...,) integers in [0, V); ``table``: (V, D). Returns y (..., D) and ctx.

    >>> import numpy as np
    >>> y, ctx = embedding_forward(np.array([2, 0]), np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    >>> y.tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """
    require_floats("table", table)
    require_ids("ids", ids, table.shape[0])
    if ids.dtype == np.uint64:  # which NumPy does not take for indices
        ids = ids.astype(np.int64)
    y = namespace_of(table).take(table, ids, axis=0)
    return y, EmbeddingContext(ids, table.shape[0], ArraySpec.of(y))


@accelerated
def embedding_backward(dy: Array, ctx: EmbeddingContext) -> Array:
    """Gradient of the table, (V, D): each row is the sum of ``dy`` over the tokens that took it.

        dtable[i] = sum over n with ids[n] = i of dy[n]

    The tokens are sorted by id, which brings those of one row together without changing their order, and each run is
    summed by one worker: the same bits every time, which adding with atomics would not give.
    Cost: a sort of N integers, one pass over dy (N, D), and the (V, D) result.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> y, ctx = embedding_forward(np.array([2, 0, 2]), np.zeros((3, 1)))
    >>> embedding_backward(np.array([[1.0], [2.0], [3.0]]), ctx).tolist()
    [[2.0], [0.0], [4.0]]
    """
    require_context(ctx, EmbeddingContext, "embedding_forward")
    require_like("dy", dy, ctx.y)
    xp = namespace_of(dy)
    ids, rows = ctx.ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
    order = xp.argsort(ids, kind="stable")
    if xp is np and importlib.util.find_spec("scipy"):  # where it is missing, what follows is slower
        from scipy.sparse import csr_array

        # the product of the (V, N) matrix that has a one where token n took row i, stored by its ones alone
        ends = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=ctx.rows))])
        took = csr_array((np.ones(ids.size, dy.dtype), order, ends), shape=(ctx.rows, ids.size))
        return took @ rows
    dtable = xp.zeros((ctx.rows, rows.shape[1]), dtype=dy.dtype)
    if ids.size:
        ordered = ids[order]
        starts = xp.flatnonzero(xp.concatenate([xp.ones(1, dtype=bool), ordered[1:] != ordered[:-1]]))
        dtable[ordered[starts]] = xp.add.reduceat(rows[order], starts, axis=0)  # starts of runs: no id repeats
    return dtable
