"""The CPU's results are those recorded, to the last bit: a change of structure alone must not move them.

Recorded are the operation on both CPU backends, every mixer within a small model, training runs as the command starts
them, and a run of an older version that must load, write text and be resumed as it was then: ``same_bits_cases.py``.

Bits depend on the machine: NumPy's exponentials on its vector unit, matrix products on the BLAS kernel chosen for it,
Numba's sums on how wide its compiler makes them. So ``machine_canary.py`` hashes such arithmetic on fixed inputs. Where
this machine's canary is the recorded one, every bit must be; elsewhere shape, dtype and three numbers of each array are
compared at a tolerance, and whole numbers (slots, tokens) still exactly. BLAS runs on one thread: with more it cuts its
sums elsewhere, and the bits would depend on how many cores there are.

    python -m tests.test_same_bits                say where this machine's canary is another
    python -m tests.test_same_bits --write        record the results of the code as it is

Write only when a change of results is intended, and say in the changelog which results change and why. The old run
stays as the older version left it: it is written only where it is missing.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.machine_canary import COMPILED, canary, digest
from tests.same_bits_cases import OLD_RUN, OTHERS, RAM, SUBJECTS, Subject, choices, write_old_run

HERE = Path(__file__).parent
RECORD = HERE / "same_bits" / "record.json"
DIGITS = {"float32": 7, "float64": 12}  # of a recorded number
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of an array's largest element
EVERY: dict[str, Subject] = {name: subject for kind in SUBJECTS.values() for name, subject in kind.items()}


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1, user_api="blas"):
        yield


def summary(array: Any, dtype: str) -> str:
    """Dtype and shape; of real numbers also their sum, a random projection and the largest size; a hash of the bits."""
    array = np.asarray(array)
    words = [array.dtype.str[1:], "x".join(map(str, array.shape)) or "1"]
    if array.dtype.kind == "f":
        x = array.astype(np.float64).ravel()
        projection = x * np.random.default_rng(x.size).standard_normal(x.size)
        numbers = x.sum(), projection.sum(), np.abs(x).max(initial=0)
        words += [f"{number:.{DIGITS[dtype]}g}" for number in numbers]
    return " ".join([*words, digest(array)])


def summaries(subject: Subject, variant: str) -> dict[str, str]:
    return {name: summary(array, subject.dtype) for name, array in subject.results(variant).items()}


def complaints(now: dict[str, str], then: dict[str, str], dtype: str, exact: bool) -> list[str]:
    """What is not as recorded, a line for each array; ``exact``: to the last bit."""
    found = [f"{name}: in one of them only" for name in now.keys() ^ then.keys()]
    for name in now.keys() & then.keys():
        (*words, bits), (*expected, bits_then) = now[name].split(), then[name].split()
        if not near(words, expected, dtype):
            found.append(f"{name}: {' '.join(words)}, recorded {' '.join(expected)}")
        elif (exact or words[0][0] != "f") and bits != bits_then:
            found.append(f"{name}: near, but of other bits")
    return sorted(found)


def near(now: list[str], then: list[str], dtype: str) -> bool:
    """Whether a sum errs by no more than all its terms may, a projection by no more than chance adds up of that."""
    if now[:2] != then[:2]:
        return False
    size = math.prod(map(int, now[1].split("x")))
    terms = (size, math.sqrt(size), 1)[: len(now) - 2]
    allowed = [TOLERANCE[dtype] * float(then[-1]) * n for n in terms]
    return all(abs(float(a) - float(b)) <= most for a, b, most in zip(now[2:], then[2:], allowed, strict=True))


@functools.cache
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def each(kind: str) -> Any:
    """A test for every subject of that kind and variant of it."""
    pairs = [(name, variant) for name, subject in SUBJECTS[kind].items() for variant in subject.variants]
    return pytest.mark.parametrize(("name", "variant"), pairs, ids=map(" ".join, pairs))


def recorded(name: str, variant: str) -> dict[str, str]:
    """As ``summaries``: the numbers are those of the first variant, with a hash for each."""
    variants = EVERY[name].variants
    lines = {array: line.split() for array, line in record()["subjects"][name].items()}
    bits = variants.index(variant) - len(variants)
    return {array: " ".join([*words[: -len(variants)], words[bits]]) for array, words in lines.items()}


@functools.cache
def with_compiled_kernels() -> dict[str, dict[str, str]]:
    """``summaries`` of every subject on Numba, in a process that finds all kernels compiled.

    One that has compiled a parallel kernel itself may compute other bits with it than with the one that it leaves in
    the cache: so do, in float64, the kernel's sums whose order is the compiler's. So a first process only compiles.
    """
    command = [sys.executable, "-m", __spec__.name, "--numba"]
    for _ in range(2):
        process = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    return json.loads(process.stdout)


def other_arithmetic(variant: str) -> list[str]:
    """The parts of this machine's canary that are not as recorded; those of the compiler matter to Numba alone."""
    then, now = record()["canary"], canary()
    differ = [part for part in then.keys() | now.keys() if then.get(part) != now.get(part)]
    return sorted(part for part in differ if variant == "numba" or not part.startswith(COMPILED))


