"""Where a generation stands, in a file: sequences that are gone on with later give the bits that they would have given.

A safetensors file: the state of every layer, the logits of the next token, its position and the tokens that were there.
Of a sparse memory it holds every slot that was written, those on the disk too, so that it is whole in itself.
Its metadata name the format, the model by a checksum of configuration and parameters, and a checksum of the arrays.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ramnet_np.contract import MemoryTiers
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.sparse_state import BLOCK, SparseRAMState
from ramnet_np.model.checkpoint import config_to_json
from ramnet_np.model.files import replacing, why
from ramnet_np.model.generation import Generation
from ramnet_np.model.settled import Weights
from ramnet_np.model.sparse import sparse_state, with_tiers
from ramnet_np.model.states import arrays_of, each_array, with_whole_windows
from ramnet_np.model.stepping import Standing, Stepper
from ramnet_np.model.streamed_file import Streamed, write_streamed

FORMAT = "ramnet-np generation 1"
_DTYPES = {
    "BOOL": "?",
    "I32": "i4",
    "I64": "i8",
    "F32": "f4",
    "F64": "f8",
}  # those of a state, by their names in a file


@on_gpu_of_arrays
def fingerprint(model: Any) -> str:
    """A checksum of the configuration, the dtype and the parameters of ``model``, a RAMNet.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> config = RAMNetConfig(vocab=16, width=8, layers=1, order=2)
    >>> fingerprint(RAMNet(config, seed=0)) == fingerprint(RAMNet(config, seed=1))
    False
    """
    params = {name: Streamed.of(on_host(array)) for name, array in model.params.items()}
    return _checksum(json.dumps(config_to_json(model.config), sort_keys=True), params)


def save_generation(path: str | PathLike[str], generation: Generation) -> None:
    """Write where ``generation`` stands. The file is whole or as it was before: OSError where it cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> from ramnet_np.model.sampling import Sampling
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> generation = Generation(model, np.array([[1, 2, 3]]))
    >>> with TemporaryDirectory() as folder:
    ...     save_generation(Path(folder) / "a.state", generation)
    ...     again = load_generation(Path(folder) / "a.state", model)
    >>> bool(generation.next(Sampling()) == again.next(Sampling()))
    True
    """
    now = generation.standing()
    arrays = {"logits": now.logits, "positions": now.positions, "seen": now.seen}
    for g, stepper in enumerate(now.steppers):
        arrays[f"{g}.rows"] = stepper.rows
        arrays |= {f"{g}.{n}": array for n, array in enumerate(arrays_of(stepper.state))}
    saved: dict[str, Streamed] = {}
    for name, array in arrays.items():
        if isinstance(array, SparseRAMState):
            saved |= _of_sparse(name, array)
        else:
            saved[name] = Streamed.of(_widened(on_host(array)))
    about = {"format": FORMAT, "model": fingerprint(generation.model), "sha256": _checksum(FORMAT, saved)}
    with replacing(Path(path)) as (partial,):
        write_streamed(partial, saved, about)


@on_gpu_of_arrays
def load_generation(
    path: str | PathLike[str],
    model: Any,
    *,
    backend: str | None = None,
    memory: MemoryTiers | None = None,
    weights: Weights | None = None,
) -> Generation:
    """The generation that :func:`save_generation` wrote, for the same ``model``; ``backend``: of the operation.

    ``weights``: as of Generation, which may be another than before. ``memory``: the tiers of its sparse memory, which
    may be others than before; a state of all slots becomes sparse.
    FileNotFoundError, OSError or ValueError, naming the file, for one that is missing, cut short, damaged, of another
    program or of another model.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> load_generation("nowhere", RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0))
    Traceback (most recent call last):
        ...
    FileNotFoundError: 'nowhere' must be a state of a generation, got no file
    """
    saved = _read(Path(path), model)
    xp = namespace_of(*model.params.values())
    is_sparse = any(name.endswith(".keys") for name in saved)
    pattern = None if is_sparse else _pattern(model, backend)
    steppers: list[Stepper] = []
    while (rows := saved.get(f"{len(steppers)}.rows")) is not None:
        prefix = f"{len(steppers)}."
        if is_sparse:
            state = _sparse_state(saved, prefix, sparse_state(model, rows.shape[0], memory))
        else:
            state = _state(saved, prefix, pattern)
            state = state if memory is None else with_tiers(state, memory, model.config)
        steppers.append(Stepper(model, _whole(rows), state, backend))
    logits = xp.asarray(_whole(saved["logits"])).astype(next(iter(model.params.values())).dtype)
    standing = Standing(steppers, logits, xp.asarray(_whole(saved["positions"])), xp.asarray(_whole(saved["seen"])))
    return Generation(model, backend=backend, standing=standing, memory=memory, weights=weights)


def _read(path: Path, model: Any) -> _Saved:
    """The arrays of a state of this model, known to be whole; they come from the file when they are asked for."""
    shown = repr(str(path))
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no file"
        raise FileNotFoundError(f"{shown} must be a state of a generation, got {got}")
    try:
        # left open while the arrays are needed: another program may put a new file in its place
        file = safe_open(path, framework="numpy")
        about = file.metadata() or {}
        if about.get("format") != FORMAT:
            got = about.get("format") or "a safetensors file of something else"
            raise ValueError(f"{shown} must be a state of a generation ({FORMAT}), got {got}")
        if about.get("model") != fingerprint(model):
            raise ValueError(f"{shown} must be a state of this model, got that of another one: other weights or dtype")
        saved = _Saved(shown, {name: _stored(file, name, shown) for name in file.keys()})  # noqa: SIM118 - no other way
    except SafetensorError as error:
        raise ValueError(f"{shown} must be a state of a generation, got a file cut short or of another kind") from error
    except OSError as error:
        raise OSError(f"{shown} could not be read: {why(error)}") from error
    if about.get("sha256") != _checksum(FORMAT, saved):
        raise ValueError(f"{shown} is damaged: its numbers have changed since it was written")
    _require_standing(saved, model.config.vocab)
    return saved


class _Saved(dict[str, Streamed]):
    """The arrays of a file, by their names. A ValueError names the file for one that it has not."""

    def __init__(self, shown: str, arrays: Mapping[str, Streamed]):
        super().__init__(arrays)
        self.shown = shown

    def __missing__(self, name: str) -> Streamed:
        raise ValueError(f"{self.shown} must be a whole state of a generation, got one without array {name!r}")


def _require_standing(saved: _Saved, vocab: int) -> None:
    """ValueError unless the arrays say where B sequences stand, each in one of the steppers."""
    names = itertools.takewhile(lambda name: name in saved, (f"{g}.rows" for g in itertools.count()))
    groups = [_whole(saved[name]) for name in names]
    are_lists = all(group.ndim == 1 and group.dtype.kind == "i" for group in groups)
    rows = np.concatenate([group.ravel() for group in groups] or [np.empty(0)])
    B = len(saved["positions"].shape) and saved["positions"].shape[0]
    wanted = {"positions": ((B,), "i"), "logits": ((B, vocab), "f"), "seen": ((B, vocab), "b")}
    for name, (shape, kind) in wanted.items():
        array = saved[name]
        if array.shape != shape or array.dtype.kind != kind:
            raise ValueError(
                f"{saved.shown} must be a whole state of a generation, got {name!r} of shape {array.shape}, "
                f"{array.dtype}, for {B} sequences and a vocabulary of {vocab}"
            )
    if B == 0 or not are_lists or not np.array_equal(np.sort(rows), np.arange(B)):
        raise ValueError(f"{saved.shown} must be a whole state of a generation, got {B} sequences with states {rows}")


def _stored(file: Any, name: str, shown: str) -> Streamed:
    """An array of an open file."""
    stored = file.get_slice(name)
    shape = tuple(stored.get_shape())
    if stored.get_dtype() not in _DTYPES:
        raise ValueError(f"{shown} must be a state of a generation, got numbers of type {stored.get_dtype()}")

    def blocks() -> Iterator[np.ndarray]:
        if not shape or shape[0] == 0:
            yield file.get_tensor(name)
        for start in range(0, shape[0] if shape else 0, BLOCK):
            yield stored[start : min(start + BLOCK, shape[0])]

    return Streamed(np.dtype(_DTYPES[stored.get_dtype()]), shape, blocks)


def _whole(array: Streamed) -> np.ndarray:
    return np.concatenate(list(array.blocks())) if array.shape else next(array.blocks())


def _state(saved: _Saved, prefix: str, pattern: Any) -> list[Any]:
    """The arrays under ``prefix`` in the places, of the dtypes and on the device of ``pattern``."""
    numbers = itertools.count()
    return each_array(
        lambda like: namespace_of(like).asarray(_whole(saved[f"{prefix}{next(numbers)}"])).astype(like.dtype), pattern
    )


def _sparse_state(saved: _Saved, prefix: str, empty: list[Any]) -> list[Any]:
    """As :func:`_state`, with the rows under ``prefix`` put into ``empty``, a sparse state of the model."""
    numbers = itertools.count()

    def filled(like: Any) -> Any:
        name = f"{prefix}{next(numbers)}"
        if not isinstance(like, SparseRAMState):
            return namespace_of(like).asarray(_whole(saved[name])).astype(like.dtype)
        keys, start = _keys(saved, name, like.shape), 0
        for rows in saved[f"{name}.values"].blocks():
            like.scatter(*map(like.xp.asarray, (keys[start : start + len(rows)], rows)))
            start += len(rows)
        return like

    return each_array(filled, empty)


def _keys(saved: _Saved, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The keys of the rows that are saved under ``name``; ValueError unless they fit a state of ``shape``."""
    keys, values = _whole(saved[f"{name}.keys"]), saved[f"{name}.values"]
    B, H, M, C = shape
    fit = keys.dtype == np.int64 and keys.ndim == 1 and values.shape == (len(keys), C + 1)
    if not (fit and np.unique(keys).size == keys.size and ((keys >= 0) & (keys < B * H * M)).all()):
        raise ValueError(
            f"{saved.shown} must be a whole state of a generation, got slots under {name!r} that are not distinct ones "
            f"of a state of shape {shape}"
        )
    return keys


def _of_sparse(name: str, state: SparseRAMState) -> dict[str, Streamed]:
    """The keys of the slots that were written, and their rows block by block."""
    keys = np.concatenate([on_host(keys) for keys, _ in state.blocks()] or [np.empty(0, dtype=np.int64)])
    values = Streamed(
        state.dtype, (len(keys), state.shape[3] + 1), lambda: (on_host(rows) for _, rows in state.blocks())
    )
    return {f"{name}.keys": Streamed.of(keys), f"{name}.values": values}


def _widened(array: np.ndarray) -> np.ndarray:
    """Numbers of 16 bits in float32, which holds them exactly and which every reader of the file knows."""
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _pattern(model: Any, backend: str | None) -> list[Any]:
    """A state of the model, for what it is made of."""
    token = namespace_of(*model.params.values()).zeros((1, 1), dtype=np.int64)
    _, state = model.forward_with_state(token, backend=backend)
    return with_whole_windows(state, model.config.short_conv)


def _checksum(text: str, arrays: Mapping[str, Streamed]) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        for block in array.blocks():
            total.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return total.hexdigest()
