"""A generation over a memory in tiers that test_kill_tiers.py kills, in a process of its own."""

import hashlib
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ramnet_np import MemoryTiers, RAMNet, RAMNetConfig
from ramnet_np.backend import use_backend
from ramnet_np.core.arrays import namespace_of
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.states import arrays_of

CONFIG = RAMNetConfig(vocab=29, width=32, layers=2, heads=2, order=5, cape=(2, 1), init_std=1.0)  # slots far apart
DRAWN = Sampling(temperature=1.0, seed=3)
TOKENS, SAVED_EVERY = 24, 4
CORE = Path(sys.modules["ramnet_np"].__file__ or "").parent
PARTS = {
    "moving": {str(CORE / "core" / f"{name}.py") for name in ("tiered_rows", "rows_over_disk", "disk_pages")},
    "saving": {str(CORE / "model" / f"{name}.py") for name in ("state_file", "streamed_file", "files", "unfinished")},
}


def tiers(folder: Path, device: str) -> MemoryTiers:
    """Room for 256 rows (a GPU: 1024) of 16 channels in each of two layers, the rest on the disk."""
    if device == "gpu":
        return MemoryTiers(gpu=2 * 1024 * 80, host=0, disk=str(folder))
    return MemoryTiers(host=2 * 256 * 17 * 4, disk=str(folder))


def go_on(folder: Path, device: str = "cpu") -> None:
    """Write the text to its end, from where ``a.state`` in ``folder`` stands, if it is there; save now and then."""
    model, path, memory = RAMNet(CONFIG, seed=0).to(device), folder / "a.state", tiers(folder, device)
    ids = np.random.default_rng(1).integers(0, 29, 300 if device == "gpu" else 40)
    prompt = namespace_of(model.head).asarray(ids)
    backend = "cupy" if device == "gpu" else "numpy"
    with use_backend(backend):
        if path.exists():
            generation = load_generation(path, model, backend=backend, memory=memory)
        else:
            generation = Generation(model, [prompt], backend=backend, memory=memory)
        done = int(generation.standing().positions[0]) - len(prompt)
        for token in range(done, TOKENS):
            generation.next_on_host(DRAWN)
            if (token + 1) % SAVED_EVERY == 0:
                save_generation(path, generation)
        save_generation(path, generation)  # what a killed program left goes with a save
        memories = arrays_of([stepper.state for stepper in generation.standing().steppers])
        assert any(memory.disk_nbytes for memory in memories)


def go_on_up_to_line(folder: Path, device: str, part: str, line: int) -> None:
    """Go on, and end by SIGKILL at that line of Python of all that run in a part of the library."""
    with Counted(part, line):
        go_on(folder, device)


def go_on_until_killed(folder: Path, device: str, begun: Connection) -> None:
    """Send word, go on, and wait at the end."""
    begun.send(True)
    go_on(folder, device)
    signal.pause()


def content(folder: Path) -> str:
    """A checksum of what the state in ``folder`` holds, in whatever order its slots came."""
    arrays = load_file(folder / "a.state")
    for name in [name for name in arrays if name.endswith(".keys")]:
        order = np.argsort(arrays[name])
        assert (np.diff(arrays[name][order]) > 0).all()
        values = name.replace(".keys", ".values")
        arrays |= {name: arrays[name][order], values: arrays[values][order]}
    return hashlib.sha256(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


class Counted:
    """Counts the lines of Python that run in a part of the library, and kills the process at line ``last``."""

    def __init__(self, part: str, last: int | None = None):
        self.files, self.last, self.lines = PARTS[part], last, 0

    def __enter__(self) -> "Counted":
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: Any, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: Any, event: str, argument: object) -> Any:
        self.lines += event == "line"
        if event == "line" and self.lines == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._line