def assert_as_recorded(name: str, variant: str) -> None:
    subject, then, exact = EVERY[name], recorded(name, variant), not other_arithmetic(variant)
    found = complaints(summaries(subject, variant), then, subject.dtype, exact)
    if found and variant == "numba":
        found = complaints(with_compiled_kernels()[name], then, subject.dtype, exact)
    if found:
        pytest.fail(f"{name}, {variant}:\n  " + "\n  ".join(found), pytrace=False)


@each("operation")
def test_the_operation_gives_the_recorded_bits(name, variant):
    assert_as_recorded(name, variant)


@each("model")
def test_a_small_model_gives_the_recorded_bits(name, variant):
    assert_as_recorded(name, variant)


@each("run")
def test_a_training_run_ends_at_the_recorded_bits(name, variant):
    assert_as_recorded(name, variant)


@each("old run")
def test_an_old_run_loads_writes_and_is_resumed_to_the_recorded_bits(name, variant):
    assert_as_recorded(name, variant)


def test_every_subject_is_recorded_and_no_other():
    assert list(record()["subjects"]) == list(EVERY)


@pytest.mark.parametrize("name", RAM | OTHERS)
def test_no_slot_or_token_is_chosen_by_a_hair(name):
    """So that a machine that rounds otherwise chooses the same ones."""
    for shaken, still in zip(choices((RAM | OTHERS)[name], 1e-4), choices((RAM | OTHERS)[name], 0), strict=True):
        np.testing.assert_array_equal(shaken, still)


@pytest.mark.parametrize("dtype", DIGITS)
def test_one_other_bit_is_noticed_on_the_same_machine_and_a_wrong_number_on_any(dtype):
    x = np.random.default_rng(0).normal(size=(20, 30)).astype(dtype)

    def found(y: Any, exact: bool) -> list[str]:
        return complaints({"x": summary(y, dtype)}, {"x": summary(x, dtype)}, dtype, exact)

    one_bit, wrong, lost = x.copy(), x.copy(), x.copy()
    one_bit[3, 4] = np.nextafter(one_bit[3, 4], np.inf)
    wrong[3] *= 1 + 100 * TOLERANCE[dtype]
    lost[3, 4] = np.nan
    assert found(x, True) == found(x, False) == found(one_bit, False) == []
    assert found(one_bit, True) == ["x: near, but of other bits"]
    for y in (wrong, lost, x[::-1], x.T, x.astype(np.float16), x.astype(np.int64)):
        assert len(found(y, False)) == 1
    assert complaints({}, {"x": summary(x, dtype)}, dtype, True) == ["x: in one of them only"]


def test_another_slot_is_noticed_on_any_machine():
    now, then = ({"index": summary(np.array(slots), "float32")} for slots in ([0, 1, 2], [0, 2, 1]))
    assert complaints(now, then, "float32", False) == ["index: near, but of other bits"]


def write() -> None:
    """Record the results of the code as it is; the docstring of this file says when."""
    if not OLD_RUN.exists():
        write_old_run()
    subjects = {}
    for name, subject in EVERY.items():
        by_variant = [
            with_compiled_kernels()[name] if v == "numba" else summaries(subject, v) for v in subject.variants
        ]
        first, *others = by_variant
        subjects[name] = {
            array: " ".join([line, *(o[array].split()[-1] for o in others)]) for array, line in first.items()
        }
    RECORD.write_text(json.dumps({"canary": canary(), "subjects": subjects}, indent=0) + "\n", encoding="utf-8")
    print(f"{RECORD}: {RECORD.stat().st_size:,} bytes, {len(EVERY)} subjects")


if __name__ == "__main__":
    with threadpool_limits(1, user_api="blas"):
        if sys.argv[1:] == ["--write"]:
            write()
        elif sys.argv[1:] == ["--numba"]:
            print(json.dumps({name: summaries(s, "numba") for name, s in EVERY.items() if "numba" in s.variants}))
        else:
            print("other arithmetic than recorded:", ", ".join(other_arithmetic("numba")) or "none, bits are compared")
