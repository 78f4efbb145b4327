"""Calls that are captured as CUDA graphs, so that one launch repeats all of theirs: what training and generation share.

A graph is captured on a stream of this thread's own, and allocates from a memory pool of its own, so that work between
two launches gets other memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

import numpy as np

from ramnet_np.contract import Array

T = TypeVar("T")

Graphs = Literal["auto", "on", "off"]
"""Whether calls become graphs: "on" raises RuntimeError where that fails, "auto" says so and goes on without."""


def own_stream() -> Any:
    """This thread's stream on the current GPU, the same for all its graphs: cuBLAS keeps memory for every stream."""
    import cupy

    of_device: dict[int, Any] = _streams.__dict__.setdefault("of_device", {})
    device = cupy.cuda.runtime.getDevice()
    if device not in of_device:
        of_device[device] = cupy.cuda.Stream(non_blocking=True)
    return of_device[device]


@contextmanager
def in_order_on(stream: Any) -> Iterator[None]:
    """Make ``stream`` the current one: its work comes behind that of the stream before, which then waits for it."""
    import cupy

    before = cupy.cuda.get_current_stream()
    stream.wait_event(before.record())
    with stream:
        yield
    before.wait_event(stream.record())


def graph_pool() -> Any:
    """Memory for graphs that run one after another."""
    import cupy

    return cupy.cuda.MemoryPool(_graph_memory)


def begin_capture(stream: Any) -> None:
    """What is launched on ``stream`` from now on becomes part of a graph, up to its ``end_capture()``."""
    import cupy

    # relaxed: other threads may allocate or load a kernel meanwhile without breaking the capture
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)


def free_with(owner: Any, stream: Any, pool: Any) -> None:
    """Free the memory of ``pool`` when ``owner`` goes, behind what ``stream`` then still does on the current GPU.

    A pool's blocks refer to one another, so without this their memory would wait for Python's garbage collector, which
    does not know that a GPU is full.
    """
    import cupy

    weakref.finalize(owner, _free, cupy.cuda.Device(), stream, pool).atexit = False


def capture(call: Callable[[], T], stream: Any, pool: Any) -> tuple[Any, T]:
    """The launches of ``call`` as a graph, and what it returned, whose memory is of ``pool``. Nothing has run then.

    ``stream``: the current one. Raises what ``call`` raises, such as MemoryError, and what CUDA refuses to capture.
    """
    import cupy

    with cupy.cuda.using_allocator(pool.malloc):
        begin_capture(stream)
        try:
            result = call()
        except BaseException:
            with suppress(Exception):
                stream.end_capture()
            raise
        return stream.end_capture(), result


@contextmanager
def weights_stay() -> Iterator[None]:
    """Within this block no call writes weights: a kernel may read its own while the launch before it still runs.

    >>> with weights_stay():
    ...     inside = weights_are_staying()
    >>> inside, weights_are_staying()
    (True, False)
    """
    before = weights_are_staying()
    _weights.stay = True
    try:
        yield
    finally:
        _weights.stay = before


def weights_are_staying() -> bool:
    """Whether this thread is within :func:`weights_stay`.

    >>> with weights_stay():
    ...     weights_are_staying()
    True
    """
    return getattr(_weights, "stay", False)


class HostCopy:
    """Memory on the host for a small array of a GPU, which is copied there while the device goes on.

    ``like``: the array, or one of its shape and dtype.
    """

    def __init__(self, like: Array):
        import cupy

        pinned = cupy.cuda.alloc_pinned_memory(like.nbytes)
        self._host = np.frombuffer(pinned, like.dtype, like.size).reshape(like.shape)
        self._copied = cupy.cuda.Event(disable_timing=True)

    def start(self, array: Array) -> None:
        """Copy ``array``, C-contiguous, behind the work of the current stream."""
        array.data.copy_to_host_async(self._host.ctypes.data, self._host.nbytes)
        self._copied.record()

    def wait(self) -> np.ndarray:
        """The numbers, once they are there."""
        self._copied.synchronize()
        return self._host.copy()


def why_not_captured(error: Exception) -> str:
    """The error in a few words.

    >>> why_not_captured(RuntimeError("not today\\nand more"))
    'RuntimeError: not today'
    """
    return f"{type(error).__name__}: {error}".splitlines()[0]


_streams = threading.local()
_weights = threading.local()


def _free(gpu: Any, stream: Any, pool: Any) -> None:
    with gpu:
        stream.synchronize()
        pool.free_all_blocks()


def _graph_memory(size: int) -> Any:
    """New device memory for the pool of the graphs.

    On a failed allocation CuPy's pool frees its unused blocks. Blocks used by a captured graph look unused, so this
    allocator raises MemoryError instead of the out-of-memory error that the pool waits for.
    """
    import cupy

    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"no GPU memory for {size:,} bytes more") from error
