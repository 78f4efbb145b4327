"""Training steps on a GPU: numbers stay there until they are wanted, and a whole step can be one CUDA graph.

A graph is captured once for each shape of batch: sequences, length, labelled tokens. To keep shapes few, the labelled
tokens are filled up to a multiple of the sequences by tokens without a label, whose loss and gradient are zero; where
more than half of the tokens have a label, by all others.

    host      batch -> pinned memory ──copy──┐
    device                     fixed inputs ─┴▶ forward ▶ loss ▶ backward ▶ AdamW ─▶ numbers ──▶ report()
                                               └──────────── one graph ───────────┘

Where several ranks train together, the sums of their gradients run beside the backward, on a stream of their own, and
AdamW waits for them; the graph is cut there (:mod:`~ramnet_np.train.step_graph`). Everything here that waits for the
GPU then waits for other ranks too, so it goes through ``Ranks.wait``, which notices a rank that does not come.

The kernels of packed rows follow the lengths of their sequences, so their steps are no graphs.

A graph allocates from a memory pool of its own, so that work between two launches gets other memory.

Several threads may train a model each, on one GPU: a thread has its own stream, a :class:`GPUTrainer` its own memory
and graphs; what is shared (compiled kernels, CuPy's pool) is locked or written once. A trainer waits for no stream but
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import on_host
from ramnet_np.core.cuda_graph import Graphs, capture, graph_pool, own_stream, why_not_captured
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import require_ids
from ramnet_np.data.batches import Batch, PackedBatch, StreamBatch
from ramnet_np.data.gpu_dataset import GPUBatch, GPUDataset
from ramnet_np.layers.loss import IGNORE_INDEX
from ramnet_np.model import RAMNet
from ramnet_np.train.carried import CarriedState, carried_from
from ramnet_np.train.config import TrainConfig, learning_rate
from ramnet_np.train.gradient_sum import GradientSum
from ramnet_np.train.gradients import Part, loss_and_gradients, packed_part
from ramnet_np.train.optim import ADAMW_EPS, AdamWState, has_weight_decay
from ramnet_np.train.ranks import ONE, RankError, Ranks
from ramnet_np.train.shards import Shards
from ramnet_np.train.step_graph import RanksBetweenGraphs, StepGraph
from ramnet_np.train.trainer import Diverged, Report, not_finite, part_rows

Inputs = tuple[list[Part], Array | None]  # of a step: its parts, and of streams where each row starts

MAX_GRAPHS = 16  # batches of further shapes run without
MOST_STEPS = 10**8  # whose learning rates lie in a table on the device: 800 MB


class BatchBuffers:
    """Memory for the batches of one shape: an input on the device, two pinned arrays on the host to fill it from.

    ``size``: how many int32 numbers a batch is; ``unpack``: makes the inputs of them, part of the step.
    A batch is written to one host array while the copy of the batch before it may still read the other.
    """

    def __init__(self, size: int, unpack: Callable[[Array], Inputs]):
        import cupy
        import cupyx

        self._device = cupy.empty(size, dtype=np.int32)
        self._unpack = unpack
        self._hosts = [cupyx.empty_pinned(self._device.shape, dtype=np.int32) for _ in range(2)]
        self._copied = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self._current = 0
        self.graph: StepGraph | None = None
        self.warmed_up = False  # whether a step of this shape has run, and so compiled what it needs

    def inputs(self) -> Inputs:
        """Those of the batch that was uploaded."""
        return self._unpack(self._device)

    def upload(self, parts: Sequence[Array], stream: Any, wait: Callable[[Any], None]) -> None:
        """Copy a batch to the device. On the stream, the copy waits for the work that still reads the batch before.

        ``wait``: waits for an event.
        """
        self._current = 1 - self._current
        host, copied = self._hosts[self._current], self._copied[self._current]
        wait(copied)  # the copy out of this host array, two batches ago
        np.concatenate(parts, out=host, casting="unsafe")
        self._device.set(host, stream=stream)
        copied.record(stream)


class GPUTrainer:
    """Steps of a model on its GPU. Within the context that GPU is current, with a stream of this thread's own.

    ``graphs``: "on" captures steps as CUDA graphs and raises RuntimeError where that fails; "auto" then goes on without
    them and gives ``log`` the reason; "off" does not try.

    With ``config.dtype`` "bfloat16" the steps compute with copies of the parameters, those of ``model``; an update
    changes the float32 parameters of the model that was given, and rounds them to the copies.
    ``ranks``: those that train together, each on its rows of a batch; ``carried``: of this rank's rows; ``state``: with
    the moments of the parameters that this rank updates.
    """

    report_is_free = False

    @on_gpu_of_arrays
    def __init__(
        self,
        model: RAMNet,
        config: TrainConfig,
        state: AdamWState,
        graphs: Graphs = "auto",
        log: Callable[[str], None] = print,
        carried: dict[str, Array] | None = None,
        ranks: Ranks = ONE,
    ):
        import cupy

        self._config, self._log, self._ranks = config, log, ranks
        self._saved = carried
        self._carried: CarriedState | None = None
        self._must_capture, self._captures = graphs == "on", graphs != "off"
        self._step, self._moments = state.step, (state.mean, state.square)
        self._gpu, self._stream = cupy.cuda.Device(), own_stream()
        self._pool = graph_pool()  # shared by the graphs, which run one after another
        self._buffers: dict[tuple[Any, ...], BatchBuffers] = {}
        model.params.update({name: cupy.ascontiguousarray(p) for name, p in model.params.items()})
        self._exchange = RanksBetweenGraphs(ranks)
        self._shards = Shards(ranks, model.params) if ranks.size > 1 and config.shard_optimizer else None
        if self._shards:
            model.params.update(self._shards.params)
        self._over_ranks = GradientSum(self._exchange, model.params) if ranks.size > 1 else None
        self._model = model if config.dtype == "float32" else model.to("gpu", dtype=config.dtype)
        self._optimizer = _gpu_adamw(model.params, config, state, self._model.params)
        self._addresses = self._optimizer.addresses()  # of the gradients of steps that are not graphs

    @property
    def state(self) -> AdamWState:
        return AdamWState(self._step, *self._moments)

    def whole_state(self) -> AdamWState:
        return self._shards.whole(self.state) if self._shards else self.state

    @property
    def model(self) -> RAMNet:
        return self._model

    @property
    def carried(self) -> dict[str, Array] | None:
        return self._carried.arrays() if self._carried else self._saved

    @property
    def graphs(self) -> int:
        """How many shapes of batch have been captured."""
        return sum(buffers.graph is not None for buffers in self._buffers.values())

    def step(self, batch: Batch | StreamBatch | PackedBatch | GPUBatch) -> None:
        packed = batch if isinstance(batch, PackedBatch) else None
        if packed is not None and self._must_capture:
            raise RuntimeError("a training step of packed rows (data.pack) cannot be captured as a CUDA graph")
        if isinstance(batch, StreamBatch) and self._carried is None:  # before a capture, which gives memory of its own
            self._carried = carried_from(self._model, batch, self._saved)
        buffers = self._upload_rows(batch) if isinstance(batch, GPUBatch) else self._upload_tokens(batch)
        if self._captures and packed is None and buffers.graph is None and buffers.warmed_up:
            self._ranks.wait()  # a capture may wait for the GPU
            self._capture(buffers)
        if packed is None and buffers.graph is not None:
            buffers.graph.launch()
        else:
            self._compute(buffers, self._addresses, bind=True, packed=packed)
        buffers.warmed_up = True
        self._step += 1

    def report(self) -> Report:
        self._ranks.wait()
        numbers = self._optimizer.numbers()
        if numbers["stopped"]:
            where = self._over_ranks.where() if self._over_ranks else ""
            raise Diverged(int(numbers["updates"]), not_finite(numbers["loss"], numbers["norm"]) + where)
        accuracy = numbers["correct"] / max(1, numbers["labels"])
        return Report(numbers["loss"], accuracy, numbers["rate"], numbers["norm"])

    def __enter__(self) -> GPUTrainer:
        import cupy

        self._gpu.__enter__()
        # The parameters come from another stream. Not the whole device: another thread may be capturing.
        cupy.cuda.get_current_stream().synchronize()
        self._stream.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        import cupy

        if any(isinstance(part, RankError) for part in exc_info):  # the GPU waits for a rank that does not come
            self._stream.__exit__(*exc_info)
            self._gpu.__exit__(*exc_info)
            return
        self._ranks.wait()
        self._stream.synchronize()
        self._stream.__exit__(*exc_info)
        # A pool's blocks refer to one another, so without this the graphs' memory would wait for Python's garbage
        # collector, which does not know that a GPU is full.
        self._buffers.clear()
        self._pool.free_all_blocks()
        cupy.get_default_memory_pool().free_all_blocks(self._stream)  # no other stream would use them
        self._gpu.__exit__(*exc_info)

    def _upload_tokens(self, batch: Batch | StreamBatch | PackedBatch) -> BatchBuffers:
        """Copy what a step needs of a batch on the host: ``sent_tokens``."""
        sent, shape = sent_tokens(batch, self._config.accumulate, self._model.config.vocab)
        if shape not in self._buffers:
            self._buffers[shape] = BatchBuffers(sum(map(len, sent)), partial(_split, *shape))
        self._buffers[shape].upload(sent, self._stream, self._ranks.wait)
        return self._buffers[shape]

    def _upload_rows(self, batch: GPUBatch) -> BatchBuffers:
        """Copy the row numbers of a batch whose sequences are on the GPU already."""
        key = (id(batch.source), len(batch.rows))  # the buffers keep the source alive, so no other one gets its id
        if key not in self._buffers:
            rows = part_rows(len(batch.rows), self._config.accumulate)
            self._buffers[key] = BatchBuffers(len(batch.rows), partial(_gather, batch.source, rows))
        self._buffers[key].upload([batch.rows], self._stream, self._ranks.wait)
        return self._buffers[key]

    def _compute(
        self, buffers: BatchBuffers, addresses: Array, *, bind: bool, packed: PackedBatch | None = None
    ) -> dict[str, Array]:
        """Launch one step. Returns the gradients; the optimiser is told their addresses only if ``bind``.

        ``packed``: the batch, if its rows are.
        """
        parts, start = buffers.inputs()
        if packed is not None:
            rows = len(packed.lengths) // len(parts)
            parts = [packed_part(p, packed.cu_seqlens(i * rows, (i + 1) * rows)) for i, p in enumerate(parts)]
        carried = None if start is None else self._carried
        result = loss_and_gradients(self._model, parts, self._config.recompute, carried, start, self._over_ranks)
        grads = self._optimizer.contiguous(result.grads)
        if bind:
            self._optimizer.bind(addresses, grads)
        self._optimizer.update(addresses, result.loss, result.correct, result.count)
        if self._shards:
            self._exchange.between(self._shards.send)
            self._optimizer.round_others()
        return grads

    def _capture(self, buffers: BatchBuffers) -> None:
        """Make the step of this shape a graph, unless there are enough; where that fails, see ``graphs``."""
        import cupy

        if self.graphs >= MAX_GRAPHS:
            return
        addresses = self._optimizer.addresses()
        # what the first step used; the graph brings its own
        cupy.get_default_memory_pool().free_all_blocks(self._stream)
        try:
            graph = self._exchange.graph = StepGraph(self._stream, addresses)
            last, grads = capture(lambda: self._compute(buffers, addresses, bind=False), self._stream, self._pool)
            graph.finish(last)
        except Exception as error:
            why = why_not_captured(error)
            if self._must_capture:
                raise RuntimeError(f"a training step could not be captured as a CUDA graph ({why})") from error
            self._captures = False
            self._log(f"without CUDA graphs, as a step could not be captured ({why})")
            return
        finally:
            self._exchange.graph = None
        self._optimizer.bind(addresses, grads)
        buffers.graph = graph


def _gpu_adamw(params: dict[str, Array], config: TrainConfig, state: AdamWState, computed: dict[str, Array]) -> Any:
    """AdamW as CUDA kernels that update all parameters together and leave their numbers on the device.

    ``computed``: what the model computes with: ``params``, or copies of them in 16 bits, which each update writes too.
    """
    from ramnet_np.kernels.cuda.optimizer.adamw import AdamWSettings, DeviceAdamW

    if config.steps > MOST_STEPS:
        raise ValueError(
            f"train.steps must be at most {MOST_STEPS:,} on a GPU, which has a table of their learning rates, "
            f"got {config.steps:,}"
        )
    settings = AdamWSettings(
        rates=np.fromiter((learning_rate(config, step) for step in range(config.steps)), np.float64, config.steps),
        beta1=config.beta1,
        beta2=config.beta2,
        eps=ADAMW_EPS,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )
    decayed = {name for name, p in params.items() if has_weight_decay(name, p)}
    copies = None if computed is params else dict(computed)
    return DeviceAdamW(dict(params), state.mean, state.square, decayed, state.step, settings, copies)


def sent_tokens(
    batch: Batch | StreamBatch | PackedBatch, accumulate: int, vocab: int
) -> tuple[list[Array], tuple[int, int, tuple[int, ...], bool]]:
    """What goes to the GPU of a batch on the host: ids, positions and labels of each part, and where rows of streams
    start; and the shape, by which ``_split`` finds them there. ValueError for ids and labels that are no tokens.

    >>> batch = Batch(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[-100, 3, -100], [5, -100, -100]]))
    >>> sent, shape = sent_tokens(batch, accumulate=2, vocab=8)
    >>> [array.tolist() for array in sent]
    [[1, 2, 3, 4, 5, 6], [1], [3], [0], [5]]
    >>> shape
    (2, 3, (1, 1), False)
    """
    ids, labels = on_host(batch.ids), on_host(batch.labels)
    rows = part_rows(len(ids), accumulate)
    # text, whose documents end anywhere, fills up to all tokens: its batches have one shape
    multiple = rows * ids.shape[1] if 2 * np.count_nonzero(labels >= 0) > labels.size else rows
    chosen = [labelled_tokens(labels[i : i + rows], multiple) for i in range(0, len(ids), rows)]
    require_ids("ids", ids, vocab)
    for _, wanted in chosen:
        require_ids("labels", wanted[wanted != IGNORE_INDEX], vocab)
    start = [on_host(batch.start)] if isinstance(batch, StreamBatch) else []
    shape = (*ids.shape, tuple(len(positions) for positions, _ in chosen), bool(start))
    return [ids.ravel(), *(array for pair in chosen for array in pair), *start], shape


def _split(sequences: int, length: int, labelled: tuple[int, ...], is_stream: bool, memory: Array) -> Inputs:
    """The inputs of a batch that was copied as one array: ids, positions and labels of each part, starts of streams."""
    ids, at = memory[: sequences * length].reshape(len(labelled), -1, length), sequences * length
    parts = []
    for rows, count in zip(ids, labelled, strict=True):
        parts.append(Part(rows, *memory[at : at + 2 * count].reshape(2, count)))
        at += 2 * count
    return parts, memory[at:] if is_stream else None


def _gather(source: GPUDataset, rows: int, numbers: Array) -> Inputs:
    """The inputs of a batch of the sequences ``numbers``, ``rows`` of them in each part."""
    return [Part(*source.gather(numbers[i : i + rows])) for i in range(0, len(numbers), rows)], None


def labelled_tokens(labels: Array, multiple: int) -> tuple[Array, Array]:
    """Where the labels of a batch are, and which they are, filled up to a multiple of ``multiple`` (at least one).

    ``labels``: (B, T); below 0 counts for nothing. Returns positions b*T + t and labels, (N,) int32 each: first the
    labelled tokens in their order, then as many others as are missing, with IGNORE_INDEX.

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
