"""How big a model is: parameters, total state, active state per token; per layer and kind, as a table.

    parameters      every number that training may change; a head tied to the embeddings is counted once, there
    total state     M (C + 1) per head: C channels of content and one mass for each of M slots
    active state    (K_w + K_r) (C + 1) per head: the slots that one token writes and the slots that it reads

These are the paper's ways of counting (table 2): 340.8M, 28.8M and 0.4M for ``paper-340m``. Other mixers keep per head

    softmax         L (d_k + C): a key and a value of every token of the longest context, L tokens
    window          W (d_k + C): of the last W tokens (L if that is less)
    linear          d_k C + d_k: the sum of outer products, and the normaliser
    delta           d_k C: the matrix

and a token touches all of it. A short convolution adds width - 1 inputs of D channels a layer, also touched.
Source: paper, figure 3.
"""

from __future__ import annotations

from itertools import groupby
from math import prod
from typing import NamedTuple

from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import layer_prefix, parameter_shapes, part

CONTEXT = 1024  # tokens of the longest MQAR test

# the first match decides; what follows "model.layers.<i>." or the whole name
_KINDS = (
    (("attn_conv.",), "convolution"),
    (("attn.w_", "attn.r_"), "addresses"),
    (("attn.q_", "attn.k_"), "keys"),
    (("attn.b_", "attn.a_", "attn.A_", "attn.dt_"), "gates"),
    (("attn.v_proj",), "values"),
    (("attn.gamma_modifier",), "forgetting"),
    (("attn.o_",), "output"),
    (("attn_norm", "mlp_norm", "model.norm"), "norms"),
    (("mlp.",), "feed-forward"),
    (("model.embeddings",), "embeddings"),
    (("lm_head",), "head"),
)


class CountRow(NamedTuple):
    """One kind of thing in one layer; ``layer`` is None for what lies outside the layers."""

    layer: int | None
    kind: str
    parameters: int
    total_state: int  # elements
    active_state: int  # elements touched per token


def count(config: RAMNetConfig, context: int = CONTEXT) -> list[CountRow]:
    """A row per layer and kind, in the order of the network; the memory of a layer is a kind without parameters.

    ``context``: tokens that softmax attention must remember.

    >>> from ramnet_np.model import preset
    >>> rows = count(preset("paper-340m"))
    >>> sum(row.parameters for row in rows), sum(row.total_state for row in rows), sum(row.active_state for row in rows)
    (340789344, 28753920, 449280)
    """
    shapes = parameter_shapes(config)
    outside = [name for name in shapes if not name.startswith("model.layers.")]
    before = {name: shapes[name] for name in outside if "embeddings" in name}
    after = {name: shapes[name] for name in outside if "embeddings" not in name}
    rows = _rows(None, before)
    for i in range(config.layers):
        rows += _rows(i, part(shapes, layer_prefix(i)))
        rows.append(CountRow(i, "memory", 0, layer_state(config, context), layer_active_state(config, context)))
    return rows + _rows(None, after)


def state_elements(config: RAMNetConfig, context: int = CONTEXT) -> int:
    """Elements that the whole model remembers between tokens: what the paper's figure 3 counts.

    ``context``: tokens that softmax attention must remember, MQAR's longest test by default. ValueError below 1.
    Source: paper, figure 3.

    >>> ram = RAMNetConfig(width=8, heads=2, order=2, radix=3, layers=2)
    >>> state_elements(ram)  # 2 layers * 2 heads * 9 slots * (4 + 1)
    180
    >>> from dataclasses import replace
    >>> [state_elements(replace(ram, mixer=mixer, window=16)) for mixer in ("softmax", "window", "linear", "delta")]
    [32768, 512, 80, 64]
    >>> state_elements(replace(ram, mixer="softmax"), context=64), state_elements(replace(ram, short_conv=4))
    (2048, 228)
    """
    return config.layers * layer_state(config, context)


