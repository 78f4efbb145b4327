"""Needles: facts in sentences of our own, planted in a book and asked for much later, with words to choose from.

    planted   Mark this: the word that opens the green gate is copper.
    asked     What is the word that opens the green gate? The word that opens the green gate is
    answers   copper, silver, velvet, ...        the likeliest of them is the model's answer

A guess is right once in as many times as there are words. After the manner of RULER's single needle (arXiv
2404.06654), but scored by likelihood, so that small models compare, which follow no order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.data.checks import check_count

WORDS = (
    "copper", "silver", "velvet", "winter", "garden", "candle", "harvest", "river",
    "anchor", "ribbon", "marble", "thunder", "lantern", "meadow", "feather", "island",
)  # fmt: skip
COLOURS = ("green", "red", "white", "black", "blue", "yellow", "brown", "grey")
PLACES = ("gate", "chest", "tower", "cabin", "mill", "cellar", "chapel", "stable")

FACT = "\n\nMark this: the word that opens the {place} is {word}.\n\n"
QUESTION = "\n\nWhat is the word that opens the {place}? The word that opens the {place} is"


class Needle(NamedTuple):
    """A fact, how it is asked for, and which of ``WORDS`` is right."""

    fact: str
    question: str
    answer: int


def make_needles(count: int, seed: int) -> list[Needle]:
    """Needles about different places, each with another word. ValueError for more than there are words.

    >>> needle = make_needles(2, seed=0)[0]
    >>> needle.fact.strip().endswith(f" is {WORDS[needle.answer]}."), needle.question.endswith(" is")
    (True, True)
    """
    check_count("count", count, 1, len(WORDS))
    rng = np.random.default_rng(seed)
    places = [f"{colour} {place}" for colour in COLOURS for place in PLACES]
    needles = []
    for place, answer in zip(rng.permutation(places)[:count], rng.permutation(len(WORDS))[:count], strict=True):
        fact = FACT.format(place=place, word=WORDS[answer])
        needles.append(Needle(fact, QUESTION.format(place=place), int(answer)))
    return needles
