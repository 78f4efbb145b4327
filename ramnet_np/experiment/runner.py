"""Grids from start to end: start runs, show progress, append results, stop in time. Runs with a result are skipped."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.corpus import read_corpus
from ramnet_np.experiment.failures import Failure, forget_failure, write_failure
from ramnet_np.experiment.grid import Grid, load_grid, together
from ramnet_np.experiment.one_run import Progress, checkpoints_of
from ramnet_np.experiment.points import GridRun
from ramnet_np.experiment.ray_pool import RayPool
from ramnet_np.experiment.records import Record, read_records, run_of
from ramnet_np.experiment.sweep import count_left, wanted_runs
from ramnet_np.experiment.tasks import figure
from ramnet_np.experiment.workers import WorkerPool
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.checks import SMALLEST, check_integer, check_number
from ramnet_np.model.files import append_record
from ramnet_np.model.network import Device
from ramnet_np.train.checkpoint import checkpoint_step, latest_checkpoint
from ramnet_np.train.folder import held_folder
from ramnet_np.train.interrupt import DeferredInterrupt

ATTEMPTS = 2  # how often a run is started whose worker dies
MOST_SIDE_BY_SIDE = 256
ON_SIGNAL = "stopping: runs that have ended keep their results, the others their last checkpoints"
MARGIN = 1.1  # a run is started if there is time for so many times what it is expected to take


@dataclass(frozen=True)
class Options:
    """How to run one grid or several. Runs that are in OUT/results.jsonl are skipped; a run that was interrupted
    resumes from its last checkpoint in OUT/unfinished."""

    out: Path | None = None
    """Folder for results.jsonl; none: runs/ and the names of the grids, joined by +."""
    also: tuple[Path, ...] = ()
    """Further results files: runs that are in them are skipped too."""
    device: Device = "cpu"
    """Where the runs compute; gpu needs CuPy and an NVIDIA GPU."""
    gpus: tuple[int, ...] = ()
    """Which GPUs: runs spread over a process for each; one that is named twice has two. None: all that are visible."""
    side_by_side: int = 1
    """Runs at the same time, on each GPU or on the CPU."""
    only: tuple[str, ...] = ("*",)
    """Points whose name matches; a star stands for anything, as in `m256-*`. Of several patterns, the points of an
    earlier one are run first."""
    max_minutes: float | None = None
    """Stop after so long, and print how far the runs are that have not ended. Runs that would end in time are started
    first."""
    quick: bool = False
    """The reduced grid, in minutes on a CPU: small vocabulary, few pairs, few steps. Its figures say nothing about the
    paper's."""
    text: Path | None = None
    """What grids on text read: a folder of tokens or of .txt files, or a file; none: a text that is made here."""
    keep_models: bool = False
    """Leave the models of runs at full length in OUT/models, for ramnet-np evaluate and generate."""
    epochs: float | None = None
    """Passes over the training sets, or over the text, in place of the grid's."""
    grid: Path | None = None
    """A grid file of your own, in place of the one that comes with the command."""
    ray: tuple[str, ...] | None = None
    """Run on all GPUs of a Ray cluster, or with device cpu on all its hosts: its address, or nothing for the cluster
    that this host is part of; where there is none, one is started on this host. Needs Ray: pip install
    'ramnet-np[ray]'."""

    def __post_init__(self) -> None:
        for name in ("max_minutes", "epochs"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), SMALLEST)
        if isinstance(self.only, str):
            raise TypeError(f"only must be a tuple of patterns, such as ('m256-*',), got the string {self.only!r}")
        check_integer("side_by_side", self.side_by_side, 1, MOST_SIDE_BY_SIDE)
        if self.ray is not None and (len(self.ray) > 1 or self.gpus):
            got = f"gpus {list(self.gpus)}" if self.gpus else f"{len(self.ray)} addresses"
            raise ValueError(f"ray must have one address or none, and no gpus beside it, got {got}")
        for gpu in self.gpus:
            check_integer("gpus", gpu, 0)


