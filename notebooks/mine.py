"""Your RAM-Net. It grows by one function or two in every notebook; each is checked as soon as it is there.

Replace ``return ...`` and run ``check_mine("name")`` in the notebook. Add helpers of your own wherever you like. The
notebooks show hints in steps, and one solution that is folded away (``solutions/mine.py``).

Shapes: B sequences, T tokens, H heads, U digits of radix P, M = P**U slots, K of them selected, C channels. An axis
written ``...`` stands for any axes in front, also none: ``x[..., 0, :]`` lets them through.
"""

import numpy as np  # noqa: F401

# ---------------------------------------------------------------- notebook 2


def product_softmax(logits, slot, renorm=False):
    """How likely some slots are.

    ``logits``: (..., U, P), already divided by the temperature. ``slot``: (..., K) whole numbers, the slots that are
    asked for. Digit 0 is the least significant: slot = digit_0 + digit_1 * P + digit_2 * P**2 + ...

    Returns (..., K): the product of the digits' probabilities; with ``renorm`` divided by the sum of these K.
    Never build all M = P**U of them: U = 30 digits must work, and logits of 1000 must not overflow.
    """
    return ...


# ---------------------------------------------------------------- notebook 3


def beam(logits, K):
    """The K likeliest slots, best first.

    ``logits``: (..., U, P). Returns (..., K) whole numbers; of two slots that are equally likely, the smaller number
    comes first. Rank by sums of ``logits - max`` (of each digit), from digit 0 up, so that equal stays equal.
    Keep K partial addresses after every digit; never build all M slots. K is at most M.
    """
    return ...


# ---------------------------------------------------------------- notebook 4


def cape(slot, position, M):
    """Where content slot ``slot`` is found at token ``position``: an array of the same shape."""
    return ...


# ---------------------------------------------------------------- notebook 5


def retention(w, gamma, update="pdma"):
    """What a write of weight w leaves of the mass: "pdma" (1 - w)**gamma, "gsu" (1 - w) / ((1 - w) + e**gamma w)."""
    return ...


def mass_aware(r, z, eps=1e-12):
    """The read weights (..., K) after each was multiplied by the mass z of its slot; their sum stays as it was.

    Source: the box "Mass-aware read".
    """
    return ...


def memory(
    write, w, read, r, v, gamma, M, *,
    update="pdma", aware=False, mask=None, state=None, eps=1e-12,
):  # fmt: skip
    """Write and read, token by token. A read sees what the same token wrote.

    ``write``, ``read``: (B, T, H, K) slots, K may differ between the two; ``w``, ``r``: their weights, same shapes.
    ``v``: (B, T, H, C); ``gamma``: a number or (B, T, H). ``aware``: whether the read is mass-aware.
    ``mask``: (B, T) bool; where it is False, a token writes nothing, changes nothing and reads 0.
    ``state``: (s, z) to start from, (B, H, M, C) and (B, H, M), which stay as they are; None: s = 0 and z = 1/M.

    Returns y (B, T, H, C), the state (s, z) after the last token, and ctx: whatever your ``memory_backward`` will need.
    """
    return ...


# ---------------------------------------------------------------- notebook 6


def product_softmax_backward(dweight, logits, slot, renorm=False):
    """The gradient of the logits (..., U, P), given that of the weights (..., K). The choice of slots is constant."""
    return ...


def retention_backward(w, gamma, update="pdma", proxy_eps=0.0):
    """The two slopes, (d alpha / dw, d alpha / dgamma), for float64 arrays; finite at w = 1, too.

    "pdma": of beta**gamma with beta = 1 - (1 - proxy_eps) w. At beta = 0 take ``np.finfo(float).epsneg`` instead, in
    the slope in w and in the logarithm.
    """
    return ...


def mass_aware_backward(dshare, r, z, eps=1e-12):
    """(dr, dz), given the gradient of what ``mass_aware`` returned; all (..., K)."""
    return ...


def memory_backward(dy, ctx, dstate=None, proxy_eps=0.0):
    """Given dy (B, T, H, C), ctx and perhaps the gradient of the returned state, (ds, dz).

    Returns dw, dr, dv, dgamma (B, T, H) and the gradient of the given state, (ds, dz). At masked tokens the first four
    are 0. May be called twice with the same ctx.
    """
    return ...


# ---------------------------------------------------------------- notebook 9


def layer(x, params, *, K, tau=1.0, gamma=1.0, use_cape=False):
    """Address, write and read: x (B, T, D) to an output of the same shape.

    ``params``: "write" and "read" (D, H, U, P), "write_bias" and "read_bias" (H, U, P), "value" (D, H, C), "out"
    (H, C, D). Logits are (x . W + b) / tau; no renorm; ``use_cape``: all heads use CAPE, or none. PDMA.
    Returns out and ctx.
    """
    return ...


def layer_backward(dout, ctx):
    """dx (B, T, D), and the gradients of the parameters by name."""
    return ...


def train_step(params, moments, ids, labels, rate, layers):
    """One step of AdamW on one batch; ``params`` change in place. Returns the loss and the moments for the next step.

    ``ids``, ``labels``: (B, T); a label of -100 does not count. ``layers``: the keyword arguments of ``layer``, one
    dictionary a layer. ``params``: "embeddings" (V, D), "norm" (D,), and for layer i those of ``layer`` as "i.write"
    and so on, and "i.norm" (D,).

        x = embeddings[ids];   x = x + layer(rmsnorm(x))  for every layer;   logits = rmsnorm(x) . embeddings^T

    Loss: the mean cross-entropy. What is not RAM-Net's is there to be imported:

    ``ramnet_np.layers.norm``: ``rmsnorm_forward(x, weight)`` returns y and ctx, ``rmsnorm_backward(dy, ctx)`` dx and
    dweight. ``ramnet_np.layers.loss``: ``cross_entropy_and_gradient(logits (N, V), labels (N,))`` returns ``.loss`` and
    ``.dlogits``. ``ramnet_np.train.optim``: ``adamw_update(params, grads, moments, rate)`` changes ``params`` in place
    and returns the moments.
    """
    return ...
