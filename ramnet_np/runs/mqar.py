"""One training run from start to end, as the command starts it: settings in, a folder with its results out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar

from threadpoolctl import threadpool_limits

from ramnet_np.backend import use_backend
from ramnet_np.contract import Address
from ramnet_np.core.arrays import gpu_namespace, namespace_of, on_host
from ramnet_np.data.batches import Batch, DataSource, Share, ShuffledSets
from ramnet_np.data.mqar import MQAR_PRESETS, MQARSettings, mqar_data, setting_names
from ramnet_np.model import RAMNet, RAMNetConfig, preset
from ramnet_np.model.checks import SMALLEST, check_choice, check_integer, check_number
from ramnet_np.model.mixers import mixers_of
from ramnet_np.model.network import Device
from ramnet_np.runs.workload import Workload, announcement, require_run_memory
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.folder import run_folder
from ramnet_np.train.gpu_trainer import Graphs
from ramnet_np.train.loop import Extras, TrainResult, train
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.ranks import ONE, Ranks, require_rows

PICTURES = ("curves.png", "trace.png")


@dataclass(frozen=True)
class Run:
    """What every training run has: a network, how to train it, where to leave the results."""

    instead: ClassVar[str] = "--device gpu takes minutes; fewer --train.steps or a smaller --train.batch take less"

    model: RAMNetConfig = field(default_factory=RAMNetConfig)
    """The network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The optimiser and the length of the run."""
    out: Path = Path("runs/run")
    """Folder for metrics.jsonl, checkpoints/ and the pictures; it is made if missing."""
    seed: int = 0
    """Decides the data, its order and the initial weights: the same seed gives the same bits."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, to the same bits as a run that was never stopped."""
    overwrite: bool = False
    """Start again in an `out` that already holds a run."""
    backend: str | None = None
    """Which implementation computes; none: the fastest that is installed."""
    device: Device = "cpu"
    """Where the model lives; gpu needs CuPy and an NVIDIA GPU. A run may be resumed on the other one."""
    graph: Graphs = "auto"
    """On a GPU, whether each step is one CUDA graph: auto goes on without where that fails, and says so."""
    gpus: int | None = None
    """GPUs of this host to train on, a process each, which share every batch; none: one process, on `device`."""
    ranks: int | None = None
    """Processes that train together on the CPUs of this host; needs MPI, pip install 'ramnet-np[ranks]'."""
    rank_timeout: float = 300.0
    """Seconds after which a process that does not answer the others ends the run."""

    def __post_init__(self) -> None:
        self._check_ranks()
        check_choice("device", self.device, Device)
        check_choice("graph", self.graph, Graphs)
        check_integer("seed", self.seed, 0, None)
        if not isinstance(self.out, str | PathLike):
            raise TypeError(f"out must be a path, got {self.out!r}")
        if not fspath(self.out):
            raise ValueError("out must name a folder, got ''")
        object.__setattr__(self, "out", Path(self.out))
        if self.device == "cpu" and self.backend in ("cupy", "numba-cuda"):
            raise ValueError(f"backend {self.backend!r} serves device 'gpu', got device 'cpu'")
        if self.device == "gpu" and self.backend not in (None, "cupy", "numba-cuda", "numpy"):
            raise ValueError(f"backend must be 'cupy', 'numba-cuda' or 'numpy' for device 'gpu', got {self.backend!r}")
        if self.graph == "on" and (self.device == "cpu" or self.backend == "numpy"):
            raise ValueError("graph must be 'auto' or 'off' unless a GPU's backend serves device 'gpu', got 'on'")

    def _check_ranks(self) -> None:
        for name in ("gpus", "ranks"):
            if (count := getattr(self, name)) is not None:
                check_integer(name, count, 1)
                require_rows(count, self.train.batch, self.train.accumulate)
        check_number("rank_timeout", self.rank_timeout, SMALLEST)
        if self.gpus is not None:
            if self.ranks is not None:
                raise ValueError(f"ranks must not be set beside gpus ({self.gpus}), got {self.ranks}")
            object.__setattr__(self, "device", "gpu")
        if self.ranks is not None and self.device != "cpu":
            raise ValueError(f"ranks is for device 'cpu', got device {self.device!r}: gpus is its like for GPUs")


