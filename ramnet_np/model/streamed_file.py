"""A safetensors file that is written and read a block at a time: its arrays may be larger than the memory.

The library for this format takes whole arrays when it writes. The format is 8 bytes with the length of a header, the
header in JSON (of every array its dtype, shape and place), and the numbers one array after the other.
Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Streamed(NamedTuple):
    """An array that comes in blocks along its first axis."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]
    kind: str = ""  # the format's name of the dtype, where NumPy has no such type; "": that of ``dtype``

    @classmethod
    def of(cls, array: np.ndarray) -> Streamed:
        """An array in one block."""
        return cls(array.dtype, array.shape, lambda: iter([np.ascontiguousarray(array)]))


def write_streamed(path: Path, arrays: Mapping[str, Streamed], metadata: Mapping[str, str]) -> None:
    """Write ``arrays`` by their names, and ``metadata``, as a safetensors file. OSError where there is no room.

    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.numpy import load_file
    >>> with TemporaryDirectory() as folder:
    ...     write_streamed(Path(folder) / "a", {"x": Streamed.of(np.arange(3))}, {"what": "three numbers"})
    ...     load_file(Path(folder) / "a")["x"].tolist()
    [0, 1, 2]
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + prod(array.shape) * array.dtype.itemsize
        kind = "BOOL" if array.dtype == np.bool_ else f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        header[name] = {"dtype": array.kind or kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for block in array.blocks():
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
