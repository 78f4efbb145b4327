"""Ranks that exchange CuPy arrays over NCCL, a GPU each.

The calls go to the stream that is current, and those that run beside other work to a stream of their own:

    current stream   backward of block i ──┬─▶ backward of block i - 1 ──┬─▶  ...   join ─▶ AdamW
                                     event │                       event │            ▲
    side stream                            └─▶ sum of bucket 0 ──────────┴─▶ sum 1 ───┘

NCCL sums in an order that follows from the algorithm: it is fixed to a ring here,
without NVLink multicast, so that the same GPUs give the same bits. Environment variables that are set already win.
A rank that does not come leaves the GPUs of the others in an endless sum. Nothing here waits for that without a limit.
But a GPU takes about a thousand kernels in advance and then makes any launch wait, so a thread looks too, at an event
behind the last exchange: if it has not come for longer than the limit, the rank has failed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.train.ranks import Place, RankError

SETTINGS = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple", "NCCL_NVLS_ENABLE": "0"}
LOOK_SECONDS = 1.0  # between two looks at the last exchange
PORT = 29500  # of rank 0, unless MASTER_PORT says otherwise


class _Communicator(Protocol):
    def all_reduce(self, array: Array, stream: Any) -> None: ...

    def broadcast(self, array: Array, stream: Any, root: int) -> None: ...


class NCCLRanks:
    """The GPU ranks that a launcher started; the GPU with the number of the local rank becomes the current one.

    ``environment``: with MASTER_ADDR and MASTER_PORT, where rank 0 can be reached, itself if they are missing;
    ``timeout``: seconds after which a rank that doesn't answer is an error; ``on_hang``: called with a sentence where
    this is found while the program itself waits, and so must end it.
    ValueError where a host has more ranks than GPUs; RuntimeError where NCCL is missing.
    """

    def __init__(
        self,
        place: Place,
        environment: Mapping[str, str],
        timeout: float = 300.0,
        on_hang: Callable[[str], None] | None = None,
    ):
        self._cupy, self._timeout = gpu_namespace(), timeout
        self.rank, self.size, self.local_rank = place
        there = self._cupy.cuda.runtime.getDeviceCount()
        if self.local_rank >= there:
            raise ValueError(
                f"a host must have a GPU for each of its ranks, got {there} and local rank {self.local_rank}"
            )
        self._cupy.cuda.Device(self.local_rank).use()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self._side = self._cupy.cuda.Stream(non_blocking=True)
        address = environment.get("MASTER_ADDR", "127.0.0.1"), int(environment.get("MASTER_PORT", PORT))
        try:
            self._communicator = _communicator(place, address, timeout)
        except ImportError as error:
            raise RuntimeError(f"ranks on GPUs need NCCL: pip install 'nccl4py[cu13]' ({error})") from error
        self._last: tuple[Any, float] | None = None  # an event behind the last exchange, and when that was asked for
        if on_hang is not None:
            threading.Thread(target=self._watch, args=(on_hang,), daemon=True).start()

    def all_reduce(self, array: Array) -> None:
        self._on_gpu(self._communicator.all_reduce, array)

    def start_all_reduce(self, array: Array) -> None:
        self._order(self._current(), self._side)
        self._communicator.all_reduce(array, self._side)
        self._remember(self._side)

    def join(self) -> None:
        self._order(self._side, self._current())

    def broadcast(self, array: Array, root: int = 0) -> None:
        self._on_gpu(partial(self._communicator.broadcast, root=root), array)

    def barrier(self) -> None:
        self.all_reduce(np.zeros(1))

    def wait(self, event: Any = None) -> None:
        if event is None:
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record()
        deadline = time.monotonic() + self._timeout
        while not event.done:
            time.sleep(1e-4)
            if time.monotonic() > deadline:
                raise RankError(self._words())

    def abort(self, status: int) -> None:
        os._exit(status)  # mpiexec or srun then ends the others; NCCL itself would wait for them

    def _on_gpu(self, call: Callable[[Array, Any], None], array: Array) -> None:
        """``call`` on the current stream; an array of the host goes to the GPU and back."""
        if not isinstance(array, np.ndarray):
            call(array, self._current())
            self._remember(self._current())
            return
        there = self._cupy.asarray(array)
        call(there, self._current())
        self._remember(self._current())
        self.wait()
        array[...] = there.get()

    def _remember(self, stream: Any) -> None:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        self._last = event, time.monotonic()

    def _watch(self, on_hang: Callable[[str], None]) -> None:
        """What a thread of its own does, as long as the program runs."""
        self._cupy.cuda.Device(self.local_rank).use()
        while True:
            time.sleep(LOOK_SECONDS)
            if self._last is not None:
                event, since = self._last
                if time.monotonic() - since > self._timeout and not event.done:
                    on_hang(self._words())

    def _words(self) -> str:
        return f"the other ranks have not answered for {self._timeout:g} s"

    def _order(self, before: Any, after: Any) -> None:
        """What comes on the stream ``after`` waits for what is on ``before`` now."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(before)
        after.wait_event(event)

    def _current(self) -> Any:
        return self._cupy.cuda.get_current_stream()