@dataclass(frozen=True)
class MQARRun(Run):
    """Train a RAM-Net to recall: pairs (key, value) are shown once, then every key is asked for its value."""

    instead: ClassVar[str] = "--device gpu takes minutes; --preset demo is a smaller task, about a minute on a CPU"

    model: RAMNetConfig = field(default_factory=lambda: preset("mqar-small"))
    """The network."""
    data: MQARSettings = field(default_factory=lambda: MQAR_PRESETS["zoology"])
    """The task."""
    out: Path = Path("runs/mqar")
    """Folder for metrics.jsonl, checkpoints/ and the pictures; it is made if missing."""

    def __post_init__(self) -> None:
        if self.model.vocab < self.data.vocab:
            raise ValueError(f"model.vocab must be at least data.vocab ({self.data.vocab}), got {self.model.vocab}")
        super().__post_init__()


def run_mqar(run: MQARRun, *, progress: bool = True, ranks: Ranks = ONE) -> TrainResult:
    """Make the data and the model, train, and draw curves.png and trace.png (of slots) into ``run.out``.

    Ctrl-C ends it with status "interrupted" and a checkpoint; see :func:`ramnet_np.train.loop.train` for the errors.

    >>> from dataclasses import replace
    >>> from tempfile import TemporaryDirectory
    >>> small = MQARRun(
    ...     model=RAMNetConfig(vocab=32, width=16, order=2, top_k=4, ffn="none"),
    ...     data=MQARSettings(vocab=32, train=((2, 12, 32),), test=((2, 12, 8),)),
    ...     train=TrainConfig(steps=1, batch=8, warmup=0),
    ... )
    >>> with TemporaryDirectory() as folder:
    ...     result = run_mqar(replace(small, out=Path(folder) / "run"), progress=False)
    >>> result.status
    'finished'
    """

    def data() -> DataSource:
        train_sets, test_sets = mqar_data(run.data, run.seed)
        return ShuffledSets(
            [Batch(*examples) for examples in train_sets],
            {name: Batch(*examples) for name, examples in zip(setting_names(run.data.test), test_sets, strict=True)},
            run.train.batch,
            run.seed,
            Share(ranks.rank, ranks.size),
        )

    settings = run_settings(run, run.data)
    return train_run(run, data, settings, workload(run), accuracy="recall accuracy", progress=progress, ranks=ranks)


def workload(run: MQARRun) -> Workload:
    """What the sets of the task give to do.

    >>> workload(MQARRun()).most_labels
    4096
    """
    batch, sets = run.train.batch, run.data.train
    examples = sum(n for _, _, n in sets)
    return Workload(
        tokens=batch * sum(length * n for _, length, n in sets) / examples,
        labels=batch * sum(pairs * n for pairs, _, n in sets) / examples,
        most_labels=batch * max(pairs for pairs, _, _ in sets),
        held_out_tokens=sum(length * n for _, length, n in run.data.test),
        held_out_labels=sum(pairs * n for pairs, _, n in run.data.test),
        data_bytes=sum(8 * length * n for _, length, n in (*sets, *run.data.test)),  # ids and labels
    )


