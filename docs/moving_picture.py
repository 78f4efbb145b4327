"""The moving picture of the README: a memory of 64 slots stores who has which animal, and is asked for one of them.

    python docs/moving_picture.py docs/images/ramnet-moves.svg

An SVG that moves by CSS: small, sharp at any size, in light and dark, and still for whoever prefers that. Slots,
weights, contents and the answer are those that ``ramnet_np`` computes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from ramnet_np import decode_address, ram_attention_forward

ORDER, RADIX, K, CHANNELS = 3, 4, 4, 4
M = RADIX**ORDER
ANIMALS = {"fox": [1, 0.6, -0.4, -1], "owl": [-1, 0.7, 1, -0.3], "hen": [0.3, -1, 0.5, 1]}
# who has what, in which slot; the last line asks
LINES = [("Tom", "a", "fox", 27), ("Ada", "an", "owl", 6), ("Ann", "a", "hen", 45), ("Tom", "a", None, 27)]
TOKEN, END = 4.4, 3.0  # seconds per token, and at the end
TOTAL = len(LINES) * TOKEN + END

WEIGHTS, CONTENT = (106, 128), (160, 236)
MIDDLE = sum(CONTENT) / 2

STYLE = """
svg { --paper: #fcfbf8; --ink: #222; --muted: #666; --cell: #eceae3; --line: #d2cdc2;
  --write: #d55e00; --read: #007a59; --positive: #e69f00; --negative: #0072b2; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #16181d; --ink: #e8e6e1; --muted: #a5a39e; --cell: #2a2e37; --line: #3c414b;
    --write: #f07a35; --read: #1fb98b; --positive: #f0b429; --negative: #4aa8e8; } }
text { font: 17px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--muted); }
.paper { fill: var(--paper); } .bed { fill: var(--cell); } .lines { stroke: var(--paper); fill: none; }
.ink { fill: var(--ink); } .big { font-size: 26px; } .bold { font-weight: 700; } .middle { text-anchor: middle; }
.write { fill: var(--write); } .read { fill: var(--read); }
.pos { fill: var(--positive); } .neg { fill: var(--negative); }
.chip { fill: var(--paper); font-weight: 700; text-anchor: middle; }
.edge { fill: none; stroke: var(--ink); stroke-width: .8; }
.frame { fill: none; stroke-width: 2.5; } .frame.write { stroke: var(--write); fill: none; }
.frame.read { stroke: var(--read); fill: none; } .still { opacity: 0; }
@media (prefers-reduced-motion: reduce) {
  * { animation: none !important; } .still { opacity: 1; fill-opacity: 1; } .moves { opacity: 0; } }
""".strip()


def point_to(slot: int, sharpness: float = 6.0) -> np.ndarray:
    """Logits (U, P) that point at a slot: its digits are likelier than the others, which are a little uneven."""
    digits = [slot // RADIX**u % RADIX for u in range(ORDER)]
    logits = 0.5 * np.sin(12.9898 * (slot + 1) + np.arange(ORDER * RADIX).reshape(ORDER, RADIX))
    logits[np.arange(ORDER), digits] += sharpness
    return logits


def computed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the library makes of the text: addresses (T, K), contents from before the first token on, and y (T, C)."""
    logits = np.array([point_to(slot) for *_, slot in LINES])[None, :, None]
    keys = np.where(np.array([animal is None for _, _, animal, _ in LINES])[None, :, None, None, None], 0.0, logits)
    values = np.array([ANIMALS[animal] if animal else [0.0] * CHANNELS for _, _, animal, _ in LINES])[None, :, None]
    contents = [np.zeros((M, CHANNELS))]
    for t in range(1, len(LINES) + 1):
        parts = keys[:, :t], logits[:, :t], values[:, :t]
        y, state, _ = ram_attention_forward(*parts, 1.0, top_k=K, backend="numpy")
        contents.append(state.slots[0, 0])
    address = decode_address(logits, top_k=K, backend="numpy")
    return address.index[0, :, 0], np.array(contents), y[0, :, 0]


class Drawing:
    """SVG elements and the CSS that moves them."""

    def __init__(self) -> None:
        self.body: list[str] = []
        self.css: list[str] = []

    def add(self, element: str) -> None:
        self.body.append(element)

    def moves(self, property_: str, moments: list[tuple[float, str]]) -> str:
        """The attribute of an element whose ``property_`` has these values at these seconds."""
        name = f"m{len(self.css)}"
        steps = "".join(f"{100 * second / TOTAL:.2f}%{{{property_}:{value}}}" for second, value in moments)
        self.css.append(f"@keyframes {name}{{{steps}}}.{name}{{animation:{name} {TOTAL}s infinite}}")
        return name

    def seen(self, begin: float, end: float, fade: float = 0.25, least: float = 0.0, most: float = 1.0) -> str:
        """The same for an element that is seen from ``begin`` to ``end``."""
        low, high = f"{least:g}", f"{most:g}"
        last = min(end + fade, TOTAL)
        return self.moves(
            "opacity", [(0, low), (begin, low), (begin + fade, high), (end, high), (last, low), (TOTAL, low)]
        )


