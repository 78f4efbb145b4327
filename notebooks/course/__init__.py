"""What the notebooks share. One line at the top of a notebook brings what it uses::

    from course import *

Everything here runs with NumPy and Matplotlib alone, so that the first six notebooks run in a browser.
"""

import numpy as np
from IPython import get_ipython

from course.beam import beam_steps
from course.checks import check, check_mine, mine, solution
from course.show import movie, predict, slider
from course.story import PEOPLE, TEXT, address_logits, answer, facts_model, key, next_letter, read_text
from ramnet_np import plot

__all__ = [
    "PEOPLE", "TEXT", "address_logits", "answer", "beam_steps", "check", "check_mine", "facts_model", "key", "mine",
    "movie", "next_letter", "np", "plot", "predict", "read_text", "slider", "solution",
]  # fmt: skip

if get_ipython() is not None:
    get_ipython().run_line_magic("matplotlib", "inline")
    np.set_printoptions(precision=3, suppress=True)