def _communicator(place: Place, address: tuple[str, int], timeout: float) -> _Communicator:
    """By nccl4py, or where that is missing by CuPy."""
    try:
        return _ByNCCL4Py(place, address, timeout)
    except ImportError:
        return _ByCuPy(place, address, timeout)


class _ByNCCL4Py:
    def __init__(self, place: Place, address: tuple[str, int], timeout: float):
        from nccl import core

        own = bytes(core.get_unique_id()) if place.rank == 0 else b""
        shared = core.UniqueId.from_bytes(_from_first(place, own, address, timeout))
        self._core, self._communicator = core, core.Communicator.init(place.size, place.rank, shared)

    def all_reduce(self, array: Array, stream: Any) -> None:
        self._communicator.allreduce(array, array, self._core.SUM, stream=stream.ptr)

    def broadcast(self, array: Array, stream: Any, root: int) -> None:
        self._communicator.broadcast(array, array, root=root, stream=stream.ptr)


class _ByCuPy:
    def __init__(self, place: Place, address: tuple[str, int], timeout: float):
        from cupy.cuda import nccl

        if not nccl.available:
            raise ImportError("CuPy finds none")
        first = nccl.get_unique_id()  # a tuple of numbers, in newer versions bytes; that of rank 0 counts
        shared = json.loads(_from_first(place, json.dumps(list(first)).encode(), address, timeout))
        self._nccl = nccl
        self._communicator = nccl.NcclCommunicator(place.size, type(first)(shared), place.rank)

    def all_reduce(self, array: Array, stream: Any) -> None:
        pointer, kind = array.data.ptr, self._type(array)
        self._communicator.allReduce(pointer, pointer, array.size, kind, self._nccl.NCCL_SUM, stream.ptr)

    def broadcast(self, array: Array, stream: Any, root: int) -> None:
        self._communicator.bcast(array.data.ptr, array.size, self._type(array), root, stream.ptr)

    def _type(self, array: Array) -> int:
        nccl = self._nccl
        types = {"f4": nccl.NCCL_FLOAT32, "f8": nccl.NCCL_FLOAT64, "i4": nccl.NCCL_INT32, "i8": nccl.NCCL_INT64}
        return types[array.dtype.str[1:]]


def _from_first(place: Place, own: bytes, address: tuple[str, int], timeout: float) -> bytes:
    """Rank 0's bytes, on every rank. RankError where it cannot be reached in time, or waits in vain for another one."""
    deadline = time.monotonic() + timeout
    if place.rank == 0:
        with socket.create_server(("", address[1])) as server:
            server.settimeout(timeout)
            for number in range(1, place.size):
                try:
                    connection, _ = server.accept()
                except TimeoutError as error:
                    raise RankError(f"{number} of {place.size} ranks came within {timeout:g} s") from error
                with connection:
                    connection.sendall(own)
        return own
    while True:
        try:
            with socket.create_connection(address, timeout=timeout) as connection, connection.makefile("rb") as file:
                return file.read()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RankError(f"rank 0 has not answered at {address[0]}:{address[1]} for {timeout:g} s") from error
            time.sleep(0.1)
