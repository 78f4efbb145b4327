"""Every figure that the command, the notebooks and the documentation draw.

Each function returns a ``matplotlib.figure.Figure`` and touches no global state: show it, or ``figure.savefig(path)``.
Writes are vermilion squares and reads are green rings throughout, a pair of colours that colour-blind readers can tell
apart, and whose shapes differ besides. ``with theme("dark"):`` of ``plot_style.py`` draws for a dark page.

``python -m ramnet_np.plot docs/images/ramnet.png`` draws the picture that opens the README, and beside it
``ramnet-dark.png``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Rectangle

from ramnet_np.core.attention import decode_address
from ramnet_np.plot_style import current, theme, themed
from ramnet_np.train.metrics import Record, read_metrics


@themed
def training_curves(metrics: Path | str | Sequence[Record], title: str = "") -> Figure:
    """Accuracy and loss of a run against the step.

    ``metrics``: the path of a metrics.jsonl, or its records. Training values are those of single batches (faint) with
    their running mean; held-out accuracy is drawn per set where there is more than one, and as the mean of the sets.
    ValueError where there is no training record.

    >>> records = [{"kind": "train", "step": s, "loss": 2.0 / s, "accuracy": 0.1 * s} for s in range(1, 5)]
    >>> figure = training_curves(records, title="a run")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['recall accuracy', 'cross-entropy (nats)']
    """
    records = read_metrics(metrics) if isinstance(metrics, (str, Path)) else metrics
    trained = [r for r in records if r["kind"] == "train"]
    measured = [r for r in records if r["kind"] == "held_out"]
    if not trained:
        raise ValueError("metrics must hold at least one training record, got none")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    if title:
        figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    steps = [r["step"] for r in trained]
    for axes, key, label in ((left, "accuracy", "training batches"), (right, "loss", "training batches")):
        values = np.array([r[key] for r in trained])
        axes.plot(steps, values, color=current().faint, alpha=0.35, linewidth=0.8)
        axes.plot(steps, _running_mean(values), color=current().ink, linewidth=1.5, label=label)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
    if measured:
        at = [r["step"] for r in measured]
        sets = [name for name in measured[0]["accuracy"] if name != "mean"]
        for name in sets if len(sets) > 1 else ():
            left.plot(at, [r["accuracy"][name] for r in measured], linewidth=0.8, alpha=0.8, label=name)
        mean = [r["accuracy"]["mean"] for r in measured]
        left.plot(at, mean, color=current().read, marker="o", markersize=4, linewidth=1.8, label="held out")
    left.set_ylabel("recall accuracy")
    left.set_ylim(-0.02, 1.02)
    left.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.set_ylabel("cross-entropy (nats)")
    right.set_yscale("log")
    left.legend(fontsize=8, loc="lower right")
    right.legend(fontsize=8, loc="lower left")
    return figure


@themed
def slot_trace(
    trace: Sequence[Mapping[str, Any]], slots: int, *, example: int = 0, cape_heads: Sequence[int] = ()
) -> Figure:
    """Which slots each token writes and reads: slot index against token, one panel per layer and head.

    ``trace``: what ``RAMNet.trace`` returns, a mapping with "write" and "read" addresses (B, T, H, K) per layer.
    ``slots``: M; ``example``: which sequence of the batch; ``cape_heads``: CAPE heads per layer, named in the titles.
    Marks fade with the weight. CAPE heads show diagonals of slope -1 that wrap at M, content heads show rows.
    Source: paper, appendix B, fig. 5.

    >>> address = decode_address(np.zeros((1, 6, 2, 3, 4)), top_k=2, cape_heads=1)
    >>> figure = slot_trace([{"write": address, "read": address}], slots=64, cape_heads=(1,))
    >>> [axes.get_title() for axes in figure.axes]
    ['layer 0, head 0 (CAPE)', 'layer 0, head 1 (content)']
    """
    layers, heads = len(trace), trace[0]["write"].index.shape[2]
    figure = Figure(figsize=(4.2 * heads + 0.6, 2.7 * layers + 0.7), layout="constrained")
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer, head]
            _scatter_address(axes, trace[layer]["write"], example, head, current().write, "s")
            _scatter_address(axes, trace[layer]["read"], example, head, current().read, "o")
            kind = ("CAPE" if head < cape_heads[layer] else "content") if layer < len(cape_heads) else ""
            axes.set_title(f"layer {layer}, head {head}" + (f" ({kind})" if kind else ""), fontsize=10)
            axes.set_ylim(-0.02 * slots, 1.02 * slots)
            axes.grid(alpha=0.2)
            if layer == layers - 1:
                axes.set_xlabel("token")
            if head == 0:
                axes.set_ylabel(f"slot (of {slots})")
    marks = [Line2D([], [], color=current().write, marker="s", markersize=3, linestyle="", label="write")]
    marks += [
        Line2D([], [], color=current().read, marker="o", markersize=5, linestyle="", fillstyle="none", label="read")
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _scatter_address(axes: Axes, address: Any, example: int, head: int, color: str, marker: str) -> None:
    index, weight = (np.asarray(a[example, :, head]) for a in (address.index, address.weight))  # (T, K)
    tokens = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    shown = np.maximum(weight.ravel() / max(float(weight.max()), 1e-30), 0.08)
    shades = [to_rgba(color, float(alpha)) for alpha in shown]
    if marker == "s":
        axes.scatter(tokens.ravel(), index.ravel(), marker=marker, s=9, color=shades, edgecolors="none")
    else:
        axes.scatter(
            tokens.ravel(), index.ravel(), marker=marker, s=22, facecolors="none", edgecolors=shades, linewidths=0.9
        )


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and those before it, up to a twentieth of the run."""
    width = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (sums[end] - sums[start]) / (end - start)


