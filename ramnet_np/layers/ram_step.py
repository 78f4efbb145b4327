"""One token through a RAM layer that has no norm and no gate behind its memory, in one piece.

For one token the memory's work is small. On a CPU what takes the time, beside reading the matrices, is to come from
Python to a kernel and back; so a backend may compute all of it in one call. It keeps nothing for a backward.
"""

from __future__ import annotations

from ramnet_np.contract import Array, DecodeOptions, MemoryOptions, RAMState
from ramnet_np.core.accelerated import accelerated_everywhere
from ramnet_np.core.attention import ram_attention_step
from ramnet_np.layers.few_rows import normed_products, product_added


@accelerated_everywhere
def ram_step(
    x: Array,
    norm: Array,
    norm_eps: float,
    weights: tuple[Array, ...],
    biases: tuple[Array | None, ...],
    out: Array,
    out_bias: Array | None,
    gamma: float,
    positions: Array | None,
    state: RAMState,
    digits: tuple[int, int, int],
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Array:
    """What a token writes and recalls, added to the stream: UPDATES ``state`` IN PLACE.

        w, r, v = n W_i^T + b_i,    n = rmsnorm(x)
        y       = x + ram_attention_step(w, r, v) O^T + o

    ``x``: (N, D), one token of each sequence; ``norm``: (D,), the norm's weight; ``weights``: of the address logits of
    writes and of reads, (H U P, D) each, and of the values, (H C, D); ``biases``: of each or None; ``out`` O: (D, H C);
    ``out_bias`` o: (D,) or None; ``gamma``: a number that the update rule takes, as of a model's configuration, and not
    checked again; ``positions``, ``state``: as of :func:`~ramnet_np.ram_attention_step`; ``digits``: H, U, P;
    ``decode``, ``options``: as :func:`~ramnet_np.core.option_checks.check_options` returns them. Returns y (N, D).
    ValueError or TypeError as of the linear maps and of the operation; then the state has not changed.

    >>> import numpy as np
    >>> from ramnet_np.core.option_checks import check_options
    >>> settings = check_options(
    ...     4, 1, update="pdma", top_k=1, renorm=False, cape_heads=0, eps=1e-12, proxy_eps=0.0, mass_aware=False
    ... )
    >>> state = RAMState.initial(batch=1, heads=1, slots=4, channels=2, dtype=np.float64)
    >>> x, maps = np.array([[3.0, 4.0]]), (np.zeros((4, 2)), np.zeros((4, 2)), np.eye(2))
    >>> y = ram_step(
    ...     x, np.ones(2), 0.0, maps, (None,) * 3, np.eye(2), None, 1.0, None, state, (1, 2, 2), *settings
    ... )
    >>> y.round(3).tolist()
    [[3.121, 4.162]]
    """
    tokens, H = len(x), digits[0]
    w, r, v = normed_products(x, norm, norm_eps, weights, biases)
    logits = (tokens, 1, *digits)
    y, _ = ram_attention_step(
        w.reshape(logits), r.reshape(logits), v.reshape(tokens, 1, H, -1), gamma, state=state, update=options.update,
        top_k=decode.top_k, renorm=decode.renorm, cape_heads=decode.cape_heads, positions=positions,
        mass_aware=options.mass_aware, eps=options.eps,
    )  # fmt: skip
    return product_added(y.astype(x.dtype, copy=False).reshape(tokens, -1), out, out_bias, x)
