"""Text whose facts must be recalled: what ``ramnet-np train text`` trains on when it is given no file.

A line tells a few facts and then repeats them in another order; the next line has others:

    Tom: fox. Ada: owl. Max: hen. Ada: owl. Max: hen. Tom: fox.

Who goes with what is drawn anew for each line, so nothing but the line itself says what follows the second "Max: ". The
first letter of the animal is the recall, the others follow from it.
"""

from __future__ import annotations

import numpy as np

# Names end in different letters and animals begin with different ones: one byte tells each apart.
NAMES = ("Ada", "Bob", "Eric", "Fred", "Jane", "Olaf", "Greg", "Leah", "Heidi", "Mick", "Paul", "Tom", "Ann", "Otto")
ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "jay", "kid", "lynx", "mole", "newt", "owl")


def facts_text(lines: int, facts: int = 4, seed: int = 0) -> bytes:
    r"""``lines`` lines of ``facts`` facts each, told once and repeated once in another order. ASCII.

    >>> facts_text(lines=1, facts=2, seed=0)
    b'Fred: cat. Eric: mole. Fred: cat. Eric: mole.\n'
    """
    for name, value, high in (("lines", lines, None), ("facts", facts, len(NAMES))):
        if value < 1 or (high is not None and value > high):
            raise ValueError(f"{name} must be {'at least 1' if high is None else f'between 1 and {high}'}, got {value}")
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(lines):
        names, animals = (rng.permutation(len(NAMES))[:facts] for _ in range(2))
        told = [f"{NAMES[n]}: {ANIMALS[a]}." for n, a in zip(names, animals, strict=True)]
        text.append(" ".join([*told, *(told[i] for i in rng.permutation(facts))]) + "\n")
    return "".join(text).encode("ascii")


def recalled(text: bytes) -> np.ndarray:
    """Where a line of :func:`facts_text` repeats a fact: positions of the bytes that begin a recalled animal.

    >>> text = b"Tom: fox. Ada: owl. Ada: owl. Tom: fox.\\n"
    >>> [chr(text[i]) for i in recalled(text)]
    ['o', 'f']
    """
    positions, start = [], 0
    for line in text.split(b"\n"):
        begins = [i + 2 for i in range(len(line) - 2) if line[i : i + 2] == b": "]
        positions += [start + i for i in begins[len(begins) // 2 :]]
        start += len(line) + 1
    return np.array(positions, dtype=np.int64)