_ORDER, _RADIX, _TOP_K, _CHANNELS, _SIDE = 3, 4, 4, 8, 8  # of the opening picture; its 64 slots are drawn as 8 x 8


@themed
def ramnet_picture(seed: int = 1209) -> Figure:
    """What RAM-Net is, in one picture with computed numbers: digits, product softmax, top-K slots, write, read.

    The key of one token and the query of a later one each pick K of M slots. The write blends the value into the key's
    slots, the read mixes the query's. The query is the key with some noise, so it finds most of what was written.

    >>> len(ramnet_picture().axes)  # twice three digits and a table of slots; memory, value, answer
    11
    """
    rng = np.random.default_rng(seed)
    key = 2.0 * rng.standard_normal((_ORDER, _RADIX))
    query = key + 0.3 * rng.standard_normal((_ORDER, _RADIX))
    memory = 0.15 * rng.standard_normal((_RADIX**_ORDER, _CHANNELS))
    value = 1.2 * np.cos(np.linspace(0, 1.6 * np.pi, _CHANNELS))
    write, read = (decode_address(logits[None, None, None], top_k=_TOP_K, backend="numpy") for logits in (key, query))
    slots, weight = write.index.ravel(), write.weight.ravel()[:, None]
    memory[slots] += weight / (1 / len(memory) + weight) * (value - memory[slots])  # a first write: z was 1/M
    slots, weight = read.index.ravel(), read.weight.ravel()[:, None]
    answer = (weight * memory[slots]).sum(axis=0)

    figure = Figure(figsize=(11, 5.2))
    headings = (
        (0.155, "1  digits", f"U = {_ORDER} softmaxes over P = {_RADIX} values"),
        (0.435, "2  product softmax, top K", f"$P^U$ = {len(memory)} slots, the best K = {_TOP_K} are kept"),
        (0.69, "3  memory", "only K slots are touched"),
        (0.895, "4  write, then read", "C channels a slot"),
    )
    for x, heading, text in headings:
        figure.text(x, 0.94, heading, ha="center", fontsize=13, fontweight="bold", color=current().ink)
        figure.text(x, 0.89, text, ha="center", fontsize=9.5, color=current().muted)

    table = figure.add_axes((0.645, 0.07, 0.09, 0.77))
    limit = float(np.abs(memory).max())
    colors: dict[str, Any] = {"cmap": current().diverging(), "vmin": -limit, "vmax": limit}
    colors |= {"aspect": "auto", "interpolation": "nearest"}
    table.imshow(memory, **colors)
    table.set_yticks([0, len(memory) - 1], ["slot 0", f"slot {len(memory) - 1}"])
    table.tick_params(labelsize=8, length=2, colors=current().muted)
    table.set_xticks([])

    rows = (
        (0.51, key, write, current().write, value, "key of a token", "$v$", r"$s \leftarrow s + \eta\,(v - s)$"),
        (0.08, query, read, current().read, answer, "query of a later token", "$y$", r"$y = \sum_a r_a\, s_a$"),
    )
    for bottom, logits, address, color, vector, name, symbol, formula in rows:
        figure.text(
            0.022,
            bottom + 0.14,
            name,
            rotation=90,
            va="center",
            ha="center",
            fontsize=11,
            color=color,
            fontweight="bold",
        )
        _draw_digits(figure, bottom, logits, color)
        cells = _draw_slots(figure, bottom, logits, address, color)
        strip = figure.add_axes((0.825, bottom + 0.115, 0.14, 0.05))
        strip.imshow(vector[None], **colors)
        _bare(strip, color)
        figure.text(0.895, bottom + 0.195, symbol, ha="center", fontsize=14, color=color)
        figure.text(0.895, bottom + 0.04, formula, ha="center", fontsize=13, color=current().ink)
        for slot, strength in zip(address.index.ravel(), address.weight.ravel(), strict=True):
            width = 0.8 + 6 * float(strength)
            _connect(figure, cells, (slot % _SIDE + 0.5, slot // _SIDE), table, (-0.5, slot), "-", color, width)
            style = "<|-" if color == current().write else "-|>"
            _connect(figure, table, (_CHANNELS - 0.5, slot), strip, (-0.5, 0), style, color, width)
            table.add_patch(
                Rectangle((-0.5, slot - 0.5), _CHANNELS, 1, fill=False, edgecolor=current().paper, linewidth=1)
            )
    return figure


def _draw_digits(figure: Figure, bottom: float, logits: np.ndarray, color: str) -> None:
    """One bar chart per digit, the most significant first, as numbers are written."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for place in range(_ORDER):
        axes = figure.add_axes((0.05 + 0.075 * (_ORDER - 1 - place), bottom + 0.03, 0.06, 0.22))
        axes.bar(range(_RADIX), p[place], color=color, alpha=0.85, width=0.8)
        axes.set_ylim(0, 1)
        axes.set_xticks(range(_RADIX))
        axes.set_yticks([])
        axes.tick_params(labelsize=8, length=0, colors=current().muted)
        axes.set_title(f"digit {place}", fontsize=9, color=current().muted, pad=3)
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        if place:
            figure.text(
                0.05 + 0.075 * (_ORDER - place) - 0.0075,
                bottom + 0.13,
                r"$\times$",
                ha="center",
                fontsize=12,
                color=current().ink,
            )
    figure.text(0.285, bottom + 0.13, "=", ha="center", fontsize=14, color=current().ink)


def _draw_slots(figure: Figure, bottom: float, logits: np.ndarray, address: Any, color: str) -> Axes:
    """The probability of every slot, and a frame around the kept ones."""
    every = decode_address(logits[None, None, None], top_k=_RADIX**_ORDER, backend="numpy")
    rho = np.empty(_RADIX**_ORDER)
    rho[every.index.ravel()] = every.weight.ravel()
    axes = figure.add_axes((0.335, bottom, 0.155, 0.155 * 11 / 5.2))
    axes.imshow(rho.reshape(_SIDE, _SIDE) ** 0.5, cmap=current().shades(color), vmin=0)
    for slot in address.index.ravel():
        axes.add_patch(
            Rectangle(
                (slot % _SIDE - 0.5, slot // _SIDE - 0.5), 1, 1, fill=False, edgecolor=current().ink, linewidth=1.6
            )
        )
    _bare(axes, current().faint)
    return axes


def _connect(
    figure: Figure,
    a: Axes,
    at_a: tuple[float, float],
    b: Axes,
    at_b: tuple[float, float],
    style: str,
    color: str,
    width: float,
) -> None:
    """A line or arrow from a point of one panel to a point of another, both in data coordinates."""
    line = ConnectionPatch(
        at_a, at_b, "data", "data", axesA=a, axesB=b, arrowstyle=style, color=color, linewidth=width, mutation_scale=8
    )
    line.set_annotation_clip(False)  # the points lie on the panels' frames
    figure.add_artist(line)


def _bare(axes: Axes, color: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor(color)


def main(arguments: Sequence[str]) -> None:
    """Draw the opening picture into the file named by the only argument, and for dark pages into one beside it."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m ramnet_np.plot FILE.png")
    light = Path(arguments[0])
    light.parent.mkdir(parents=True, exist_ok=True)
    for name, path in (("light", light), ("dark", light.with_stem(light.stem + "-dark"))):
        with theme(name):
            ramnet_picture().savefig(path, dpi=150)
        print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