def point(radius: float, angle: float) -> str:
    return f"{radius * math.sin(angle):.1f} {-radius * math.cos(angle):.1f}"


def sector(first: float, count: float, inner: float, outer: float) -> str:
    """The path of ``count`` slots from ``first`` on, between two radii."""
    a, b = ((first - 0.46) * math.tau / M, (first + count - 0.54) * math.tau / M)
    large = int(b - a > math.pi)
    return (
        f"M{point(inner, a)}A{inner} {inner} 0 {large} 1 {point(inner, b)}"
        f"L{point(outer, b)}A{outer} {outer} 0 {large} 0 {point(outer, a)}Z"
    )


def shade(x: float) -> str:
    return f'class="{"pos" if x > 0 else "neg"}" opacity="{min(1.0, abs(x)):.2f}"'


def cells(values: np.ndarray | list[float], width: float, height: float, x: float, y: float, gap: float = 0) -> str:
    """A row of cells, one per channel."""
    parts = []
    for c, value in enumerate(values):
        box = f'x="{x + c * (width + gap):g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        parts.append(f'<rect {box} class="bed"/><rect {box} {shade(value)}/>')
    return "".join(parts)


def draw_ring(drawing: Drawing) -> None:
    for inner, outer in (WEIGHTS, CONTENT):
        drawing.add(f'<path class="bed" d="{sector(0, M / 2, inner, outer)}{sector(M / 2, M / 2, inner, outer)}"/>')
    spokes = "".join(
        f"M{point(inner, (i + 0.5) * math.tau / M)}L{point(outer, (i + 0.5) * math.tau / M)}"
        for i in range(M)
        for inner, outer in (WEIGHTS, CONTENT)
    )
    drawing.add(f'<path class="lines" d="{spokes}"/>')
    for slot in range(0, M, 8):
        x, y = (float(part) for part in point(254, slot * math.tau / M).split())
        drawing.add(f'<text class="middle" x="{x:g}" y="{y + 6:g}" style="font-size:14px">{slot}</text>')


def draw_contents(drawing: Drawing, contents: np.ndarray) -> None:
    """Every channel that is ever written, at each time as strong as the library's state has it."""
    deep = (CONTENT[1] - CONTENT[0]) / CHANNELS
    for slot, c in zip(*np.nonzero(np.abs(contents).max(axis=0) > 0.02), strict=True):
        for sign, name in ((1, "pos"), (-1, "neg")):
            strength = np.maximum(0, sign * contents[:, slot, c])
            if strength.max() <= 0.02:
                continue
            moments = [(0.0, "0")]
            for t in range(len(LINES)):
                at = t * TOKEN + 2.4
                moments += [(at, f"{strength[t]:.2f}"), (at + 0.5, f"{strength[t + 1]:.2f}")]
            moments += [(TOTAL - 0.5, f"{strength[-1]:.2f}"), (TOTAL, "0")]
            path = sector(slot, 1, CONTENT[0] + c * deep, CONTENT[0] + (c + 1) * deep)
            drawing.add(
                f'<path class="{name} {drawing.moves("opacity", moments)}" opacity="{strength[-1]:.2f}" d="{path}"/>'
            )


def draw_address(drawing: Drawing, slot: int, begin: float, end: float, kind: str) -> None:
    """Digits fall to the arcs that begin with them: a quarter of the ring, a quarter of that, the slot."""
    low, wide = 0, M
    for j in range(ORDER):
        digit = slot // RADIX ** (ORDER - 1 - j) % RADIX
        wide //= RADIX
        low += digit * wide
        start, landed = begin + 0.45 * j, begin + 0.45 * (j + 1)
        until = landed + 0.4 if j < ORDER - 1 else end
        arc = drawing.seen(landed, until, 0.1)
        drawing.add(f'<path class="{kind} moves {arc}" d="{sector(low, wide, *WEIGHTS)}"/>')
        x, y = (float(part) for part in point(117, (low + (wide - 1) / 2) * math.tau / M).split())
        here = f"translate({30 * (j - 1)}px,0)"
        away = f"translate({x:.1f}px,{y:.1f}px)"
        fly = drawing.moves("transform", [(0, here), (start, here), (landed, away), (TOTAL, away)])
        shown = drawing.seen(max(begin - 0.3, 0.01), landed, 0.15)
        chip = f'<circle r="14" class="{kind}"/><text class="chip" y="6">{digit}</text>'
        drawing.add(f'<g class="moves {shown}"><g class="{fly}">{chip}</g></g>')
    frame = drawing.seen(begin + 1.4, end, 0.15)
    drawing.add(f'<path class="frame {kind} moves {frame}" d="{sector(slot, 1, *CONTENT)}"/>')


