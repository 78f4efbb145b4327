"""What the notebooks share: checking an exercise, and sliders above a figure. Run a notebook from its own folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.display import display
from matplotlib.figure import Figure


class _Open(Exception):
    """The exercise still has its dots."""


def check(test: Callable[[Any], None], answer: Any) -> None:
    """Run ``test(answer)``, which asserts what must hold; print whether the exercise is open or correct.

    An answer is open while it is ``...`` or, if it is a function, while it returns ``...``. A wrong answer raises the
    test's AssertionError.
    """
    number = test.__name__.rpartition("_")[2]
    if callable(answer):

        def asked(*args: Any, **kwargs: Any) -> Any:
            result = answer(*args, **kwargs)
            if result is ...:
                raise _Open
            return result
    else:
        asked = answer
    try:
        if answer is ...:
            raise _Open
        test(asked)
    except _Open:
        print(f"Exercise {number} is open: replace the dots in the cell above and run it again.")
    else:
        print(f"Exercise {number}: correct.")


def sliders(draw: Callable[..., Figure], **controls: tuple[float, float, float, float]) -> None:
    """Show ``draw(**start)``, and controls that draw it again; without a running kernel the first figure stays.

    ``controls``: name -> (start, lowest, highest, step); whole numbers make a slider of integers.
    """
    rows = []
    for name, (start, low, high, step) in controls.items():
        whole = all(isinstance(x, int) for x in (start, low, high, step))
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        rows.append(
            kind(value=start, min=low, max=high, step=step, description=name.replace("_", " "), continuous_update=False)
        )
    figure = display(draw(**{name: row.value for name, row in zip(controls, rows, strict=True)}), display_id=True)

    def redraw(change: Any) -> None:
        figure.update(draw(**{name: row.value for name, row in zip(controls, rows, strict=True)}))

    for row in rows:
        row.observe(redraw, "value")
    display(ipywidgets.VBox(rows))
