"""Which runs a grid still wants, in which order, and how the learning rate is chosen.

The rule of choice: every rate of the list runs with the point's first seed. The rate with the highest mean accuracy on
the validation sets (held-out sequences of the TRAINING settings) is chosen; among equals, the first in the list. The
test sets play no part. A run that diverged cannot be chosen. The other seeds then run with the chosen rate.

The order: first seeds before second ones, within a seed the points as the grid lists them. So whenever a grid is
stopped, as many points as possible have a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ramnet_np.experiment.grid import Grid, GridRun, Point
from ramnet_np.experiment.records import Record


def chosen_rate(point: Point, done: Mapping[str, Record]) -> float | None:
    """The point's learning rate; None while the sweep is not over, or if all of it diverged.

    ``done``: records by the key of their run.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> point = load_grid("mqar-order").points[0]
    >>> [chosen_rate(point, {})] if len(point.learning_rates) > 1 else [None]
    [None]
    """
    if len(point.learning_rates) == 1:
        return point.learning_rates[0]
    swept = [done.get(point.run(point.seeds[0], rate).key) for rate in point.learning_rates]
    if None in swept:
        return None
    scores = [r["validation"]["mean"] if r and r["status"] != "diverged" else -1.0 for r in swept]
    best = max(range(len(scores)), key=lambda i: scores[i])
    return point.learning_rates[best] if scores[best] >= 0 else None


def wanted_runs(grid: Grid, done: Mapping[str, Record], taken: Iterable[str] = ()) -> list[GridRun]:
    """Runs that could start now, in order: neither ``done`` nor ``taken`` (keys of runs that were started or failed).

    >>> from ramnet_np.experiment.grid import load_grid
    >>> grid = load_grid("mqar-order")
    >>> wanted_runs(grid, {})[0].name == grid.points[0].name
    True
    """
    skipped = {*done, *taken}
    runs = []
    for number in range(max(len(point.seeds) for point in grid.points)):
        for point in grid.points:
            if number < len(point.seeds):
                rates = point.learning_rates if number == 0 else (chosen_rate(point, done),)
                runs += [point.run(point.seeds[number], rate) for rate in rates if rate is not None]
    return [run for run in runs if run.key not in skipped]


def count_left(grid: Grid, done: Mapping[str, Record]) -> int:
    """How many runs the grid still wants, those included whose rate is not chosen yet.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> grid = load_grid("mqar-order")
    >>> count_left(grid, {}) == sum(len(p.learning_rates) + len(p.seeds) - 1 for p in grid.points)
    True
    """
    left = len(wanted_runs(grid, done))
    for point in grid.points:
        sweep_over = all(point.run(point.seeds[0], rate).key in done for rate in point.learning_rates)
        if chosen_rate(point, done) is None and not sweep_over:
            left += len(point.seeds) - 1
    return left
