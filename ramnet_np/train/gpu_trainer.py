"""Training steps on a GPU: nothing is read back until it is asked for, and a step can be one CUDA graph.

A graph is captured once for each shape of batch: sequences, length, labelled tokens. To keep shapes few, the labelled
tokens are filled up to a multiple of the sequences by tokens without a label, whose loss and gradient are zero.

    host      batch -> pinned memory ──copy──┐
    device                     fixed inputs ─┴▶ forward ▶ loss ▶ backward ▶ AdamW ─▶ numbers ──▶ report()
                                               └──────────── one graph ───────────┘

What a graph computes with lives in a pool of its own, so that whatever runs between two launches finds other memory.

Several threads may train a model each, on one GPU: a thread has its own stream, a :class:`DeviceSteps` its own memory
and graphs; what is shared (compiled kernels, CuPy's pool) is locked or written once. Nothing waits for more than its
own stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np

from ramnet_np.core.arrays import on_host
from ramnet_np.core.require import require_ids
from ramnet_np.data.batches import Batch
from ramnet_np.data.gpu_dataset import ResidentBatch
from ramnet_np.layers.loss import IGNORE_INDEX, cross_entropy_and_gradient
from ramnet_np.model import RAMNet
from ramnet_np.train.config import TrainConfig, learning_rate
from ramnet_np.train.optim import ADAMW_EPS, AdamWState, decays
from ramnet_np.train.trainer import Diverged, Report, not_finite

Graphs = Literal["auto", "on", "off"]

MAX_GRAPHS = 16  # batches of further shapes run without


class _Shape:
    """What is kept for the batches of one shape: fixed inputs on the device, two pinned arrays to fill them from.

    ``inputs``: makes ids, positions and labels of the ``size`` numbers that were copied; part of the step.
    """

    def __init__(self, size: int, inputs: Callable[[Any], tuple[Any, Any, Any]]):
        import cupy
        import cupyx

        self._memory = cupy.empty(size, dtype=np.int32)
        self._inputs = inputs
        self._hosts = [cupyx.empty_pinned(self._memory.shape, dtype=np.int32) for _ in range(2)]
        self._copied = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self._turn = 0
        self.graph: Any = None
        self.seen = False

    def inputs(self) -> tuple[Any, Any, Any]:
        """ids (B, T), positions (N,) and labels (N,) of the batch that was copied."""
        return self._inputs(self._memory)

    def fill(self, parts: Sequence[Any], stream: Any) -> None:
        """Copy a batch to the device, behind the work that still reads the last one."""
        self._turn = 1 - self._turn
        host, copied = self._hosts[self._turn], self._copied[self._turn]
        copied.synchronize()  # the copy that last left this array, two batches ago
        np.concatenate(parts, out=host, casting="unsafe")
        self._memory.set(host, stream=stream)
        copied.record(stream)


class DeviceSteps:
    """Steps of a model on the GPU, on their thread's own stream, which is current within the context.

    ``graphs``: "on" captures steps as CUDA graphs and raises RuntimeError where that fails; "auto" then goes on without
    and has ``say`` tell why; "off" does not try.
    """

    reads_at_once = False

    def __init__(
        self,
        model: RAMNet,
        config: TrainConfig,
        state: AdamWState,
        graphs: Graphs = "auto",
        say: Callable[[str], None] = print,
    ):
        import cupy

        from ramnet_np.kernels.cuda.optimizer.adamw import AdamWSettings, DeviceAdamW

        self._model, self._say = model, say
        self._insists, self._graphs = graphs == "on", graphs != "off"
        self._step, self._moments = state.step, (state.mean, state.square)
        self._stream = _own_stream()
        self._pool = cupy.cuda.MemoryPool(_graph_memory)  # of the graphs, which run one after another and so share it
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        params = {name: cupy.ascontiguousarray(p) for name, p in model.params.items()}
        model.params.update(params)
        self._optimizer = DeviceAdamW(
            params, state.mean, state.square, {name for name, p in params.items() if decays(name, p)}, state.step,
            AdamWSettings(
                rates=[learning_rate(config, step) for step in range(config.steps)], beta1=config.beta1,
                beta2=config.beta2, eps=ADAMW_EPS, weight_decay=config.weight_decay, clip=config.clip,
            ),
        )  # fmt: skip
        self._addresses = self._optimizer.addresses()  # of gradients outside of graphs

    @property
    def state(self) -> AdamWState:
        return AdamWState(self._step, *self._moments)

    def run(self, batch: Batch | ResidentBatch) -> None:
        shape = self._chosen(batch) if isinstance(batch, ResidentBatch) else self._filled(batch)
        if shape.graph is None and self._graphs and shape.seen:  # the first step has compiled what it needs
            self._capture(shape)
        if shape.graph is not None:
            shape.graph.launch()
        else:
            self._compute(shape, self._addresses, bind=True)
        shape.seen = True
        self._step += 1

    def report(self) -> Report:
        numbers = self._optimizer.numbers()
        if numbers["stopped"]:
            raise Diverged(int(numbers["updates"]), not_finite(numbers["loss"], numbers["norm"]))
        accuracy = numbers["correct"] / max(1, numbers["labels"])
        return Report(numbers["loss"], accuracy, numbers["rate"], numbers["norm"])

    def __enter__(self) -> DeviceSteps:
        import cupy

        # The parameters come from another stream. Not the whole device: another thread may be capturing.
        cupy.cuda.get_current_stream().synchronize()
        self._stream.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        import cupy

        self._stream.synchronize()
        self._stream.__exit__(*exc_info)
        # A pool's blocks refer to one another, so without this the graphs' memory would wait for Python's collector,
        # which does not know that a GPU is full.
        self._shapes.clear()
        self._pool.free_all_blocks()
        cupy.get_default_memory_pool().free_all_blocks(self._stream)  # which no other stream would use

    def _filled(self, batch: Batch) -> _Shape:
        ids, vocab = on_host(batch.ids), self._model.config.vocab
        positions, labels = labelled_tokens(on_host(batch.labels), multiple=len(ids))
        require_ids("ids", ids, vocab)
        require_ids("labels", labels[labels != IGNORE_INDEX], vocab)
        key = (*ids.shape, len(positions))
        if key not in self._shapes:
            self._shapes[key] = _Shape(ids.size + 2 * len(positions), partial(_cut, *key))
        self._shapes[key].fill([ids.ravel(), positions, labels], self._stream)
        return self._shapes[key]

    def _chosen(self, batch: ResidentBatch) -> _Shape:
        key = (id(batch.source), len(batch.rows))
        if key not in self._shapes:
            self._shapes[key] = _Shape(len(batch.rows), batch.source.gather)  # which keeps the source, and so its id
        self._shapes[key].fill([batch.rows], self._stream)
        return self._shapes[key]

    def _compute(self, shape: _Shape, addresses: Any, *, bind: bool) -> dict[str, Any]:
        """Launch one step; returns the gradients, whose addresses the optimiser has only if ``bind``."""
        ids, positions, labels = shape.inputs()
        logits, ctx = self._model.forward(ids, select=positions)
        loss = cross_entropy_and_gradient(logits, labels)
        grads = self._optimizer.contiguous(self._model.backward(loss.dlogits, ctx))
        if bind:
            self._optimizer.bind(addresses, grads)
        self._optimizer.update(addresses, loss.loss, loss.correct, loss.count)
        return grads

    def _capture(self, shape: _Shape) -> None:
        import cupy

        if sum(other.graph is not None for other in self._shapes.values()) >= MAX_GRAPHS:
            return
        addresses = self._optimizer.addresses()
        # what the first step used; the graph brings its own
        cupy.get_default_memory_pool().free_all_blocks(self._stream)
        try:
            with cupy.cuda.using_allocator(self._pool.malloc):
                _begin_capture(self._stream)
                try:
                    grads = self._compute(shape, addresses, bind=False)
                except BaseException:
                    with suppress(Exception):
                        self._stream.end_capture()
                    raise
                graph = self._stream.end_capture()
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            if self._insists:
                raise RuntimeError(f"a training step could not be captured as a CUDA graph ({why})") from error
            self._graphs = False
            self._say(f"without CUDA graphs, as a step could not be captured ({why})")
            return
        self._optimizer.bind(addresses, grads)
        shape.graph = _Graph(graph, addresses)


class _Graph:
    """A captured step, and the table that it reads."""

    def __init__(self, graph: Any, addresses: Any):
        self._graph, self._addresses = graph, addresses

    def launch(self) -> None:
        self._graph.launch()


_streams = threading.local()


def _own_stream() -> Any:
    """This thread's stream on the current GPU, the same for all its runs: cuBLAS keeps memory for every stream."""
    import cupy

    of_device: dict[int, Any] = _streams.__dict__.setdefault("of_device", {})
    device = cupy.cuda.runtime.getDevice()
    if device not in of_device:
        of_device[device] = cupy.cuda.Stream(non_blocking=True)
    return of_device[device]