def train_run(
    run: Run,
    make_data: Callable[[], DataSource],
    settings: dict[str, object],
    work: Workload,
    *,
    accuracy: str,
    progress: bool,
    extras: Extras | None = None,
    ranks: Ranks = ONE,
) -> TrainResult:
    """Train on what ``make_data`` returns; draw the curves and the slots that the first held-out sequence touches.

    ``settings``: what decides the bits, see :func:`run_settings`; ``work``: what the data gives to do, to say how long
    it takes and whether it fits; ``accuracy``: what it is called in the curves; ``extras`` and ``ranks``: for the loop.
    MemoryError where the run cannot fit.
    A picture that cannot be drawn is a line on stderr, and the run is whole without it.

    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> model = RAMNetConfig(vocab=32, width=16, order=2, top_k=4, ffn="none")
    >>> ids = np.zeros((8, 6), dtype=np.int32)
    >>> with TemporaryDirectory() as folder:
    ...     run = Run(model=model, train=TrainConfig(steps=1, batch=8, warmup=0), out=Path(folder))
    ...     sets = ShuffledSets([Batch(ids, ids)], {"zeros": Batch(ids, ids)}, batch=8, seed=0)
    ...     train_run(run, lambda: sets, {}, Workload(48, 48, 48, 48, 48, 384), accuracy="right", progress=False).step
    1
    """
    # these may raise, so they come before the data, which takes seconds
    if run.device == "gpu":
        gpu_namespace()
    require_rows(ranks.size, run.train.batch, run.train.accumulate)
    require_run_memory(work, run.model, run.train, run.device, ranks.size)
    is_first = ranks.rank == 0
    progress = progress and is_first
    if is_first:
        _require_own_pictures(run)
    # One thread for NumPy's own matrix products: these are small, their threads fight the kernels' for the cores, and
    # how they split a sum would make the bits depend on the number of cores.
    with use_backend(run.backend) if run.backend else nullcontext(), threadpool_limits(1, user_api="blas"):
        with run_folder(run.out, resume=run.resume, overwrite=run.overwrite) if is_first else nullcontext():
            pass  # refuses a folder that cannot be used, before the data, which takes seconds
        if progress:
            words = announcement(work, run.model, run.train, run.instead) if run.device == "cpu" else None
            print(*filter(None, [words, "preparing data and model"]), sep="\n", file=sys.stderr)
        data = make_data()
        try:
            model = RAMNet(run.model, seed=run.seed).to(run.device)
            result = train(
                model,
                data,
                run.train,
                run.out,
                settings=settings,
                resume=run.resume,
                overwrite=run.overwrite,
                progress=progress,
                graphs=run.graph,
                extras=extras,
                ranks=ranks,
            )
        except MemoryError as error:
            where = "GPU" if run.device == "gpu" else "machine"
            raise RuntimeError(f"the {where} is short of memory ({error}); a smaller train.batch needs less") from error
        if is_first:
            _draw_pictures(run, result, data, accuracy)
    return result


def _require_own_pictures(run: Run) -> None:
    """ValueError where a picture would take the place of one that no run has left there."""
    if run.resume or run.overwrite or (run.out / "checkpoints").exists() or (run.out / "metrics.jsonl").exists():
        return
    for name in PICTURES:
        if (run.out / name).exists():
            raise ValueError(
                f"out must be a new folder, but {str(run.out)!r} holds {name!r} and no run; "
                "overwrite it or choose another folder"
            )


def run_settings(run: Run, data: Any) -> dict[str, object]:
    """What decides the bits of a run, as nested JSON values: everything but the folder and how it is entered.

    ``data``: the data set's settings, a dataclass or a dictionary. The backend is left out: backends agree to
    rounding, and a run may move to another machine.

    >>> run_settings(MQARRun(), {"path": "book.txt"})["seed"]
    0
    """
    data = data if isinstance(data, dict) else asdict(data)
    parts = {"model": asdict(run.model), "data": data, "train": asdict(run.train), "seed": run.seed}
    return json.loads(json.dumps(parts))


def _draw_pictures(run: Run, result: TrainResult, data: DataSource, accuracy: str) -> None:
    from ramnet_np.plot import slot_trace, training_curves  # Matplotlib: not before there is something to draw
    from ramnet_np.runs.pictures import try_picture

    curves, trace = (run.out / name for name in PICTURES)
    records, config = read_metrics(result.metrics), run.model
    if any(record["kind"] == "train" for record in records):
        try_picture(lambda: training_curves(records, accuracy=accuracy), curves)
    else:  # interrupted before its first record: no curve yet, and an earlier run's is not this one's
        curves.unlink(missing_ok=True)
    if any(slotted := [mixer.addresses is not None for mixer in mixers_of(config)]):
        cape = [config.cape_heads(layer) for layer in range(config.layers) if slotted[layer]]
        try_picture(lambda: slot_trace(_accesses(result.model, data), config.slots, cape_heads=cape), trace)


def _accesses(model: RAMNet, data: DataSource) -> list[dict[str, Address]]:
    """The slots that the first held-out sequence touches."""
    first = next(iter(data.held_out().values()))
    shown = namespace_of(*model.params.values()).asarray(first.ids[:1])
    return [{name: Address(*map(on_host, a)) for name, a in layer.items()} for layer in model.trace(shown) if layer]
