"""Text whose facts must be recalled: what ``ramnet-np train text`` trains on when it is given no file.

A line tells a few facts, then repeats them in other orders; the next line has others:

    TomFox. AdaOwl. AnnHen. AdaOwl. AnnHen. TomFox. AnnHen. TomFox. AdaOwl.

Each line draws new pairs, so only the line itself says what follows the second "Ann". The first letter of the animal
is the recall, the others follow from it. The two stand together so that a key, the name's last letter, is the byte
before its value, as in MQAR; a gap between them can be learned as well, in more steps.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.data.checks import check_count, check_seed

# Names end in different letters and animals begin with different ones: one byte tells each apart.
NAMES = ("Ada", "Bob", "Eric", "Fred", "Jane", "Olaf", "Greg", "Leah", "Heidi", "Mick", "Paul", "Tom", "Ann", "Otto")
ANIMALS = ("Ant", "Bee", "Cat", "Dog", "Eel", "Fox", "Gnu", "Hen", "Jay", "Kid", "Lynx", "Mole", "Newt", "Owl")


def facts_text(lines: int, facts: int = 3, repeats: int = 2, seed: int = 0) -> bytes:
    r"""``lines`` lines of ``facts`` facts each, told once and repeated ``repeats`` times in other orders. ASCII.

    >>> facts_text(lines=1, facts=2, repeats=1, seed=0)
    b'FredCat. EricMole. FredCat. EricMole.\n'
    """
    for name, value, high in (("lines", lines, None), ("facts", facts, len(NAMES)), ("repeats", repeats, None)):
        check_count(name, value)
        if high is not None and value > high:
            raise ValueError(f"{name} must be between 1 and {high}, got {value}")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(lines):
        names, animals = (rng.permutation(len(NAMES))[:facts] for _ in range(2))
        told = [f"{NAMES[n]}{ANIMALS[a]}." for n, a in zip(names, animals, strict=True)]
        repeated = [told[i] for _ in range(repeats) for i in rng.permutation(facts)]
        text.append(" ".join([*told, *repeated]) + "\n")
    return "".join(text).encode("ascii")


def recall_positions(text: bytes) -> np.ndarray:
    r"""Where the lines of :func:`facts_text` repeat a fact: positions of the bytes that begin a recalled animal.

    >>> text = b"TomFox. AdaOwl. AdaOwl. TomFox.\n"
    >>> [chr(text[i]) for i in recall_positions(text)]
    ['O', 'F']
    """
    positions, start = [], 0
    for line in text.splitlines(keepends=True):
        known: set[bytes] = set()
        at = start
        for fact in line.split(b". "):
            begin = next((i for i in range(1, len(fact)) if fact[i : i + 1].isupper()), 0)
            if begin and fact[:begin] in known:
                positions.append(at + begin)
            known.add(fact[:begin])
            at += len(fact) + 2
        start += len(line)
    return np.array(positions, dtype=np.int64)