def _graph_memory(size: int) -> Any:
    """Fresh device memory for the pool of the graphs.

    A pool that finds no more gives back its free blocks, but those of a graph only look free: so it must not find out.
    """
    import cupy

    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"no GPU memory for {size:,} bytes more") from error


def _begin_capture(stream: Any) -> None:
    import cupy

    # relaxed: what other threads do meanwhile, allocate or load a kernel, breaks no capture
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)


def _cut(sequences: int, length: int, labelled: int, memory: Any) -> tuple[Any, Any, Any]:
    """ids, positions and labels of a batch that was copied whole."""
    tokens = sequences * length
    return memory[:tokens].reshape(sequences, length), *memory[tokens:].reshape(2, labelled)


def labelled_tokens(labels: Any, multiple: int) -> tuple[Any, Any]:
    """Where the labels of a batch are, and which they are, filled up to a multiple of ``multiple`` (at least one).

    ``labels``: (B, T); below 0 counts for nothing. Returns positions b*T + t and labels, (N,) int32 each: first the
    labelled tokens in their order, then as many others as are wanted, with IGNORE_INDEX.

    >>> labelled_tokens(np.array([[-100, 7, -100], [8, 9, -100]]), multiple=2)
    (array([1, 3, 4, 0], dtype=int32), array([   7,    8,    9, -100], dtype=int32))
    """
    flat = np.asarray(labels).ravel()
    positions = np.flatnonzero(flat >= 0)
    missing = -len(positions) % multiple if len(positions) else multiple
    if missing:
        positions = np.concatenate([positions, np.flatnonzero(flat < 0)[:missing]])
    wanted = flat[positions]
    return positions.astype(np.int32), np.where(wanted < 0, IGNORE_INDEX, wanted).astype(np.int32)
