"""Numba's simulator, quick and strict: the threads of a block run one after another, from barrier to barrier.

Numba's own are threads of the operating system, run as Python switches between them, and are asked again and again
whether they wait: that takes several times as long. Here they are greenlets of one thread. The last of a block goes
first in every second block, so that a thread that reads or overwrites what another has yet to write or to read, for
want of a barrier, does so in the same way every time. And memory that nobody has written holds NaN: Numba's own is
often 0, or what the block before has left there.
"""

import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import greenlet
from numba import types
from numba.cuda.simulator import kernel, kernelapi


class TurnThread(kernel.BlockThread):
    """A thread that runs only when told, until it ends or reaches a barrier. It is never started as one of Python's."""

    running: "TurnThread"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.task = greenlet(self._run_to_its_end)

    def _run_to_its_end(self) -> None:
        try:
            self.run()
        except BaseException as error:  # one that Numba can't raise again with its own words; nobody would go on
            self.exception = error, error.__traceback__

    def syncthreads(self) -> None:
        self.task.parent.switch()
        if self.abort:
            raise RuntimeError("another thread of the block failed")

    def turn(self) -> None:
        TurnThread.running = self
        self.task.switch()


def unset(array: np.ndarray) -> np.ndarray:
    """The array with every bit set: NaN, or -1."""
    array.reshape(-1).view(np.uint8)[:] = 255
    return array


class SharedArrays(dict[Any, np.ndarray]):
    """A block's arrays in shared memory."""

    def __setitem__(self, place: Any, array: np.ndarray) -> None:
        super().__setitem__(place, unset(array))


class Local(kernelapi.FakeCUDALocal):
    """A thread's own memory, as it is found."""

    def array(self, shape: Any, dtype: Any) -> np.ndarray:
        return unset(super().array(shape, dtype))


def run_block(block: Any, where: tuple[int, ...], *arguments: Any) -> None:
    """Run the threads of a block, as ``BlockManager.run``; raises the first error of any, when all have ended."""

    def body() -> None:
        block._f(*arguments)

    shared = kernel._get_kernel_context().shared
    shared._allocations = SharedArrays()
    unset(shared._dynshared)
    points = list(np.ndindex(*block._block_dim))
    ordered = points if sum(where) % 2 else reversed(points)
    live = [TurnThread(body, block, where, point, block._debug) for point in ordered]
    failed = None
    while live:
        for thread in live:
            thread.abort = failed is not None
            thread.turn()
            failed = failed or thread.exception
        live = [thread for thread in live if not thread.task.dead]
    if failed:
        raise failed[0].with_traceback(failed[1])


_launch_or_call = kernel.FakeCUDAKernel.__call__
_swapped_cuda_module = kernel.swapped_cuda_module
_launch: list[tuple[ExitStack, set[int]]] = []  # of the launch that runs: modules that it has changed


def call(function: Any, *arguments: Any) -> Any:
    """As Numba's own, which looks through all names of a module for "cuda" at every call of a device function.

    Here it does so once a launch.
    """
    if not function._device:
        with ExitStack() as stack:
            _launch.append((stack, set()))
            stack.callback(_launch.clear)
            return _launch_or_call(function, *arguments)
    code = function.fn
    stack, done = _launch[0]
    if id(code.__globals__) not in done:
        done.add(id(code.__globals__))
        stack.enter_context(_swapped_cuda_module(code, kernel._get_kernel_context()))
    return code(*arguments)


_NUMBERS = {int, float, bool, np.bool_, np.int32, np.int64, np.uint32, np.uint64, np.float32, np.float64}


def convert(number_type: types.Number, *given: Any) -> Any:
    """``float32(2)``, as Numba's own, which imports a module at every call."""
    if len(given) == 1 and type(given[0]) in _NUMBERS:
        return getattr(np, number_type.name)(given[0])
    return types.Type.__call__(number_type, *given)


def take_turns() -> None:
    """From here on, for every launch of this process."""
    kernel.BlockManager.run = run_block
    kernel.FakeCUDAKernel.__call__ = call
    kernelapi.FakeCUDALocal = Local
    kernelapi.threading = SimpleNamespace(**vars(threading) | {"current_thread": lambda: TurnThread.running})
    types.Integer.__call__ = types.Float.__call__ = convert