def draw_flight(drawing: Drawing, values: np.ndarray | list[float], slot: int, begin: float, outwards: bool) -> None:
    """A value on its way between the hub and a slot."""
    near, far = "translate(30px,0)", f"translate({MIDDLE:g}px,0)"
    start, goal = (near, far) if outwards else (far, near)
    fly = drawing.moves("transform", [(0, start), (begin, start), (begin + 0.9, goal), (TOTAL, goal)])
    shown = drawing.seen(begin - 0.05, begin + 0.9, 0.12)
    turn = 360 * slot / M - 90
    glyph = f'{cells(values, 15, 20, -30, -10)}<rect class="edge" x="-30" y="-10" width="60" height="20"/>'
    drawing.add(f'<g class="moves {shown}"><g transform="rotate({turn:g})"><g class="{fly}">{glyph}</g></g></g>')


def draw_hub(drawing: Drawing, t: int, y: np.ndarray) -> None:
    """The token at the hub: its name, the value that it writes or the answer that it reads."""
    name, _, animal, _ = LINES[t]
    begin, end = t * TOKEN, (t + 1) * TOKEN - 0.25 + (END if t == len(LINES) - 1 else 0)
    shown = drawing.seen(max(begin, 0.01), end, 0.2)
    still = " still" if t == len(LINES) - 1 else " moves"
    label = f"{name}: {animal}" if animal else f"{name}?"
    row = f'<text class="big bold ink middle" y="-48">{label}</text>'
    if animal:
        row += f'<text class="bold write" x="-76" y="44">v</text>{cells(ANIMALS[animal], 26, 26, -56, 26, 3)}'
    else:
        row += f'<text class="bold read" x="-76" y="44">y</text>{cells([0.0] * CHANNELS, 26, 26, -56, 26, 3)}'
    drawing.add(f'<g class="{shown}{still}">{row}</g>')
    if animal is None:
        answer = drawing.seen(begin + 3.3, end, 0.3)
        drawing.add(f'<g class="{answer}{still}">{cells(y, 26, 26, -56, 26, 3)}</g>')


def draw_text(drawing: Drawing, answer: str) -> None:
    """The text at the right, line after line, and what is happening."""
    for t, (name, article, animal, _) in enumerate(LINES):
        begin, end = t * TOKEN, (t + 1) * TOKEN - 0.2 + (END if t == len(LINES) - 1 else 0)
        line = f"{name} has {article} {animal}." if animal else f"{name} has {article} "
        if animal is None:
            said = drawing.moves(
                "fill-opacity", [(0, "0"), (begin + 3.4, "0"), (begin + 3.8, "1"), (end, "1"), (TOTAL, "0")]
            )
            line += f'<tspan class="bold read {said}">{answer}</tspan>'
        now = drawing.seen(max(begin, 0.01), end, 0.15, least=0.35)
        drawing.add(f'<text class="big ink {now}" x="300" y="{-105 + 46 * t}">{line}</text>')
        verb = "It is written there." if animal else "It reads that slot."
        kind = "write" if animal else "read"
        steps = [("Three digits name a slot.", begin + 0.1, begin + 1.7), (verb, begin + 1.9, end)]
        for words, first, last in steps:
            said = drawing.seen(first, last, 0.15)
            drawing.add(f'<text class="{kind} moves {said}" x="300" y="112">{words}</text>')
    drawing.add('<text x="300" y="-165" class="bold ink" style="font-size:20px">What a RAM-Net reads</text>')
    drawing.add('<text x="300" y="165" style="font-size:14px">64 slots; computed by ramnet_np</text>')


def picture() -> str:
    """The whole SVG."""
    index, contents, y = computed()
    drawing = Drawing()
    draw_ring(drawing)
    draw_contents(drawing, contents)
    for t, (_, _, animal, _) in enumerate(LINES):
        begin, end = t * TOKEN + 0.4, (t + 1) * TOKEN - 0.3
        slot = int(index[t, 0])
        draw_address(drawing, slot, begin, end, "write" if animal else "read")
        draw_hub(drawing, t, y[t])
        if animal:
            draw_flight(drawing, ANIMALS[animal], slot, begin + 1.5, outwards=True)
        else:
            draw_flight(drawing, contents[-1][slot], slot, begin + 1.9, outwards=False)
    nearest = min(ANIMALS, key=lambda animal: np.abs(y[-1] - ANIMALS[animal]).max())
    draw_text(drawing, nearest)
    title = "RAM-Net reads three facts, keeps each in a slot of its memory, and answers a question from that slot."
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-275 -275 880 550" width="880" height="550" role="img" '
        f'aria-label="{title}"><title>{title}</title><style>{STYLE}{"".join(drawing.css)}</style>'
        f'<rect class="paper" x="-275" y="-275" width="880" height="550" rx="14"/>{"".join(drawing.body)}</svg>\n'
    )


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise SystemExit("usage: python docs/moving_picture.py FILE.svg")
    Path(arguments[0]).write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
