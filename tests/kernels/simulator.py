"""Numba's simulator, quick and strict: the threads of a block run one after another, from barrier to barrier.

Numba's own lets them run as Python switches between them, and asks each of them again and again whether it waits: that
takes several times as long. Here the last thread of a block goes first in every second block, so that a thread that
reads or overwrites what another has yet to write or to read, for want of a barrier, does so in the same way every time.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
from numba.cuda.simulator import kernel


class TurnThread(kernel.BlockThread):
    """A thread that runs only when told, until it ends or reaches a barrier."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.go, self.stopped = threading.Lock(), threading.Lock()  # both held until there is something to do
        self.go.acquire()
        self.stopped.acquire()
        self.ended = False

    def run(self) -> None:
        self.go.acquire()
        try:
            super().run()
        except BaseException as error:  # one that Numba can't raise again with its own words; nobody would go on
            self.exception = error, error.__traceback__
        self.ended = True
        self.stopped.release()

    def syncthreads(self) -> None:
        self.stopped.release()
        self.go.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block failed")

    def turn(self) -> None:
        self.go.release()
        self.stopped.acquire()


def run_block(block: Any, where: tuple[int, ...], *arguments: Any) -> None:
    """Run the threads of a block, as ``BlockManager.run``; raises the first error of any, when all have ended."""

    def body() -> None:
        block._f(*arguments)

    points = list(np.ndindex(*block._block_dim))
    ordered = points if sum(where) % 2 else reversed(points)
    live = [TurnThread(body, block, where, point, block._debug) for point in ordered]
    for thread in live:
        thread.start()
    failed = None
    while live:
        for thread in live:
            thread.abort = failed is not None
            thread.turn()
            failed = failed or thread.exception
        live = [thread for thread in live if not thread.ended]
    if failed:
        raise failed[0].with_traceback(failed[1])


_swapped_cuda_module = kernel.swapped_cuda_module
_launch: list[tuple[ExitStack, set[int]]] = []  # of the launch that runs: modules that it has changed


def swapped_until_the_launch_ends(function: Any, simulated: Any) -> AbstractContextManager[None]:
    """As Numba's, which looks through all names of a module at every call of a device function, but once a launch."""
    if not _launch:
        return _of_launch(function, simulated)
    stack, done = _launch[0]
    if id(function.__globals__) not in done:
        done.add(id(function.__globals__))
        stack.enter_context(_swapped_cuda_module(function, simulated))
    return nullcontext()


@contextmanager
def _of_launch(function: Any, simulated: Any) -> Iterator[None]:
    with ExitStack() as stack:
        _launch.append((stack, set()))
        stack.callback(_launch.clear)
        stack.enter_context(swapped_until_the_launch_ends(function, simulated))
        yield


def take_turns() -> None:
    """From here on, for every launch of this process."""
    kernel.BlockManager.run = run_block
    kernel.swapped_cuda_module = swapped_until_the_launch_ends
