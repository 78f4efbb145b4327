"""The drawings of the pages on GPU kernels, on several GPUs and of the house, for light and for dark pages.

    python docs/drawings.py docs/images

Writes an SVG per drawing, and beside it one for dark pages, ``*-dark.svg``. A drawing is a function that puts boxes,
arrows and words on a sheet.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

LIGHT = {"ink": "#222222", "muted": "#5c5c5c", "line": "#8a8a8a", "box": "#f1efe9", "paper": "#ffffff",
         "write": "#d55e00", "read": "#007a59", "wait": "#e3ddd0"}  # fmt: skip
DARK = {"ink": "#e8e6e1", "muted": "#b0aea9", "line": "#7c818c", "box": "#272b33", "paper": "#16181d",
        "write": "#f07a35", "read": "#1fb98b", "wait": "#3b3f48"}  # fmt: skip
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'


class Sheet:
    """An SVG of a size, in the colours of a page."""

    def __init__(self, width: int, height: int, colours: dict[str, str]):
        self.size, self.colours = (width, height), colours
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, colour: str = "ink", anchor: str = "start", size: int = 15) -> None:
        for i, line in enumerate(words.split("\n")):
            place = f'x="{x:g}" y="{y + 1.3 * size * i:g}" text-anchor="{anchor}" font-size="{size}"'
            self.parts.append(f'<text {place} fill="{self.colours[colour]}">{escape(line)}</text>')

    def box(self, x: float, y: float, width: float, height: float, words: str = "", fill: str = "box") -> None:
        shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"'
        self.parts.append(f'<rect {shape} fill="{self.colours[fill]}" stroke="{self.colours["line"]}"/>')
        lines = words.split("\n")
        colour = "paper" if fill in ("write", "read", "ink") else "ink"
        self.text(x + width / 2, y + height / 2 + 5 - 9.75 * (len(lines) - 1), words, colour, "middle")

    def arrow(self, *points: tuple[float, float], colour: str = "line") -> None:
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = 7 * (x1 - x0) / length, 7 * (y1 - y0) / length
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        barbs = [(x1 - dx + side * dy, y1 - dy - side * dx) for side in (-0.6, 0.6)]
        head = f"M{barbs[0][0]:g} {barbs[0][1]:g}L{x1:g} {y1:g}L{barbs[1][0]:g} {barbs[1][1]:g}"
        self.parts.append(f'<path d="{path}{head}" fill="none" stroke="{self.colours[colour]}" stroke-width="1.6"/>')

    def line(self, x0: float, y0: float, x1: float, y1: float, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{self.colours["line"]}"{dash}/>')

    def svg(self) -> str:
        width, height = self.size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f"font-family='{FONT}'>{''.join(self.parts)}</svg>\n"
        )


def pipeline(colours: dict[str, str]) -> Sheet:
    """From logits and values to y: which kernel does what, and what runs at the same time."""
    sheet = Sheet(760, 275, colours)
    kernels = [(10, 100, "decode"), (170, 100, "find\nconflicts"), (330, 90, "masses"), (480, 100, "couplings"),
               (635, 100, "contents")]  # fmt: skip
    when = ["all tokens\nat once", "all chunks\nat once", "chunk after\nchunk, a block per\n(batch, head)",
            "all chunks\nat once", "chunk after chunk,\nblock per (batch,\nhead) and slice"]  # fmt: skip
    for (x, width, name), said in zip(kernels, when, strict=True):
        sheet.box(x, 110, width, 60, name)
        sheet.text(x + width / 2, 225, said, "muted", "middle", 14)
        sheet.line(x + width / 2, 176, x + width / 2, 206, dashed=True)
    for x, words in ((0, "write logits"), (100, "read logits")):
        sheet.text(x, 60, words, "read" if x else "write")
    sheet.arrow((35, 68), (35, 108), colour="write")
    sheet.arrow((90, 68), (90, 108), colour="read")
    for left, right, words in ((110, 170, "slots,\nweights"), (270, 330, "chains"), (420, 480, "eta"), (580, 635, "A")):
        sheet.arrow((left + 2, 140), (right - 2, 140))
        sheet.text((left + right) / 2, 130 - 19.5 * words.count("\n"), words, "muted", "middle", 14)
    sheet.text(660, 60, "values", "write", "middle")
    sheet.arrow((660, 68), (660, 108), colour="write")
    sheet.arrow((715, 108), (715, 70), colour="read")
    sheet.text(715, 60, "y", "read", "middle", 17)
    return sheet


def accesses(colours: dict[str, str]) -> Sheet:
    """Four tokens and four slots: what each access of a chunk finds."""
    rows = [
        (5, ["W", "", "", ""], "written once: changed in place"),
        (9, ["R", "", "R", ""], "reads find the slot before the chunk"),
        (12, ["W", "", "R", "R"], "reads find the slot, and by A the value of token 0"),
        (17, ["WR", "W", "", "R"], "reads as above, the last with two values;\nthe two writes are a list"),
    ]
    sheet = Sheet(760, 250, colours)
    sheet.text(20, 30, "token", "muted")
    for t in range(4):
        sheet.text(125 + 70 * t, 30, str(t), "muted", "middle")
    for i, (slot, cells, words) in enumerate(rows):
        y = 48 + 48 * i
        sheet.text(20, y + 25, f"slot {slot}")
        for t, cell in enumerate(cells):
            sheet.box(92 + 70 * t, y, 66, 38)
            for j, kind in enumerate(cell):
                x = 125 + 70 * t + 28 * (j - (len(cell) - 1) / 2)
                sheet.box(x - 12, y + 7, 24, 24, kind, "write" if kind == "W" else "read")
        sheet.text(392, y + (15 if "\n" in words else 24), words, "muted", size=14)
    return sheet


def block(colours: dict[str, str]) -> Sheet:
    """A block of content_forward: its state in shared memory and the two phases of a chunk."""
    sheet = Sheet(760, 250, colours)
    sheet.text(20, 28, "shared memory of a block")
    for i, words in enumerate(("slot 0: 16 channels", "slot 1", "…", "slot 1023", "tokens, A, lists")):
        sheet.box(20, 42 + 38 * i, 190, 34, words, "wait" if i == 4 else "box")
    sheet.text(270, 28, "256 threads: 64 groups of 4 lanes, each lane has 4 channels")
    sheet.box(270, 42, 200, 54, "1  reads: 2 groups per\ntoken, 4 slots each", "box")
    sheet.box(480, 42, 200, 54, "couplings times values:\na list for each token", "box")
    sheet.line(262, 112, 690, 112, dashed=True)
    sheet.text(700, 117, "barrier", "muted", size=14)
    sheet.box(270, 128, 410, 54, "2  writes: 2 groups per token, 4 slots each;\nthen lists: 1 group per list", "box")
    sheet.line(262, 198, 690, 198, dashed=True)
    sheet.text(700, 203, "barrier", "muted", size=14)
    sheet.text(270, 226, "the next chunk; what a phase needs was loaded in the one before", "muted", size=14)
    return sheet


def step(colours: dict[str, str]) -> Sheet:
    """One token of generation: who does what at the same time."""
    sheet = Sheet(760, 190, colours)
    load, add = (256, 90, "load rows"), (528, 150, "write, add up")
    lanes = [
        ("warp 0", [(100, 150, "slots of the write"), load, (352, 170, "weights, masses, eta"), add]),
        ("warp 1", [(100, 150, "slots of the read"), load, (352, 170, "weights"), add]),
        ("other warps", [load, add]),
    ]
    for i, (name, parts) in enumerate(lanes):
        y = 20 + 48 * i
        sheet.text(10, y + 24, name, size=14)
        for x, width, words in parts:
            sheet.box(x, y, width, 38, words)
        sheet.arrow((680, y + 19), (706, y + 19))
        sheet.text(714, y + 24, "y", "read", size=17)
    sheet.arrow((100, 172), (750, 172))
    sheet.text(10, 177, "time", "muted", size=14)
    return sheet


def waits(colours: dict[str, str]) -> Sheet:
    """Two loads that share a counter: a value that arrived long ago waits for the newer load."""
    sheet = Sheet(760, 200, colours)
    sheet.box(110, 20, 210, 36, "load A: entry of a chain", "read")
    sheet.box(250, 68, 330, 36, "load B: inputs of the next chunk", "write")
    sheet.box(420, 116, 160, 36, "this use of A waits", "wait")
    sheet.box(580, 116, 140, 36, "A is used")
    sheet.line(420, 14, 420, 116, dashed=True)
    sheet.text(430, 34, "the instruction that uses A is reached", "muted", size=14)
    sheet.line(580, 60, 580, 116, dashed=True)
    for y, words in ((43, "counter + 1"), (91, "counter + 1"), (139, "this thread")):
        sheet.text(10, y, words, "muted", size=14)
    sheet.text(592, 92, "B arrives: counter 0", "muted", size=14)
    sheet.arrow((110, 182), (750, 182))
    sheet.text(10, 187, "time", "muted", size=14)
    return sheet


def parts(colours: dict[str, str]) -> Sheet:
    """From logits to y in Python: which thread owns what."""
    sheet = Sheet(760, 190, colours)
    kernels = [(90, 130, "decode"), (330, 120, "masses"), (560, 130, "contents")]
    owners = [
        "one thread\nper row",
        "one thread per access\nof every token",
        "groups of threads share\na token's accesses",
    ]
    for (x, width, name), said in zip(kernels, owners, strict=True):
        sheet.box(x, 40, width, 50, name)
        sheet.line(x + width / 2, 96, x + width / 2, 126, dashed=True)
        sheet.text(x + width / 2, 146, said, "muted", "middle", 14)
    for left, right, words in ((220, 330, "slots,\nweights"), (450, 560, "rows,\neta")):
        sheet.arrow((left + 2, 65), (right - 2, 65))
        sheet.text((left + right) / 2, 36, words, "muted", "middle", 14)
    sheet.text(10, 70, "logits", "write")
    sheet.arrow((58, 65), (88, 65), colour="write")
    sheet.arrow((692, 65), (726, 65), colour="read")
    sheet.text(736, 70, "y", "read", size=17)
    return sheet


def tiles(colours: dict[str, str]) -> Sheet:
    """A tile is loaded while the one before it is worked through."""
    sheet = Sheet(760, 150, colours)
    sheet.box(150, 20, 330, 36, "loads of tile n + 1 under way", "read")
    sheet.box(150, 68, 330, 36, "tile n, token by token", "write")
    sheet.box(490, 20, 140, 84, "store tile n + 1,\nadd up the sums\nof tile n")
    sheet.line(646, 14, 646, 110, dashed=True)
    sheet.text(656, 66, "barrier", "muted", size=14)
    for y, words in ((43, "memory"), (91, "threads")):
        sheet.text(10, y, words, "muted", size=14)
    sheet.arrow((150, 134), (750, 134))
    sheet.text(10, 139, "time", "muted", size=14)
    return sheet


def rooms(colours: dict[str, str]) -> Sheet:
    """Which room may import which."""
    sheet = Sheet(760, 400, colours)
    for i, name in enumerate(("cli", "experiment", "runs", "train", "data")):
        sheet.box(20 + 148 * i, 20, 110, 40, name)
        if i:
            sheet.arrow((20 + 148 * i - 36, 40), (20 + 148 * i - 3, 40))
    sheet.box(242, 110, 110, 40, "plot")
    sheet.arrow((223, 62), (272, 108))
    sheet.arrow((371, 62), (322, 108))
    for y, name in ((110, "model"), (190, "layers"), (270, "core"), (345, "backend")):
        sheet.box(464, y, 110, 40, name)
        if y > 110:
            sheet.arrow((519, y - (38 if y < 340 else 33)), (519, y - 2))
    sheet.arrow((519, 62), (519, 108))
    sheet.arrow((667, 62), (667, 290), (577, 290))
    sheet.box(242, 345, 110, 40, "contract", "wait")
    sheet.arrow((462, 365), (355, 365))
    for i, name in enumerate(("cpu", "cuda", "numba_cuda")):
        sheet.box(10, 210 + 48 * i, 162, 40, f"kernels/{name}")
    sheet.arrow((172, 326), (206, 326), (206, 365), (240, 365))
    sheet.line(172, 230, 206, 230)
    sheet.line(172, 278, 206, 278)
    sheet.line(206, 230, 206, 326)
    return sheet


def ranks(colours: dict[str, str]) -> Sheet:
    """A step of four ranks: their rows, two exchanges, the same update."""
    sheet = Sheet(760, 330, colours)
    heads = ((110, "rows"), (282, "gradients"), (393, "exchange"), (489, "exchange"), (574, "sums"), (690, "update"))
    for x, words in heads:
        sheet.text(x, 24, words, "muted", "middle", 14)
    for rank in range(4):
        y = 44 + 56 * rank
        sheet.text(8, y + 25, f"rank {rank}", "muted", size=14)
        sheet.box(64, y, 92, 40, f"{2 * rank}, {2 * rank + 1} of 8")
        sheet.arrow((158, y + 20), (176, y + 20))
        for part in range(4):
            sheet.box(180 + 51 * part, y, 49, 40, f"{part}", "write" if part == rank else "box")
        sheet.arrow((386, y + 20), (400, y + 20))
        sheet.box(404, y, 72, 40, f"sum of {rank}", "write")
        sheet.arrow((478, y + 20), (500, y + 20))
        sheet.box(504, y, 108, 40, "sums 0 to 3", "read")
        sheet.arrow((614, y + 20), (636, y + 20))
        sheet.box(640, y, 100, 40, "AdamW")
    sheet.line(489, 34, 489, 268, dashed=True)
    sheet.line(393, 34, 393, 268, dashed=True)
    sheet.text(
        64,
        296,
        "Rank r adds up slice r of every rank's gradients, in the order of the ranks, and sends",
        "muted",
        size=14,
    )
    sheet.text(
        64, 316, "the sum to all. Every rank then makes the same update to the same parameters.", "muted", size=14
    )
    return sheet


def tiers(colours: dict[str, str]) -> Sheet:
    """Where rows are: a table finds those in memory, an index the pages in the file."""
    sheet = Sheet(760, 300, colours)
    sheet.text(20, 30, "a segment's slots")
    for i, key in enumerate(("7", "5", "2")):
        sheet.box(20 + 46 * i, 44, 42, 34, key, "write" if i < 2 else "read")
    sheet.arrow((92, 80), (92, 112))
    sheet.box(20, 116, 152, 60, "table:\nhash of key to row")
    sheet.arrow((174, 146), (212, 146))
    sheet.text(216, 30, "host memory: rows")
    for i, words in enumerate(("slot 5", "slot 7", "slot 40", "slot 41", "…")):
        sheet.box(216, 44 + 38 * i, 150, 34, words, "wait" if "4" in words else "box")
    sheet.text(216, 258, "a row is C contents and a mass;\nthere are rows of touched slots only", "muted", size=14)
    sheet.arrow((372, 146), (498, 146), colour="write")
    sheet.text(435, 136, "longest not used", "write", "middle", 14)
    sheet.arrow((498, 196), (372, 196), colour="read")
    sheet.text(435, 218, "asked for", "read", "middle", 14)
    sheet.text(504, 30, "file: pages of 16 neighbours")
    for i, words in enumerate(("slots 0 to 15", "slots 48 to 63", "slots 96 to 111", "…")):
        sheet.box(504, 44 + 48 * i, 150, 42, words)
    sheet.text(504, 258, "a page is all up or all down;\neach has a checksum", "muted", size=14)
    return sheet


def device(colours: dict[str, str]) -> Sheet:
    """The three tiers of a state on a GPU, and what moves rows between them."""
    sheet = Sheet(760, 250, colours)
    columns = ((20, "GPU memory", "read"), (285, "host memory, pinned", "box"), (550, "file", "wait"))
    for x, words, fill in columns:
        sheet.text(x, 30, words)
        for i in range(4):
            page = "16 slots" if x == 550 else "1024 rows"
            sheet.box(x, 44 + 36 * i, 130, 32, page if i < 3 else "…", fill)
    sheet.arrow((279, 70), (156, 70), colour="read")
    sheet.text(217, 62, "asked for last", "read", "middle", 14)
    sheet.arrow((156, 112), (279, 112), colour="write")
    sheet.text(217, 132, "not for longest", "write", "middle", 14)
    sheet.arrow((544, 70), (421, 70), colour="read")
    sheet.text(482, 62, "asked for", "read", "middle", 14)
    sheet.arrow((421, 112), (544, 112), colour="write")
    sheet.text(482, 132, "not for longest", "write", "middle", 14)
    sheet.text(
        20,
        214,
        "kernels reach both of these by themselves,\nover the bus where a row is in the host's memory",
        "muted",
        size=14,
    )
    sheet.text(482, 214, "the host looks before a launch,\nonce there is a page here alone", "muted", size=14)
    return sheet


def segment(colours: dict[str, str]) -> Sheet:
    """What happens to a segment's slots, from the addresses to the rows that go back."""
    sheet = Sheet(760, 210, colours)
    parts = [
        (20, 96, "decode", "box"), (126, 110, "number\nthe slots", "box"), (246, 110, "gather\nrows", "read"),
        (366, 210, "write and read as ever,\nin a dense state", "box"),
        (586, 120, "scatter what\nwas written", "write"),
    ]  # fmt: skip
    for x, width, words, fill in parts:
        sheet.box(x, 60, width, 56, words, fill)
    for x in (116, 236, 356, 576):
        sheet.arrow((x + 1, 88), (x + 9, 88))
    sheet.text(20, 36, "one segment (a token, or thousands)", "muted", size=14)
    sheet.box(236, 136, 130, 34, "pages come up", "wait")
    sheet.box(576, 136, 140, 34, "pages go down", "wait")
    sheet.line(301, 118, 301, 134, dashed=True)
    sheet.line(646, 118, 646, 134, dashed=True)
    sheet.arrow((20, 194), (740, 194))
    sheet.text(20, 186, "time", "muted", size=14)
    return sheet


