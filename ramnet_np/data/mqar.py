"""Multi-query associative recall (MQAR): the task of Zoology on which the paper measures what a memory can hold.

A sequence shows N pairs (key, value), then asks for each key once more. At a query the label is the key's value; every
other position is ignored. With 3 pairs (k v), queries marked ? and random tokens marked `.`:

    position  0 1 2 3 4 5 6 7 8 9 10 ...
    ids       k v K V x y . . K . x  ...
    labels                    V   y  ...        -100 elsewhere

Queries stand at even offsets 2g behind the pairs. The offsets g of one sequence are drawn one after the other, without
replacement, from the power law p(i) ~ a * i**(a - 1), i = g + 1 = 1, 2, ...: most keys return soon, some after a long
gap, as repeated word pairs do in text. The j-th key takes the j-th offset drawn.

Source: paper section 5.1; Arora et al., "Zoology" (arXiv 2312.04927), section 4 and appendix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.checks import check_count, check_real, check_seed

IGNORED = -100
MOST_POWER = 10  # far beyond an even spread, and p(i) is finite

Setting = tuple[int, int, int]  # pairs, length, examples

TRAIN_SETTINGS: dict[str, tuple[Setting, ...]] = {
    "zoology": ((4, 64, 100_000), (8, 128, 20_000), (16, 256, 20_000), (32, 256, 20_000), (64, 256, 20_000)),
    "demo": ((8, 64, 50_000),),
}
TEST_SETTINGS: dict[str, tuple[Setting, ...]] = {
    "zoology": (
        (4, 64, 1000),
        (8, 64, 1000),
        (16, 64, 1000),
        (32, 128, 1000),
        (64, 256, 1000),
        (128, 512, 1000),
        (256, 1024, 1000),
    ),
    "demo": ((8, 64, 1000),),
}

_TRAIN, _TEST, _VALIDATION = 0, 1, 3  # which stream of random numbers a set is drawn from; 2 is the demo's


class Examples(NamedTuple):
    """Token ids and labels of a set of sequences."""

    ids: NDArray[np.int32]  # (N, T)
    labels: NDArray[np.int32]  # (N, T); IGNORED where nothing is asked


@dataclass(frozen=True)
class MQARSettings:
    """What to recall: the vocabulary and the sets of sequences to train and test on."""

    vocab: int = 8192
    """Number of tokens. Keys are 1 .. vocab/2 - 1, values vocab/2 .. vocab - 1."""
    power: float = 0.01
    """Exponent a of the gap law p(i) ~ a * i**(a - 1): near 0 most queries come early, 1 spreads them evenly."""
    train: tuple[Setting, ...] = TRAIN_SETTINGS["zoology"]
    """Training sets, three numbers each: pairs, length, examples."""
    test: tuple[Setting, ...] = TEST_SETTINGS["zoology"]
    """Held-out sets, three numbers each: pairs, length, examples. No list of pairs occurs in both."""

    def __post_init__(self) -> None:
        for name, sets in (("train", self.train), ("test", self.test)):
            if not sets:
                raise ValueError(f"data.{name} must hold at least one set (pairs, length, examples), got none")
            for one in sets:
                if not isinstance(one, list | tuple) or len(one) != 3:
                    words = "must hold sets of three numbers, pairs, length, examples"
                    raise ValueError(f"data.{name} {words}, got {one!r}")
                _check(*one, self.vocab, self.power)
            names = setting_names(sets)  # results have one number for each
            if repeated := [setting for setting in names if names.count(setting) > 1]:
                raise ValueError(f"data.{name} must hold a setting once, got {repeated[0]!r} twice")


def gap_distribution(length: int, pairs: int, power: float = 0.01) -> NDArray[np.float64]:
    """Probability of each offset g = 0 .. S-1 for the first query drawn; S = (length - 2 * pairs) // 2 are free.

        p(g) = a * (g + 1)**(a - 1) / sum

    >>> gap_distribution(length=10, pairs=2, power=1.0).tolist()  # a = 1: even
    [0.3333333333333333, 0.3333333333333333, 0.3333333333333333]
    """
    p = np.arange(1, (length - 2 * pairs) // 2 + 1) ** (power - 1.0)
    return p / p.sum()


def mqar_examples(
    pairs: int,
    length: int,
    examples: int,
    *,
    vocab: int = 8192,
    power: float = 0.01,
    seed: int | np.random.SeedSequence = 0,
) -> Examples:
    """Draw MQAR sequences; the same arguments give the same bits.

    Returns ids (N, T) int32 and labels (N, T) int32 with N = ``examples``, T = ``length``. ValueError or TypeError for
    sizes that do not fit.
    Cost: O(N * (T log T + pairs**2)); 100,000 sequences of length 64 with 4 pairs take about a second.
    Source: paper section 5.1.

    >>> ids, labels = mqar_examples(pairs=2, length=12, examples=1, vocab=32, seed=1)
    >>> [int(i) for i in ids[0]]
    [8, 16, 7, 30, 2, 0, 7, 24, 8, 17, 26, 10]
    >>> {int(t): int(labels[0, t]) for t in range(12) if labels[0, t] != -100}  # key 7 recalls 30, key 8 recalls 16
    {6: 30, 8: 16}
    """
    _check(pairs, length, examples, vocab, power)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    half = vocab // 2
    keys = 1 + _distinct(rng, examples, pairs, half - 1)
    values = half + _distinct(rng, examples, pairs, vocab - half)
    queries = 2 * pairs + 2 * _weighted_distinct(rng, examples, pairs, gap_distribution(length, pairs, power))

    ids = rng.integers(vocab, size=(examples, length), dtype=np.int32)  # whatever is not overwritten stays random
    labels = np.full((examples, length), IGNORED, dtype=np.int32)
    ids[:, 0 : 2 * pairs : 2] = keys
    ids[:, 1 : 2 * pairs : 2] = values
    np.put_along_axis(ids, queries, keys, axis=1)
    np.put_along_axis(labels, queries, values, axis=1)
    return Examples(ids, labels)


def mqar_data(settings: MQARSettings, seed: int = 0) -> tuple[list[Examples], list[Examples]]:
    """The training sets and the test sets of ``settings``, in their order.

    Train and test are drawn from separate streams (spawn keys of one ``SeedSequence``). A test sequence whose list of
    pairs also opens a training sequence is drawn again, from a further stream, until none is left: disjoint, and still
    the same bits for the same seed.

    >>> train, test = mqar_data(MQARSettings(vocab=64, train=((2, 16, 30),), test=((2, 16, 10), (3, 20, 5))), seed=3)
    >>> [e.ids.shape for e in train], [e.ids.shape for e in test]
    ([(30, 16)], [(10, 16), (5, 20)])
    """
    check_seed(seed)
    train = [_draw(settings, setting, seed, (_TRAIN, i)) for i, setting in enumerate(settings.train)]
    return train, _draw_disjoint(settings, settings.test, train, seed, _TEST)


def mqar_validation(settings: MQARSettings, train: Sequence[Examples], examples: int, seed: int = 0) -> list[Examples]:
    """``examples`` more sequences of every training setting, to choose by: neither trained nor tested on.

    ``train``: the training sets, as :func:`mqar_data` returns them. The stream is a third one, and no list of pairs
    occurs in both. ValueError where the vocabulary is too small for that.

    >>> settings = MQARSettings(vocab=64, train=((2, 16, 30), (3, 20, 9)), test=((2, 16, 10),))
    >>> [e.ids.shape for e in mqar_validation(settings, mqar_data(settings)[0], examples=5)]
    [(5, 16), (5, 20)]
    """
    held_out = [(pairs, length, examples) for pairs, length, _ in settings.train]
    return _draw_disjoint(settings, held_out, train, seed, _VALIDATION)


def _draw_disjoint(
    settings: MQARSettings, wanted: Sequence[Setting], train: Sequence[Examples], seed: int, stream: int
) -> list[Examples]:
    """Sets of the ``wanted`` settings, none of whose lists of pairs opens a training sequence."""
    seen = {_pair_list(row, pairs) for (pairs, _, _), s in zip(settings.train, train, strict=True) for row in s.ids}
    sets = []
    for i, setting in enumerate(wanted):
        pairs, length, _ = setting
        drawn = _draw(settings, setting, seed, (stream, i))
        attempt = 0
        while (repeated := _repeated(drawn.ids, pairs, seen)).any():
            attempt += 1
            if attempt > 100:
                raise ValueError(
                    f"no held-out sequences of {pairs} pairs can be kept apart from the training ones at vocab "
                    f"{settings.vocab}; expected a larger vocab or fewer training examples"
                )
            redrawn = _draw(settings, (pairs, length, int(repeated.sum())), seed, (stream, i, attempt))
            drawn.ids[repeated], drawn.labels[repeated] = redrawn
        sets.append(drawn)
    return sets


def setting_names(settings: Sequence[Setting]) -> list[str]:
    """What held-out sets are called in results.

    >>> setting_names(TEST_SETTINGS["demo"])
    ['8 pairs, length 64']
    """
    return [f"{pairs} pairs, length {length}" for pairs, length, _ in settings]


def _draw(settings: MQARSettings, setting: Setting, seed: int, stream: tuple[int, ...]) -> Examples:
    pairs, length, examples = setting
    sequence = np.random.SeedSequence(seed, spawn_key=stream)
    return mqar_examples(pairs, length, examples, vocab=settings.vocab, power=settings.power, seed=sequence)


def _pair_list(row: NDArray[np.int32], pairs: int) -> bytes:
    return row[: 2 * pairs].tobytes()


def _repeated(ids: Iterable[NDArray[np.int32]], pairs: int, seen: set[bytes]) -> NDArray[np.bool_]:
    return np.array([_pair_list(row, pairs) in seen for row in ids])


def _distinct(rng: np.random.Generator, rows: int, count: int, below: int) -> NDArray[np.int32]:
    """(rows, count) integers in [0, below), each row a uniform draw without replacement, in random order.

    Floyd's algorithm, all rows at once: step j draws x from [0, j]; a row that has x already takes j, which it cannot
    have. Every set comes out equally likely at O(count**2) a row, whatever ``below``; a shuffle then frees the order.
    """
    drawn = np.empty((rows, count), dtype=np.int32)
    for column, j in enumerate(range(below - count, below)):
        x = rng.integers(j + 1, size=rows, dtype=np.int32)
        taken = (drawn[:, :column] == x[:, None]).any(axis=1)
        drawn[:, column] = np.where(taken, j, x)
    return rng.permuted(drawn, axis=1)


def _weighted_distinct(rng: np.random.Generator, rows: int, count: int, p: NDArray[np.float64]) -> NDArray[np.int64]:
    """(rows, count) indices into ``p``: drawn one after the other without replacement, in the order drawn.

    Exponential clocks: item i rings after E_i / p_i, E_i ~ Exp(1). The first to ring is i with probability p_i, and
    what is left, being memoryless, is the same race among the others: sorting the clocks is the sequential draw.
    """
    clocks = rng.standard_exponential((rows, len(p))) / p
    first = np.argpartition(clocks, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(clocks, first, axis=1).argsort(axis=1)
    return np.take_along_axis(first, order, axis=1)


def _check(pairs: int, length: int, examples: int, vocab: int, power: float) -> None:
    for name, value in (("pairs", pairs), ("length", length), ("examples", examples), ("vocab", vocab)):
        check_count(name, value)
    if length < 4 * pairs:
        raise ValueError(
            f"length must be at least {4 * pairs} for {pairs} pairs and {pairs} queries at even offsets, got {length}"
        )
    if vocab // 2 - 1 < pairs:
        raise ValueError(
            f"vocab must be at least {2 * (pairs + 1)} for {pairs} distinct keys (1 .. vocab/2 - 1), got {vocab}"
        )
    check_real("power", power)
    if not 0 < power <= MOST_POWER:
        raise ValueError(f"power must be above 0 and at most {MOST_POWER}, got {power}")


MQAR_PRESETS: dict[str, MQARSettings] = {
    "zoology": MQARSettings(),
    "demo": MQARSettings(vocab=256, train=TRAIN_SETTINGS["demo"], test=TEST_SETTINGS["demo"]),
}