def layer_state(config: RAMNetConfig, context: int = CONTEXT) -> int:
    """Elements that one layer remembers; with slots H M (C + 1).

    Source: paper table 2 and figure 3.

    >>> layer_state(RAMNetConfig(width=8, heads=2, order=2, radix=3))  # 2 heads * 9 slots * (4 + 1)
    90
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    d_k, C = config.head_key_channels, config.head_channels
    per_head = {
        "ram": config.slots * (C + 1),
        "softmax": context * (d_k + C),
        "window": min(config.window, context) * (d_k + C),
        "linear": d_k * (C + 1),
        "delta": d_k * C,
    }
    return config.heads * per_head[config.mixer] + _conv_state(config)


def layer_active_state(config: RAMNetConfig, context: int = CONTEXT) -> int:
    """Elements of it that one token writes or reads: with slots H (K_w + K_r) (C + 1), else all of them.

    Source: paper table 2.

    >>> layer_active_state(RAMNetConfig(width=8, heads=2, order=2, radix=3, top_k=(3, 4)))  # 2 * 7 * (4 + 1)
    70
    """
    if config.mixer != "ram":
        return layer_state(config, context)
    write_k, read_k = config.top_k if isinstance(config.top_k, tuple) else (config.top_k,) * 2
    return config.heads * (write_k + read_k) * (config.head_channels + 1) + _conv_state(config)


def format_count(config: RAMNetConfig, context: int = CONTEXT) -> str:
    """The rows of :func:`count` as text; neighbouring layers that are alike share their lines.

    ``context``: tokens that softmax attention must remember; the text then names them.

    >>> print(format_count(RAMNetConfig(vocab=100, width=8, layers=2, heads=2, order=2, radix=3, ffn="none")))
    layers      kind            parameters      total state     active state
    -           embeddings             800                -                -
    0-1         norms                    8                -                -
                addresses              224                -                -
                values                  64                -                -
                output                  64                -                -
                memory                   -               90              160
    -           norms                    8                -                -
    all         sum                  1,528              180              320
    Layers 0-1: figures are for one layer of 2. Parameters 1.5k, total state 180, active state per token 320.
    """
    rows = count(config, context)
    groups = [(layer, tuple(row[1:] for row in same)) for layer, same in groupby(rows, key=lambda row: row.layer)]
    lines = [_line("layers", "kind", "parameters", "total state", "active state")]
    notes = []
    for (inside, figures), alike in groupby(groups, key=lambda group: (group[0] is not None, group[1])):
        layers = [layer for layer, _ in alike]
        label = _label(layers) if inside else "-"
        if len(layers) > 1:
            notes.append(f"Layers {label}: figures are for one layer of {len(layers)}.")
        for i, (kind, *numbers) in enumerate(figures):
            lines.append(_line(label if i == 0 else "", kind, *(f"{n:,}" if n else "-" for n in numbers)))
    if config.mixer == "softmax":
        notes.append(f"State after {context:,} tokens.")
    totals = [sum(n) for n in zip(*((row.parameters, row.total_state, row.active_state) for row in rows), strict=True)]
    lines.append(_line("all", "sum", *(f"{n:,}" for n in totals)))
    names = ("Parameters", "total state", "active state per token")
    summary = ", ".join(f"{name} {_short(n)}" for name, n in zip(names, totals, strict=True))
    return "\n".join([*lines, " ".join([*notes, summary + "."])])


def _conv_state(config: RAMNetConfig) -> int:
    return max(0, config.short_conv - 1) * config.width


def _rows(layer: int | None, shapes: dict[str, tuple[int, ...]]) -> list[CountRow]:
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        kind = next(kind for starts, kind in _KINDS if name.startswith(starts))
        sizes[kind] = sizes.get(kind, 0) + prod(shape)
    return [CountRow(layer, kind, size, 0, 0) for kind, size in sizes.items()]


def _label(layers: list[int | None]) -> str:
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])


def _line(*cells: str) -> str:
    layers, kind, *numbers = cells
    return f"{layers:12}{kind:12}" + "".join(f"{n:>{w}}" for n, w in zip(numbers, (14, 17, 17), strict=True))


def _short(n: int) -> str:
    for at_least, unit, size in ((10**9, "B", 10**9), (10**5, "M", 10**6), (10**3, "k", 10**3)):
        if n >= at_least:
            return f"{n / size:.1f}{unit}"
    return str(n)
