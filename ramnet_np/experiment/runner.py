"""A grid from start to end: start runs, show progress, append results, stop in time; what is done is skipped."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.experiment.grid import Grid, GridRun, load_grid
from ramnet_np.experiment.one_run import Progress, checkpoints_of
from ramnet_np.experiment.records import Record, append_record, read_records, run_of
from ramnet_np.experiment.sweep import count_left, wanted_runs
from ramnet_np.experiment.workers import Team
from ramnet_np.model.network import Device
from ramnet_np.train.checkpoint import checkpoint_step, latest_checkpoint
from ramnet_np.train.interrupt import DeferredInterrupt

ATTEMPTS = 2  # of a run whose process ended
MARGIN = 1.1  # of what a run is expected to take, before it is started with little time left


@dataclass(frozen=True)
class Options:
    """How to run a grid. Runs that are in OUT/results.jsonl are skipped; one that was interrupted goes on from its last
    checkpoint in OUT/unfinished."""

    out: Path | None = None
    """Folder for results.jsonl; none: runs/ and the name of the grid."""
    also: tuple[Path, ...] = ()
    """Further results files: runs that are in them are skipped too."""
    device: Device = "cpu"
    """Where the runs compute; gpu needs CuPy and an NVIDIA GPU."""
    gpus: tuple[int, ...] = (0,)
    """Which GPUs: a process for each; one that is named twice has two."""
    side_by_side: int = 1
    """Runs at the same time, on each GPU or on the CPU."""
    only: str = "*"
    """Points whose name matches; a star stands for anything, as in `m256-*`."""
    max_minutes: float | None = None
    """Stop after so long. Runs that would end in time are started first; for those that still run then it is said how
    far they are."""
    quick: bool = False
    """The reduced grid, in minutes on a CPU: small vocabulary, few pairs, few steps. Its figures say nothing about the
    paper's."""
    epochs: float | None = None
    """Passes over the training sets, in place of the grid's."""
    grid: Path | None = None
    """A grid file of your own, in place of the one that comes with the command."""

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be above 0, got {self.max_minutes}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs must be above 0, got {self.epochs}")


class Outcome(NamedTuple):
    """How it ended."""

    results: Path
    finished: int  # runs, of this call
    left: int
    failed: int
    interrupted: bool


def run_experiment(
    name: str, options: Options, *, say: Callable[[str], None] = tqdm.write, progress: bool = True
) -> Outcome:
    """Run what is left of the grid ``name``, or of ``options.grid``.

    ``say``: where a line for each run goes; ``progress``: show a bar. Ctrl-C leaves what is finished.

    >>> from tempfile import TemporaryDirectory
    >>> text = '''
    ... epochs = 1
    ... seeds = [0]
    ... learning_rates = [1e-3]
    ... model = { width = 8, order = 2, radix = 2, top_k = 2, ffn = "none" }
    ... data = { vocab = 32, train = [[2, 12, 32]], test = [[2, 12, 8]] }
    ... train = { batch = 8 }
    ... points = [{ name = "tiny" }]
    ... '''
    >>> with TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "mine.toml").write_text(text)
    ...     options = Options(out=Path(folder), grid=Path(folder) / "mine.toml", max_minutes=1e-9)
    ...     run_experiment("mine", options, say=print, progress=False)[1:]
    on a CPU the whole grid takes days: --device gpu is meant for it, --quick for a look
    time is up: 1 run left; the same command goes on with it
    (0, 1, 0, False)
    """
    started = time.perf_counter()
    grid = load_grid(options.grid or name, quick=options.quick, epochs=options.epochs).only(options.only)
    if options.device == "gpu":
        count = gpu_namespace().cuda.runtime.getDeviceCount()
        if max(options.gpus, default=0) >= count:
            raise ValueError(f"gpus must be below {count}, as many as there are, got {list(options.gpus)}")
    out = options.out or Path("runs") / (grid.name + "-quick" * grid.quick)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    records = read_records([*options.also, *([results] if results.exists() else [])])
    done = {run.key: record for record in records if (run := run_of(record))}
    session = _Session(grid, done, options, results, say, started)
    if grid.quick:
        say("quick: a reduced grid, to see that everything works; its figures say nothing about the paper's")
    elif options.device == "cpu":
        say("on a CPU the whole grid takes days: --device gpu is meant for it, --quick for a look")
    if session.left() and not session.time_is_up():
        team = Team(options.device, options.gpus, options.side_by_side, out, session.name)
        with (
            DeferredInterrupt() as interrupt,
            team,
            tqdm(total=session.left(), unit="run", disable=not progress, dynamic_ncols=True, mininterval=0) as bar,
        ):
            session.work(team, bar, interrupt)
    session.conclude()
    return Outcome(results, session.finished, session.left(), len(session.failed), session.interrupted)