class Outcome(NamedTuple):
    """How a call of :func:`run_experiment` ended."""

    results: Path
    finished: int  # runs that ended in this call
    left: int
    failed: int
    signal: int | None  # that interrupted it: SIGINT for Ctrl-C
    reports: tuple[Path, ...] = ()  # a text for each run that failed, with its traceback and settings

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it."""
        return self.signal is not None


def run_experiment(
    names: str | Sequence[str], options: Options, *, log: Callable[[str], None] = tqdm.write, progress: bool = True
) -> Outcome:
    """Run what is left of a grid, of several together, or of ``options.grid``.

    ``names``: of grids that come with the command (``GRIDS``). Several share the folder and the order: all their points
    take a step of the search before any takes the next one.
    ``log``: called with a line for each run; ``progress``: show a bar. Ctrl-C and SIGTERM leave the results of finished
    runs and the checkpoints of the others. No other program may use the folder of the results meanwhile.

    >>> from tempfile import TemporaryDirectory
    >>> text = '''
    ... epochs = 1
    ... seeds = [0]
    ... learning_rates = [1e-3]
    ... model = { width = 8, order = 2, radix = 2, top_k = 2, ffn = "none" }
    ... data = { vocab = 32, train = [[2, 12, 32]], test = [[2, 12, 8]] }
    ... train = { batch = 8, warmup = 0 }
    ... points = [{ name = "tiny" }]
    ... '''
    >>> with TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "mine.toml").write_text(text)
    ...     options = Options(out=Path(folder), grid=Path(folder) / "mine.toml", max_minutes=1e-9)
    ...     run_experiment("mine", options, log=print, progress=False)[1:]
    on a CPU the whole grid takes days: --device gpu is meant for it, --quick for a look
    time is up: 1 run left; the same command goes on with it
    (0, 1, 0, None, ())
    """
    started = time.perf_counter()
    sources: Sequence[Path | str] = [names] if isinstance(names, str) else names
    if options.grid:
        if len(sources) > 1:
            raise ValueError(f"grid takes the place of one grid, got {len(sources)}: {', '.join(map(str, sources))}")
        sources = [options.grid]
    corpus = None if options.text is None else read_corpus(options.text, argument="text")
    grids = [load_grid(source, quick=options.quick, epochs=options.epochs, corpus=corpus) for source in sources]
    grid = together(grids).only(*options.only)
    gpus = _gpus(options) if options.device == "gpu" and options.ray is None else ()
    others = _other_records(options.also)
    out = options.out or Path("runs") / (grid.name + "-quick" * grid.quick)
    results = out / "results.jsonl"
    with held_folder(out):
        if results.is_dir():
            raise ValueError(f"{str(results)!r} must be a file of results, got a folder")
        records = [*others, *read_records([results] if results.exists() else [])]
        done = {run.key: record for record in records if (run := run_of(record))}
        work = _GridWork(grid, done, options, results, log, started)
        if grid.quick:
            log("quick: a reduced grid, to see that everything works; its figures say nothing about the paper's")
        elif options.device == "cpu":
            log("on a CPU the whole grid takes days: --device gpu is meant for it, --quick for a look")
        if work.left() and not work.time_is_up():
            pool = _pool(options, gpus, out, work.invocation)
            with (
                DeferredInterrupt(ON_SIGNAL) as interrupt,
                pool,
                tqdm(total=work.left(), unit="run", disable=not progress, dynamic_ncols=True, mininterval=0) as bar,
            ):
                work.run(pool, bar, interrupt)
        work.conclude()
    return Outcome(results, work.finished, work.left(), len(work.failed), work.signal, tuple(work.reports))


def _other_records(paths: Sequence[Path]) -> list[Record]:
    for path in paths:
        if not read_records([path]):
            raise ValueError(
                f"also must be files of records, such as an experiment's results.jsonl, got none in {str(path)!r}"
            )
    return read_records(paths)


def _pool(options: Options, gpus: tuple[int, ...], out: Path, invocation: str) -> WorkerPool | RayPool:
    text, keep = options.text, options.keep_models
    if options.ray is None:
        return WorkerPool(options.device, gpus, options.side_by_side, out, invocation, text, keep)
    address = options.ray[0] if options.ray else None
    return RayPool(address, options.device, options.side_by_side, out, invocation, text, keep)


def _gpus(options: Options) -> tuple[int, ...]:
    """Those named, or all; ValueError for one that is not there."""
    count = gpu_namespace().cuda.runtime.getDeviceCount()
    if max(options.gpus, default=0) >= count:
        raise ValueError(f"gpus must be below {count}, as many as there are, got {list(options.gpus)}")
    return options.gpus or tuple(range(count))


class _GridWork:
    """The runs of a grid in one call: which are done, how fast they are, what is left."""

    def __init__(
        self,
        grid: Grid,
        done: dict[str, Record],
        options: Options,
        results: Path,
        log: Callable[[str], None],
        started: float,
    ):
        self._grid, self._done, self._results, self._log, self._device = grid, done, results, log, options.device
        self._deadline = None if options.max_minutes is None else started + 60 * options.max_minutes
        self.invocation = datetime.now(UTC).isoformat(timespec="microseconds")
        self._attempts: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}
        # seconds a step, by mixer and point: from runs that ended, and from those that still run
        self._pace: dict[tuple[str, str], float] = {}
        self._pace_so_far: dict[tuple[str, str], float] = {}
        for record in done.values():
            self._keep_pace(record["settings"]["model"].get("mixer", RAMNetConfig.mixer), record)
        self._given_up: list[GridRun] = []
        self.failed: set[str] = set()
        self.reports: list[Path] = []
        self.finished = 0
        self.signal: int | None = None

    def left(self) -> int:
        return count_left(self._grid, self._done)

    def time_is_up(self) -> bool:
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def run(self, pool: WorkerPool | RayPool, bar: tqdm, interrupt: DeferredInterrupt) -> None:
        """Start runs and take in what they send, until nothing is left to do, time is up, or Ctrl-C is pressed."""
        every = 0.5 if sys.stderr.isatty() else 20.0  # seconds between two updates of the bar
        shown = 0.0
        while not (self.time_is_up() or interrupt.requested):
            while pool.free and (run := self._next(pool)):
                pool.start(run)
            if not pool.running:
                return
            for kind, run, what in pool.events(0.2):
                getattr(self, f"on_{kind}")(run, what)
                bar.n = self.finished
            if time.perf_counter() - shown >= every:
                bar.set_postfix_str(self._running(pool), refresh=True)
                shown = time.perf_counter()
        self._given_up, self.signal = pool.running, interrupt.signal

    def _next(self, pool: WorkerPool | RayPool) -> GridRun | None:
        """The first wanted run that would end in time; if none would, the first wanted one: it can resume later."""
        taken = [*(run.key for run in pool.running), *self.failed]
        runs = wanted_runs(self._grid, self._done, taken)
        in_time = (
            run for run in runs
            if self._deadline is None or time.perf_counter() + MARGIN * self._expected(run) <= self._deadline
        )  # fmt: skip
        return next(in_time, runs[0] if runs else None)

    def _expected(self, run: GridRun) -> float:
        """Seconds for the rest of a run: at the pace of its point, else the median pace of the points with its mixer,
        else the median of all points; 0 as long as no pace is known."""
        paces = self._pace_so_far | self._pace
        of_mixer = [pace for (mixer, _), pace in paces.items() if mixer == run.model.mixer]
        median = statistics.median(of_mixer or list(paces.values()) or [0.0])
        return (run.train.steps - self._saved(run)) * paces.get((run.model.mixer, run.name), median)

    def _saved(self, run: GridRun) -> int:
        """The step from which the run would resume."""
        last = latest_checkpoint(self._checkpoints(run))
        return checkpoint_step(last) if last else 0

    def _step(self, run: GridRun) -> int:
        """The step of the last report."""
        return self._progress[run.key].step if run.key in self._progress else 0

    def _checkpoints(self, run: GridRun) -> Path:
        return checkpoints_of(run, self._device, self._results.parent)

    def _keep_pace(self, mixer: str, record: Record) -> None:
        if record["steps"]:
            self._pace[mixer, record["name"]] = record["seconds"] / record["steps"]

    def on_progress(self, run: GridRun, progress: Progress) -> None:
        if run.key not in self._progress and progress.pace is None:
            self._log(f"{run.label}: goes on from step {progress.step} of {run.train.steps}")
        self._progress[run.key] = progress
        if progress.pace is not None:
            self._pace_so_far[run.model.mixer, run.name] = progress.pace

    def on_done(self, run: GridRun, record: Record) -> None:
        [grid] = [point.grid for point in self._grid.points if point.name == run.name]
        append_record(self._results, {"grid": grid, **record})
        shutil.rmtree(self._checkpoints(run), ignore_errors=True)
        forget_failure(run, self._results.parent)
        self._done[run.key] = record
        self.finished += 1
        self._keep_pace(run.model.mixer, record)
        if record["status"] == "diverged":
            self._log(f"{run.label}: diverged after {record['steps']} steps")
            return
        what = "bits a byte" if run.task == "text" else "accuracy"
        test = f"{what} {figure(record['accuracy']):.3f}, " if record["accuracy"] else ""
        self._log(
            f"{run.label}: {test}validation {figure(record['validation']):.3f}, {record['epochs']:g} epochs, "
            f"{record['seconds']:.0f} s, {record['tokens_per_second']:,} tokens/s"
        )

    def on_failed(self, run: GridRun, failure: Failure) -> None:
        self.failed.add(run.key)
        try:
            self.reports.append(write_failure(run, failure, self._step(run), self._results.parent))
            where = f"see {self.reports[-1]}"
        except OSError as error:
            where = f"no file has its traceback, as {error}"
        self._log(f"{run.label}: failed, and is left out: {failure.why} ({where})")

    def on_died(self, run: GridRun, _: None) -> None:
        self._attempts[run.key] = self._attempts.get(run.key, 0) + 1
        if self._attempts[run.key] == ATTEMPTS:
            self.on_failed(run, Failure(f"its process ended {ATTEMPTS} times"))

    def conclude(self) -> None:
        """Log which runs are left and why."""
        for run in self._given_up:
            at, end = self._step(run), run.train.steps
            self._log(f"{run.label}: stopped at step {at} of {end}, to go on from step {self._saved(run)}")
        left = self.left()
        runs, them = (f"{left} runs left", "them") if left != 1 else ("1 run left", "it")
        if self.signal is not None:
            self._log(f"interrupted: {runs}; the same command goes on with {them}")
        elif left and self.time_is_up():
            self._log(f"time is up: {runs}; the same command goes on with {them}")
        elif left:
            self._log(f"{runs}, of which {len(self.failed)} failed; the same command tries again")

    def _running(self, pool: WorkerPool | RayPool) -> str:
        """How far each run is that has not ended, and its accuracy."""
        parts = []
        for run in pool.running:
            at = self._progress.get(run.key)
            if at is None:
                parts.append(f"{run.name} begins")
            else:
                measured = at.training if at.validation is None else at.validation
                parts.append(f"{run.name} {at.step / run.train.steps:.0%} {measured:.3f}")
        return " | ".join(parts)
