"""The running text of the course, and the small language model that has read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ramnet_np import RAMState
from ramnet_np.model import RAMNet, preset

FACTS = Path(__file__).parent.parent / "data" / "facts"
TEXT = "TomFox. AdaOwl. AnnHen. "  # what the model of notebooks 1 and 9 reads
PEOPLE = {"Tom": "Fox", "Ada": "Owl", "Ann": "Hen"}

KEY, RADIX = 16, 4  # numbers in the key of a name, values of a digit


def key(name: str) -> np.ndarray:
    """(16,) a vector of length 1 that stands for a name: random, and always the same for the same name."""
    k = np.random.default_rng([3, *name.encode()]).standard_normal(KEY)
    return k / np.linalg.norm(k)


def address_logits(keys: np.ndarray, U: int) -> np.ndarray:
    """(..., U, 4) from keys (..., 16), by a random matrix that is always the same."""
    W = np.random.default_rng(1).standard_normal((U, RADIX, KEY))
    return np.einsum("upd,...d->...up", W, keys)


def facts_model() -> RAMNet:
    """The model in data/facts, read with NumPy alone: a header in JSON, then the numbers of one array after the other.

    4000 steps on lines of three facts (``ramnet-np train text``); notebook 10 trains it.
    """
    raw = (FACTS / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    params = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        params[name] = np.frombuffer(raw[start + begin : start + end], np.float32).reshape(entry["shape"]).copy()
    return RAMNet(preset("text-small"), params=params)


def read_text(model: RAMNet, text: str) -> list[RAMState]:
    """The memories of the model's layers after it has read ``text``."""
    _, state = model.forward_with_state(_ids(text), backend="numpy")
    return state


def next_letter(model: RAMNet, state: list[RAMState], text: str, position: int) -> np.ndarray:
    """(256,) probabilities of the letter after ``text``, whose first letter is number ``position``. ``state`` stays."""
    state = [RAMState(s.slots.copy(), s.mass.copy()) for s in state]
    for t, byte in enumerate(_ids(text)[0], start=position):
        logits = model.step(np.array([[byte]]), state, np.array([t]), backend="numpy")[0, 0]
    p = np.exp(logits - logits.max())
    return p / p.sum()


def answer(model: RAMNet, state: list[RAMState], name: str, position: int = len(TEXT), length: int = 3) -> str:
    """What the model says after ``name``: the likeliest letter, ``length`` times."""
    said = ""
    for _ in range(length):
        said += chr(int(next_letter(model, state, name + said, position).argmax()))
    return said


def _ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)[None]
