"""A grid from start to end: start runs, show progress, append results, stop in time; what is done is skipped."""

from __future__ import annotations

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
from ramnet_np.experiment.one_run import Progress
from ramnet_np.experiment.order import count_left, wanted_runs
from ramnet_np.experiment.records import Record, append_record, read_records, run_of
from ramnet_np.experiment.workers import Team
from ramnet_np.model.network import Device

ATTEMPTS = 2  # of a run whose process ended
MARGIN = 1.1  # of what a run is expected to take, before it is started with little time left


@dataclass(frozen=True)
class Options:
    """How to run a grid. Runs that are in OUT/results.jsonl are skipped; one that was interrupted begins again."""

    out: Path | None = None
    """Folder for results.jsonl; none: runs/ and the name of the grid."""
    device: Device = "cpu"
    """Where the runs compute; gpu needs CuPy and an NVIDIA GPU."""
    gpus: tuple[int, ...] = (0,)
    """Which GPUs: a process for each; one that is named twice has two."""
    side_by_side: int = 1
    """Runs at the same time, on each GPU or on the CPU."""
    only: str = "*"
    """Points whose name matches; a star stands for anything, as in `m256-*`."""
    max_minutes: float | None = None
    """Start no run that would not end in time, give up those that still run then, and say what is left."""
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
    records = read_records([results]) if results.exists() else []
    done = {run.key: record for record in records if (run := run_of(record))}
    session = _Session(grid, done, options, results, say, started)
    if grid.quick:
        say("quick: a reduced grid, to see that everything works; its figures say nothing about the paper's")
    elif options.device == "cpu":
        say("on a CPU the whole grid takes days: --device gpu is meant for it, --quick for a look")
    if session.left() and not session.time_is_up():
        team = Team(options.device, options.gpus, options.side_by_side)
        with (
            team,
            tqdm(total=session.left(), unit="run", disable=not progress, dynamic_ncols=True, mininterval=0) as bar,
        ):
            try:
                session.work(team, bar)
            except KeyboardInterrupt:
                session.interrupted = True
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
        self._grid, self._done, self._results, self._say = grid, done, results, say
        self._deadline = None if options.max_minutes is None else started + 60 * options.max_minutes
        self._name = datetime.now(UTC).isoformat(timespec="seconds")
        self._attempts: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}
        self._pace = {r["name"]: r["seconds"] / r["steps"] for r in done.values() if r["steps"]}
        self.failed: set[str] = set()
        self.finished = 0
        self.interrupted = False

    def left(self) -> int:
        return count_left(self._grid, self._done)

    def time_is_up(self) -> bool:
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def work(self, team: Team, bar: tqdm) -> None:
        """Until nothing is left that can be started and nothing runs, or time is up."""
        every = 0.5 if sys.stderr.isatty() else 20.0  # seconds between two pictures of the bar
        shown = 0.0
        while not self.time_is_up():
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

    def _next(self, team: Team) -> GridRun | None:
        """The first run that is wanted and would end in time."""
        taken = [*(run.key for run in team.running), *self.failed]
        for run in wanted_runs(self._grid, self._done, taken):
            if self._deadline is None or time.perf_counter() + MARGIN * self._expected(run) <= self._deadline:
                return run
        return None

    def _expected(self, run: GridRun) -> float:
        """Seconds: as the same point took before, else the slowest of the others; 0 as long as nothing is known."""
        return run.train.steps * self._pace.get(run.name, max(self._pace.values(), default=0.0))

    def on_progress(self, run: GridRun, progress: Progress) -> None:
        self._progress[run.key] = progress

    def on_done(self, run: GridRun, record: Record) -> None:
        append_record(self._results, {"grid": self._grid.name, "session": self._name, **record})
        self._done[run.key] = record
        self.finished += 1
        if record["steps"]:
            self._pace[run.name] = record["seconds"] / record["steps"]
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
        left = self.left()
        runs, them = (f"{left} runs left", "them") if left != 1 else ("1 run left", "it")
        if self.interrupted:
            self._say(f"interrupted: {runs}; the same command goes on with {them}")
        elif left and len(self.failed) < left:
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
