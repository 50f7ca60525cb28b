"""Every method beside task arithmetic with a chosen λ, paired run by run (figure F12).

Task arithmetic is what a method has to beat: one number, chosen on validation. Runs are
the unit, as merges of one run share their experts.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from merging.report import plotting
from merging.report.plotting import Figure
from merging.report.summaries import Grid, by_seed, spread
from merging.runtime.text import Table

REFERENCE = "task_arithmetic"
LEVEL = 0.95  # of intervals
ALL_K = "all"
BETTER, WORSE, ALIKE = "better", "worse", "not told apart"
_SCORE = "normalised_gain"


class Difference(NamedTuple):
    """A method's score minus task arithmetic's in the same runs.

    Attributes:
      mean: over the runs.
      half: of the interval of `LEVEL`, by Student's t over the runs; None of one run.
      above: the runs in which the method is better.
      runs: how many both have.
    """

    mean: float
    half: float | None
    above: int
    runs: int

    @property
    def reading(self) -> str:
        """Whether the interval leaves 0 out, and on which side."""
        if self.half is None or abs(self.mean) <= self.half:
            return ALIKE
        return BETTER if self.mean > 0 else WORSE


def difference(
    method: Mapping[int, float], reference: Mapping[int, float]
) -> Difference | None:
    """Return how a method differs from the reference: {run: score} of each.

    >>> from merging.report.against import difference
    >>> found = difference({0: 0.30, 1: 0.35, 2: 0.31}, {0: 0.20, 1: 0.22, 2: 0.21})
    >>> f"{found.mean:.2f} ± {found.half:.2f}", found.reading
    ('0.11 ± 0.04', 'better')
    """
    from scipy import stats

    runs = sorted(set(method) & set(reference))
    if not runs:
        return None
    values = [method[run] - reference[run] for run in runs]
    half = None
    if len(runs) > 1:
        error = statistics.stdev(values) / math.sqrt(len(runs))
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(runs) - 1)) * error
    above = sum(value > 0 for value in values)
    return Difference(statistics.fmean(values), half, above, len(runs))


def table(grid: Grid) -> Table:
    """Every method's normalised gain, and its difference from task arithmetic's."""
    rows = []
    for size, base, K, method, found in _differences(grid):
        mean = sd = None
        if K != ALL_K:
            scores = by_seed(grid.models(size, base, method, K), _SCORE)
            mean, sd = spread(scores.values())[:2]
        ends = (None, None)
        if found.half is not None:
            ends = (found.mean - found.half, found.mean + found.half)
        rows.append(
            (size, grid.sizes[size], base, K, method, mean, sd, found.mean, *ends)
            + (found.above, found.runs, found.reading)
        )
    columns = ("size", "params", "base", "K", "method", "mean", "sd", "difference")
    columns += ("low", "high", "runs above", "runs", "reading")
    title = "Normalised gain beside task arithmetic's, paired by run"
    return Table("F12", title, columns, tuple(rows))


def draw(grid: Grid) -> Figure | None:
    """Rows: bases at the largest size; columns: K; down: methods, best first."""
    found = [r for r in _differences(grid) if r[2] != ALL_K and r[4].half is not None]
    largest = [size for size in grid.sizes if any(row[0] == size for row in found)]
    found = [row for row in found if row[0] == largest[-1]] if largest else []
    if not found:
        return None
    bases = [base for base in grid.bases if any(row[1] == base for row in found)]
    counts = [K for K in grid.counts if any(row[2] == K for row in found)]
    means: dict[str, list[float]] = {}
    for *_, method, one in found:
        means.setdefault(method, []).append(one.mean)
    methods = sorted(means, key=lambda method: statistics.fmean(means[method]))
    canvas, axes = plotting.panels(
        len(bases), len(counts), width=2.9, height=0.9 + 0.19 * len(methods)
    )
    for row, base in enumerate(bases):
        for column, K in enumerate(counts):
            ax = axes[row, column]
            here = {r[3]: r[4] for r in found if (r[1], r[2]) == (base, K)}
            ax.axvline(0, color="#999999", linewidth=0.8)
            for place, method in enumerate(methods):
                if method in here:
                    _point(ax, place, here[method])
            own = by_seed(grid.models(largest[-1], base, REFERENCE, K), _SCORE)
            mean = statistics.fmean(own.values())
            ax.set_title(f"{base.upper()}, K = {K} (task arithmetic {mean:.2f})")
            ax.set_yticks(range(len(methods)), map(plotting.label, methods))
            ax.set_ylim(-0.7, len(methods) - 0.3)
            if row == len(bases) - 1:
                ax.set_xlabel("difference in normalised gain")
    caption = (
        "Normalised gain of every method minus that of task arithmetic with the λ that "
        f"validation chose, at {largest[-1]}: means over the runs, and intervals of "
        f"{LEVEL:.0%} (Student's t, paired by run). Filled: the interval leaves 0 out, "
        f"as {(1 - LEVEL) * len(found):.0f} of these {len(found)} would by chance."
    )
    title = "Methods beside task arithmetic"
    return plotting.finish(canvas, "F12", title, caption, [])


def _point(ax, place: int, found: Difference) -> None:
    color = {BETTER: "#0072b2", WORSE: "#d55e00", ALIKE: "#666666"}[found.reading]
    filled = color if found.reading != ALIKE else "white"
    ax.errorbar(
        [found.mean],
        [place],
        xerr=[found.half],
        color=color,
        marker={BETTER: "^", WORSE: "v", ALIKE: "o"}[found.reading],
        markerfacecolor=filled,
        markersize=4.5,
        elinewidth=1.0,
        linestyle="none",
    )


def _differences(grid: Grid):
    """Yield size, base, K, method and its difference, in the figures' order.

    After those of each K comes `ALL_K`, the mean of each run over what it has.
    """
    for size in grid.sizes:
        for base in grid.bases:
            every: dict[str, list[tuple[dict, dict]]] = {}
            for K in grid.counts:
                own = by_seed(grid.models(size, base, REFERENCE, K), _SCORE)
                for method in grid.methods if own else ():
                    scores = by_seed(grid.models(size, base, method, K), _SCORE)
                    found = difference(scores, own) if method != REFERENCE else None
                    if found is not None:
                        every.setdefault(method, []).append((scores, own))
                        yield size, base, K, method, found
            for method, pairs in every.items():
                if len(pairs) > 1:
                    found = difference(
                        *map(_mean_over_counts, zip(*pairs, strict=True))
                    )
                    if found is not None:
                        yield size, base, ALL_K, method, found


def _mean_over_counts(scores: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return each run's mean over the K, of the runs that have all."""
    runs = set.intersection(*map(set, scores))
    return {run: statistics.fmean(of[run] for of in scores) for run in sorted(runs)}
