"""How big a model is: parameters, total state, active state per token; per layer and kind, as a table.

    parameters      every number that training may change; a head tied to the embeddings is counted once, there
    total state     what the layers keep between tokens: for slots M (C + 1) per head, C channels of content and a mass
    active state    what one token touches of it: for slots (K_w + K_r) (C + 1) per head, those it writes and reads

These are the paper's ways of counting (table 2): 340.8M, 28.8M and 0.4M for ``paper-340m``. The module of each other
mixer in :mod:`~ramnet_np.model.mixers` says what that keeps. A short convolution adds width - 1 inputs of D channels a
layer, all touched. Source: paper, figure 3.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import groupby
from math import prod
from typing import NamedTuple

from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.layout import EMBEDDINGS, LAYERS, layer_prefix, model_parameters
from ramnet_np.model.mixers import MIXERS, StateSize, mixers_of
from ramnet_np.model.parameters import Parameter, subset

CONTEXT = 1024  # tokens of the longest MQAR test


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
    parameters = model_parameters(config)
    outside = {name: parameter for name, parameter in parameters.items() if not name.startswith(LAYERS)}
    rows = _rows(None, {EMBEDDINGS: outside.pop(EMBEDDINGS)})
    for i in range(config.layers):
        rows += _rows(i, subset(parameters, layer_prefix(i)))
        rows.append(CountRow(i, "memory", 0, *_state_size(of_layer(config, i), context)))
    return rows + _rows(None, outside)


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
    return sum(_state_size(of_layer(config, i), context).total for i in range(config.layers))


def active_elements(config: RAMNetConfig, context: int = CONTEXT) -> int:
    """Elements of the whole model's memories that one token writes or reads.

    ``context``: as in :func:`state_elements`. ValueError below 1. Source: paper, table 2.

    >>> ram = RAMNetConfig(width=8, heads=2, order=2, radix=4, layers=2, top_k=2)
    >>> active_elements(ram)  # 2 layers * 2 heads * (2 slots written, 2 read) * (4 + 1)
    80
    """
    return sum(_state_size(of_layer(config, i), context).active for i in range(config.layers))


def layer_state(config: RAMNetConfig, context: int = CONTEXT) -> int:
    """Elements that a layer with the configuration's ``mixer`` remembers; with slots H M (C + 1).

    Source: paper table 2 and figure 3.

    >>> layer_state(RAMNetConfig(width=8, heads=2, order=2, radix=3))  # 2 heads * 9 slots * (4 + 1)
    90
    """
    return _state_size(config, context).total


def layer_active_state(config: RAMNetConfig, context: int = CONTEXT) -> int:
    """Elements of it that one token writes or reads: with slots H (K_w + K_r) (C + 1), else all of them.

    Source: paper table 2.

    >>> layer_active_state(RAMNetConfig(width=8, heads=2, order=2, radix=3, top_k=(3, 4)))  # 2 * 7 * (4 + 1)
    70
    """
    return _state_size(config, context).active


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
    if any(mixer.state_grows for mixer in mixers_of(config)):
        notes.append(f"State after {context:,} tokens.")
    totals = [sum(n) for n in zip(*((row.parameters, row.total_state, row.active_state) for row in rows), strict=True)]
    lines.append(_line("all", "sum", *(f"{n:,}" for n in totals)))
    names = ("Parameters", "total state", "active state per token")
    summary = ", ".join(f"{name} {_short(n)}" for name, n in zip(names, totals, strict=True))
    return "\n".join([*lines, " ".join([*notes, summary + "."])])


def describe(config: RAMNetConfig, dtype: str = "float32", device: str = "CPU") -> str:
    """A model in a few lines, as its ``repr`` shows it: sizes, state, and the settings that are not the defaults.

    >>> print(describe(RAMNetConfig(vocab=256, order=3, ffn="none", mixer="ram", cape=(2, 0))))
    RAMNet of 2 layers with mixer 'ram' (RAM-Net): 39,224 parameters, float32 on the CPU
      vocab 256, width 64; in each layer 2 heads of 64 slots with 32 channels, 8 written and 8 read per token
      state 8,448 elements, active per token 2,112
      RAMNetConfig(vocab=256, order=3, cape=(2, 0), ffn='none'), all else as by default
    """
    mixer = MIXERS[config.mixer]
    rows = count(config)
    parameters = sum(row.parameters for row in rows)
    total, active = sum(row.total_state for row in rows), sum(row.active_state for row in rows)
    heads = f"{config.heads} head{'s' * (config.heads > 1)}"
    if mixer.addresses is not None:
        writes, reads = config.top_k if isinstance(config.top_k, tuple) else (config.top_k, config.top_k)
        heads += f" of {config.slots:,} slots with {config.head_channels} channels, {writes} written and {reads} read "
        heads += "per token"
    else:
        heads += f" of {config.head_channels} channels"
    changed = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in fields(config)
        if getattr(config, field.name) != field.default
    ]
    after = f" after {CONTEXT:,} tokens" if any(mixer.state_grows for mixer in mixers_of(config)) else ""
    return "\n".join(
        [
            f"RAMNet of {config.layers} layer{'s' * (config.layers > 1)} with mixer {config.mixer!r} "
            f"({mixer.variant(config).label}): {parameters:,} parameters, {dtype} on the {device}",
            f"  vocab {config.vocab:,}, width {config.width:,}; in each layer {heads}",
            f"  state {total:,} elements{after}, active per token {active:,}",
            f"  RAMNetConfig({', '.join(changed)}), all else as by default",
        ]
    )


def _state_size(config: RAMNetConfig, context: int) -> StateSize:
    """That of one layer's mixer and short convolution."""
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    total, active = MIXERS[config.mixer].state_size(config, context)
    conv = max(0, config.short_conv - 1) * config.width
    return StateSize(total + conv, active + conv)


def _rows(layer: int | None, parameters: dict[str, Parameter]) -> list[CountRow]:
    sizes: dict[str, int] = {}
    for parameter in parameters.values():
        sizes[parameter.kind] = sizes.get(parameter.kind, 0) + prod(parameter.shape)
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
