"""Pictures that move, sliders and questions. All of them are HTML that holds what it shows: they need no kernel."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

DPI = 80
COLOURS = 96  # of a picture: enough for lines, text and shades


def movie(draw: Callable[[Any], Figure], frames: Iterable[Any], *, alt: str, seconds: float = 0.5) -> HTML:
    """``draw(frame)`` for every frame, as one animation; readers who want no motion see the last frame.

    ``alt``: what the animation shows, in words; ``seconds``: of every frame (the last one stays three times as long).
    """
    images = [_picture(draw(frame)) for frame in frames]
    shared = _palette(images)
    shown = [image.quantize(palette=shared, dither=Image.Dither.NONE) for image in images]
    buffer = BytesIO()
    each = round(1000 * seconds)
    shown[0].save(
        buffer, "GIF", save_all=True, append_images=shown[1:], loop=0,
        duration=[each] * (len(shown) - 1) + [3 * each], optimize=True,
    )  # fmt: skip
    still = _data("png", _png(images[-1]))
    return HTML(
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img src="{_data("gif", buffer.getvalue())}" alt="{escape(alt)}"></picture>'
    )


STYLE = "display:flex;flex-wrap:wrap;gap:.3em 2em;margin:.3em 0 .6em"
MOVE = (
    "let f=this.closest('.course-frames'),k=0;"
    "f.querySelectorAll('input').forEach(x=>{k=k*(+x.max+1)+ +x.value;"
    "x.nextElementSibling.textContent=x.dataset.names.split('|')[x.value]});"
    "f.querySelectorAll('img').forEach((x,i)=>x.hidden=i!=k)"
)


def slider(draw: Callable[..., Figure], *, start: Mapping[str, Any] | None = None, **values: Sequence[Any]) -> HTML:
    """``draw(name=value, ...)`` for every combination of the values, and a slider a name that chooses among them.

    ``start``: the values that are shown first; left out: the first of each. Every frame is kept in the page: some
    thirty combinations of a small figure are 200 to 300 KB.
    """
    first = {name: list(choices).index((start or {}).get(name, choices[0])) for name, choices in values.items()}
    rows = []
    for name, choices in values.items():
        shown, names = name.replace("_", " "), "|".join(_short(value) for value in choices)
        rows.append(
            f'<label>{escape(shown)} <input type="range" min="0" max="{len(choices) - 1}" value="{first[name]}" '
            f'data-names="{escape(names)}" aria-label="{escape(shown)}" oninput="{escape(MOVE)}"> '
            f"<output>{escape(_short(choices[first[name]]))}</output></label>"
        )
    images, chosen = [], tuple(choices[first[name]] for name, choices in values.items())
    for combination in product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        said = ", ".join(f"{name} {_short(value)}" for name, value in settings.items())
        hidden = "" if combination == chosen else " hidden"
        png = _png(_picture(draw(**settings)))
        images.append(f'<img src="{_data("png", png)}" alt="{escape(said)}"{hidden}>')
    return HTML(f'<div class="course-frames"><div style="{STYLE}">{"".join(rows)}</div>{"".join(images)}</div>')


def predict(question: str, answers: Mapping[str, str]) -> HTML:
    """A question before a figure. ``answers``: what one may say -> what to reply, folded until it is chosen."""
    choices = "".join(
        f"<li><details><summary>{escape(said)}</summary>{escape(reply)}</details></li>"
        for said, reply in answers.items()
    )
    return HTML(f"<p><b>What do you expect?</b> {escape(question)}</p><ul>{choices}</ul>")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _picture(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=DPI)
    return Image.open(buffer).convert("RGB")


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.quantize(palette=_palette([image]), dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _palette(images: Sequence[Image.Image]) -> Image.Image:
    """The colours that most pixels of the images have, thin lines too: figures are flat."""
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images]).astype(np.int64)
    colours, counts = np.unique(pixels @ [65536, 256, 1], return_counts=True)
    common = colours[np.argsort(-counts, kind="stable")[:COLOURS]]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.stack([common >> 16, common >> 8 & 255, common & 255], axis=1).ravel().tolist())
    return palette


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