def bus(colours: dict[str, str]) -> Sheet:
    """A segment whose rows are in the host's memory: what comes and goes over the bus beside which work."""
    sheet = Sheet(760, 250, colours)
    for y, words in ((65, "work"), (127, "to the GPU"), (189, "to the host")):
        sheet.text(8, y, words, "muted", size=14)
    work = ((100, 60, "slots"), (164, 156, "masses, couplings\nof all tokens"), (324, 70, "contents\n1"),
            (398, 70, "contents\n2"), (472, 70, "contents\n3"), (546, 50, "…"),
            (600, 146, "rest of the layer,\nnext layers"))  # fmt: skip
    for x, width, words in work:
        sheet.box(x, 34, width, 52, words)
    for x, width, words in ((164, 130, "rows of part 1"), (298, 80, "part 2"), (382, 62, "part 3"), (448, 50, "…")):
        sheet.box(x, 104, width, 36, words, "read")
    sheet.box(604, 166, 142, 36, "what was written", "write")
    for x, begin in ((294, 324), (378, 398), (444, 472)):
        sheet.arrow((x, 103), (begin + 8, 88))
    sheet.line(162, 86, 162, 140, dashed=True)
    sheet.line(602, 86, 602, 202, dashed=True)
    sheet.arrow((100, 226), (746, 226))
    sheet.text(8, 231, "time", "muted", size=14)
    return sheet