class _Session:
    """What is known while a grid runs."""

    def __init__(
        self,
        grid: Grid,
        done: dict[str, Record],
        options: Options,
        results: Path,
        say: Callable[[str], None],
        started: float,
    ):
        self._grid, self._done, self._results, self._say, self._device = grid, done, results, say, options.device
        self._deadline = None if options.max_minutes is None else started + 60 * options.max_minutes
        self.name = datetime.now(UTC).isoformat(timespec="microseconds")
        self._attempts: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}
        # seconds a step, by mixer and point: of runs that ended, and of those that have not
        self._pace: dict[tuple[str, str], float] = {}
        self._pace_so_far: dict[tuple[str, str], float] = {}
        for record in done.values():
            self._keep_pace(record["settings"]["model"]["mixer"], record)
        self._given_up: list[GridRun] = []
        self.failed: set[str] = set()
        self.finished = 0
        self.interrupted = False

    def left(self) -> int:
        return count_left(self._grid, self._done)

    def time_is_up(self) -> bool:
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def work(self, team: Team, bar: tqdm, interrupt: DeferredInterrupt) -> None:
        """Until nothing is left that can be started and nothing runs, or time is up, or the first Ctrl-C."""
        every = 0.5 if sys.stderr.isatty() else 20.0  # seconds between two pictures of the bar
        shown = 0.0
        while not (self.time_is_up() or interrupt.requested):
            while team.free and (run := self._next(team)):
                team.start(run)
            if not team.running:
                return
            for kind, run, what in team.events(0.2):
                getattr(self, f"on_{kind}")(run, what)
                bar.n = self.finished
            if time.perf_counter() - shown >= every:
                bar.set_postfix_str(self._running(team), refresh=True)
                shown = time.perf_counter()
        self._given_up, self.interrupted = team.running, interrupt.requested

    def _next(self, team: Team) -> GridRun | None:
        """The first run that is wanted and would end in time; where none would, the first: it can go on later."""
        taken = [*(run.key for run in team.running), *self.failed]
        runs = wanted_runs(self._grid, self._done, taken)
        in_time = (
            run for run in runs
            if self._deadline is None or time.perf_counter() + MARGIN * self._expected(run) <= self._deadline
        )  # fmt: skip
        return next(in_time, runs[0] if runs else None)

    def _expected(self, run: GridRun) -> float:
        """Seconds for what is left of a run: at the pace of its point, else the median pace of the points of its mixer,
        else that of all; 0 as long as nothing is known."""
        paces = self._pace_so_far | self._pace
        of_mixer = [pace for (mixer, _), pace in paces.items() if mixer == run.model.mixer]
        median = statistics.median(of_mixer or list(paces.values()) or [0.0])
        return (run.train.steps - self._saved(run)) * paces.get((run.model.mixer, run.name), median)

    def _saved(self, run: GridRun) -> int:
        """The step from which the run would go on."""
        last = latest_checkpoint(self._checkpoints(run))
        return checkpoint_step(last) if last else 0

    def _checkpoints(self, run: GridRun) -> Path:
        return checkpoints_of(run, self._device, self._results.parent)

    def _keep_pace(self, mixer: str, record: Record) -> None:
        if record["steps"]:
            self._pace[mixer, record["name"]] = record["seconds"] / record["steps"]

    def on_progress(self, run: GridRun, progress: Progress) -> None:
        if run.key not in self._progress and progress.pace is None:
            self._say(f"{run.label}: goes on from step {progress.step} of {run.train.steps}")
        self._progress[run.key] = progress
        if progress.pace is not None:
            self._pace_so_far[run.model.mixer, run.name] = progress.pace

    def on_done(self, run: GridRun, record: Record) -> None:
        append_record(self._results, {"grid": self._grid.name, **record})
        shutil.rmtree(self._checkpoints(run), ignore_errors=True)
        self._done[run.key] = record
        self.finished += 1
        self._keep_pace(run.model.mixer, record)
        if record["status"] == "diverged":
            self._say(f"{run.label}: diverged after {record['steps']} steps")
            return
        self._say(
            f"{run.label}: accuracy {record['accuracy']['mean']:.3f} (validation {record['validation']['mean']:.3f}), "
            f"{record['epochs']:g} epochs, {record['seconds']:.0f} s, {record['tokens_per_second']:,} tokens/s"
        )

    def on_failed(self, run: GridRun, why: str) -> None:
        self.failed.add(run.key)
        self._say(f"{run.label}: failed, and is left out: {why}")

    def on_lost(self, run: GridRun, _: None) -> None:
        self._attempts[run.key] = self._attempts.get(run.key, 0) + 1
        if self._attempts[run.key] == ATTEMPTS:
            self.on_failed(run, f"its process ended {ATTEMPTS} times")

    def conclude(self) -> None:
        """Say what is left and why."""
        for run in self._given_up:
            at = self._progress[run.key].step if run.key in self._progress else 0
            self._say(f"{run.label}: stopped at step {at} of {run.train.steps}, to go on from step {self._saved(run)}")
        left = self.left()
        runs, them = (f"{left} runs left", "them") if left != 1 else ("1 run left", "it")
        if self.interrupted:
            self._say(f"interrupted: {runs}; the same command goes on with {them}")
        elif left and self.time_is_up():
            self._say(f"time is up: {runs}; the same command goes on with {them}")
        elif left:
            self._say(f"{runs}, of which {len(self.failed)} failed; the same command tries again")

    def _running(self, team: Team) -> str:
        """Of each run that is on its way: how far it is, and its accuracy."""
        parts = []
        for run in team.running:
            at = self._progress.get(run.key)
            if at is None:
                parts.append(f"{run.name} begins")
            else:
                measured = at.training if at.validation is None else at.validation
                parts.append(f"{run.name} {at.step / run.train.steps:.0%} {measured:.3f}")
        return " | ".join(parts)
