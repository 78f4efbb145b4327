"""Proper names in a book, and how far back each was last mentioned: what a long memory is for.

    ... Kim stood up. | 40,000 bytes | ... and Kim laughed ...
        mention                             mention, 40,000 bytes after the one before

No list of names is needed. A word is taken for a name of its book where it has a capital within sentences, is never
written small, occurs often enough, and is not found in many other books, as Mrs and London are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

LEAST = 8  # mentions in a book
IN_BOOKS = 1 / 3  # of the books that may have the word, at most

_WORD = re.compile(rb"[A-Za-z]+(?:\xc3[\x80-\xbf][A-Za-z]*)*")
_WITHIN = re.compile(rb"[a-z,;] $")  # what stands before a word that begins no sentence


class Mention(NamedTuple):
    """A name in a text."""

    name: bytes
    begin: int  # byte
    distance: int | None  # bytes since the end of the mention before; None: the first one

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.begin + len(self.name)


def mentions(books: Mapping[str, bytes], least: int = LEAST) -> dict[str, list[Mention]]:
    """The mentions of all names in each book, in order.

    ``books``: text by the book's name; ``least``: mentions that a name needs.

    >>> book = b"There Kim sat. " + b"Then Kim ran, and Kim fell. " * 4
    >>> [(m.name, m.begin, m.distance) for m in mentions({"a": book}, least=3)["a"]][:3]
    [(b'Kim', 6, None), (b'Kim', 20, 11), (b'Kim', 33, 10)]
    """
    names = {book: _names(text, least) for book, text in books.items()}
    in_books = Counter(name for found in names.values() for name in found)
    most = max(1, int(len(books) * IN_BOOKS))
    result = {}
    for book, text in books.items():
        last: dict[bytes, int] = {}
        result[book] = list[Mention]()
        for match in _WORD.finditer(text):
            word = match.group()
            if word in names[book] and in_books[word] <= most:
                distance = match.start() - last[word] if word in last else None
                result[book].append(Mention(word, match.start(), distance))
                last[word] = match.end()
    return result


def _names(text: bytes, least: int) -> set[bytes]:
    """Words of a book that are written as names are."""
    counts, within = Counter[bytes](), Counter[bytes]()
    for match in _WORD.finditer(text):
        counts[match.group()] += 1
        if _WITHIN.search(text, max(0, match.start() - 2), match.start()):
            within[match.group()] += 1
    return {
        word for word, count in counts.items()
        if count >= least and len(word) > 2 and word[:1].isupper() and not word.isupper()
        and word.lower() not in counts and 2 * within[word] >= count
    }  # fmt: skip