def overlap(colours: dict[str, str]) -> Sheet:
    """A step of two ranks over time: sums of gradients beside the backward."""
    sheet = Sheet(760, 330, colours)
    compute = ((84, 148, "forward, loss"), (234, 96, "block 2"), (332, 96, "block 1"), (430, 96, "block 0"),
               (528, 66, "embed."), (662, 84, "AdamW"))  # fmt: skip
    sums = ((336, 80, "bucket 0"), (434, 80, "bucket 1"), (600, 52, "last"))
    for x in (95, 376, 474, 626):
        sheet.line(x, 122, x, 220, dashed=True)
    for rank in range(2):
        y = 34 + 132 * rank
        sheet.text(8, y + 25, f"rank {rank}", size=14)
        sheet.text(8, y + 76, "sums", "muted", size=14)
        for x, width, words in compute:
            sheet.box(x, y, width, 38, words)
        sheet.box(84, y + 54, 22, 34, "n", "write")
        for x, width, words in sums:
            sheet.box(x, y + 54, width, 34, words, "write")
            sheet.arrow((x - 12, y + 38), (x - 12, y + 71), (x - 2, y + 71))
        sheet.arrow((652, y + 71), (676, y + 71), (676, y + 40))
    sheet.text(234, 24, "backward", "muted", size=14)
    sheet.arrow((84, 292), (750, 292))
    sheet.text(8, 297, "time", "muted", size=14)
    sheet.text(
        84, 318, "n: the labels of all ranks. The last bucket is what the backward cannot hide.", "muted", size=14
    )
    return sheet


# the page that shows each drawing, by its name
DRAWINGS = {
    "kernels.md": (pipeline, accesses, block, step, waits),
    "numba-cuda.md": (parts, tiles),
    "house.md": (rooms,),
    "scaling.md": (ranks, overlap),
    "hierarchical-memory.md": (tiers, device, segment, bus),
}


def files() -> dict[str, str]:
    """The text of every file, by its name: that of the page, then that of the drawing."""
    return {
        f"{page.removesuffix('.md')}-{draw.__name__}{suffix}.svg": draw(colours).svg()
        for page, drawings in DRAWINGS.items()
        for draw in drawings
        for suffix, colours in (("", LIGHT), ("-dark", DARK))
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise SystemExit("usage: python docs/drawings.py FOLDER")
    for name, text in files().items():
        (Path(arguments[0]) / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
