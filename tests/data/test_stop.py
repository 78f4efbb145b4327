"""Stop strings give the same text however it is cut, and hold back no more than they must."""

from itertools import pairwise

import numpy as np
import pytest

from ramnet_np.data.stop import StopScan

CASES = [
    ("a quick fox", ["fox"], "a quick "),
    ("aaab", ["aab"], "a"),
    ("xabcd", ["abcd", "bc"], "xa"),
    ("xabc", ["abc", "bc"], "x"),
    ("no stop her", ["here"], "no stop her"),
    ("fox", ["fox"], ""),
    ("ababac", ["abac", "zz"], "ab"),
    ("é\n\nb", ["\n\n"], "é"),
    ("text", [], "text"),
]


@pytest.mark.parametrize(("text", "stop", "expected"), CASES)
def test_any_cuts_give_the_same_text(text, stop, expected):
    rng = np.random.default_rng(0)
    for _ in range(30):
        cuts = [0, *sorted(rng.integers(0, len(text) + 1, rng.integers(0, 6)).tolist()), len(text)]
        scan = StopScan(stop)
        got = "".join(scan.feed(text[a:b]) for a, b in pairwise(cuts))
        assert got + scan.end() == expected
        assert scan.stopped == (expected != text)


def test_only_what_may_become_a_stop_string_is_held_back():
    scan = StopScan(["ab!", "b?"])
    assert [scan.feed(letter) for letter in "xab"] == ["x", "", ""]
    assert scan.feed("b") == "ab"  # the second b may still begin "b?"
    assert scan.feed("?") == ""
    assert scan.stopped
    assert scan.feed("more") + scan.end() == ""


@pytest.mark.parametrize(
    ("stop", "error", "words"),
    [
        ("END", TypeError, "stop must be a list of strings, got the string 'END'"),
        (["a", ""], ValueError, "stop must hold strings of at least one character, got ''"),
        ([b"a"], TypeError, "stop must hold strings, got b'a'"),
    ],
)
def test_a_wrong_stop_is_named(stop, error, words):
    with pytest.raises(error, match=words):
        StopScan(stop)
