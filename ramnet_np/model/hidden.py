"""From tokens to what the head takes: embeddings, blocks, norm.

x = embeddings[ids]
x = block_i(x)              i = 0 .. layers - 1
x = norm(x[select])         of all tokens, or of those that are asked for
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import readable
from ramnet_np.layers.embedding import EmbeddingContext, embedding_backward, embedding_forward
from ramnet_np.layers.linear import LinearContext
from ramnet_np.model.block import BlockContext, RecomputedBlock, block_backward, block_forward
from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.layout import EMBEDDINGS, HEAD, NORM, layer_prefix
from ramnet_np.model.mixers import CallOptions
from ramnet_np.model.norm import NormContext, norm_backward, norm_forward
from ramnet_np.model.parameters import Params, add_prefix, subset
from ramnet_np.model.states import lose_sparse


@readable
class NetworkContext(NamedTuple):
    """What ``RAMNet.backward`` needs."""

    embedding: EmbeddingContext
    blocks: tuple[BlockContext | RecomputedBlock, ...]
    select: Array | None  # (B*T,) bool or (N,) integers
    norm: NormContext
    head: LinearContext | None  # None of a forward without it
    hidden_shape: tuple[int, ...]  # (B, T, D)


def hidden_forward(
    params: Params,
    config: RAMNetConfig,
    ids: Array,
    select: Array | None,
    state: Sequence[Any] | None,
    options: CallOptions,
) -> tuple[Array, list[Any], NetworkContext]:
    """What the head takes, the state of every layer (None where not asked for), and ctx without the head's.

    ``ids``: (B, T), checked, as are ``select``, None or the tokens that are asked for, ``state`` and ``options``.
    Returns x (B, T, D), or (N, D) of N tokens. Where a layer fails, sparse states that layers before it changed are
    lost.

    >>> import numpy as np
    >>> from ramnet_np.model import RAMNet
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> x, _, _ = hidden_forward(model.params, model.config, np.array([[1, 2]]), None, None, CallOptions())
    >>> x.shape
    (1, 2, 8)
    """
    # 1. embeddings
    x, embedding_ctx = embedding_forward(ids, params[EMBEDDINGS])
    hidden_shape = x.shape
    # 2. blocks
    states, blocks = [], []
    try:
        for i in range(config.layers):
            own, before = subset(params, layer_prefix(i)), None if state is None else state[i]
            x, new, block_ctx = block_forward(x, own, of_layer(config, i), i, state=before, options=options)
            states.append(new)
            blocks.append(block_ctx)
    except BaseException as error:
        if any(new is not None for new in states):  # the layers before have taken the tokens
            lose_sparse(state, error)
        raise
    # 3. the tokens that are asked for
    if select is not None:
        x = x.reshape(-1, x.shape[-1])[select]
    # 4. norm
    x, norm_ctx = norm_forward(x, subset(params, NORM), config)
    return x, states, NetworkContext(embedding_ctx, tuple(blocks), select, norm_ctx, None, hidden_shape)


def hidden_backward(dx: Array, dhead: Array, ctx: NetworkContext, config: RAMNetConfig) -> Iterator[Params]:
    """The gradients of the parameters, some after the others as they are made: last block first.

    ``dx``: of what :func:`hidden_forward` returned; ``dhead``: (V, D), of the head's weight.

    >>> import numpy as np
    >>> from ramnet_np.model import RAMNet
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> x, _, ctx = hidden_forward(model.params, model.config, np.array([[1, 2]]), None, None, CallOptions())
    >>> list(next(hidden_backward(x, np.zeros((16, 8), np.float32), ctx, model.config)))
    ['model.norm.weight']
    """
    xp = namespace_of(dx)
    dx, dnorm = norm_backward(dx, ctx.norm)
    yield add_prefix(NORM, dnorm) | ({} if config.tie_embeddings else {HEAD: dhead})
    # 3. x = x[select]: a token is selected once, so plain assignment is safe
    if ctx.select is not None:
        selected, dx = dx, xp.zeros(ctx.hidden_shape, dtype=dx.dtype)
        dx.reshape(-1, dx.shape[-1])[ctx.select] = selected
    # 2. blocks, last to first
    for i, block_ctx in reversed(list(enumerate(ctx.blocks))):
        dx, dblock = block_backward(dx, block_ctx)
        yield add_prefix(layer_prefix(i), dblock)
    # 1. x = embeddings[ids]; a tied table was used twice, so its gradients add up
    dembeddings = embedding_backward(dx, ctx.embedding)
    if config.tie_embeddings:
        dembeddings += dhead
    yield {EMBEDDINGS: dembeddings}
