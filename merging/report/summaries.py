"""Rows → one score per model → cells of the experiment's grid, with their spread."""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from merging.runtime.joining import join, require_one_experiment
from merging.runtime.results import BASELINES, BASES, Row

METHOD_ORDER = ("average", "task_arithmetic", "ties", "dare", "dare_ties", "rht")
MULTITASK = ("multitask", "multitask_early")

# A base this near to chance on held-out tasks has no skill for a ratio to compare.
NEAR_CHANCE = 0.03

# Normalised gain divides by the base-to-expert gap; below this (raw metric, 0-1) it is
# noise, so it is left out and counted.
SMALLEST_GAP = 0.01


class Spread(NamedTuple):
    """Mean and spread of one score over models (seeds and subsets).

    Attributes:
      sd: sample standard deviation; None with fewer than two values.
      count: values that exist.
      excluded: values that do not exist (a zero or unknown denominator).
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    count: int
    excluded: int


class Cell(NamedTuple):
    """One point of a curve: all models that differ only in seed and subset."""

    size: str
    base: str
    method: str
    K: int


@dataclasses.dataclass(frozen=True)
class ModelScores:
    """One evaluated model, its datasets summarised (arXiv 2410.03617).

    Attributes:
      held_in: mean over the merged experts' tasks of metric(model)/metric(expert).
      floor: the same ratio for the unmerged base.
      normalised_gain: (model - base)/(expert - base) on mean raw scores of those tasks.
      held_in_raw, expert_raw, base_raw: mean raw scores of those tasks.
      held_out: mean over held-out tasks of metric(model)/metric(base).
      held_out_raw: mean raw score of the held-out tasks.
      gain: mean raw score on all held-in datasets, merged or not, above the base's.
      normalised_gain_all: `gain` as a share of the base-to-expert gap on the same
        datasets.
      held_in_excluded, held_out_excluded: tasks left out of the ratio because the
        expert's (the base's) score is zero or unknown.
      scale, density, scale_at_edge: the settings chosen on validation.
      tried: (λ, mean validation ratio) of every λ at the chosen density, if recorded.
    """

    cell: Cell
    seed: int
    subset: tuple[str, ...]
    held_in: float | None
    floor: float | None
    normalised_gain: float | None
    held_in_raw: float | None
    expert_raw: float | None
    base_raw: float | None
    held_in_excluded: int
    held_out: float | None
    held_out_raw: float | None
    held_out_excluded: int
    gain: float | None
    normalised_gain_all: float | None
    scale: float | None
    density: float | None
    scale_at_edge: bool | None
    tried: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Grid:
    """Everything the report says, by cell.

    Attributes:
      sizes: size → parameter count, smallest first.
      bases, methods, counts: the bases, merge methods and values of K present.
      categories: the held-in categories.
      cells: the models of each cell, by seed and subset.
      rows: the rows, each evaluated thing once, sorted.
      notes: what a reader must know about the input (duplicates, holes, ...).
    """

    suite: str
    family: str
    sizes: Mapping[str, int]
    bases: tuple[str, ...]
    methods: tuple[str, ...]
    counts: tuple[int, ...]
    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    cells: Mapping[Cell, tuple[ModelScores, ...]]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @functools.cached_property
    def counts_of(self) -> dict[str, tuple[int, ...]]:
        """The values of K that each method can merge: those of two models, 2 alone."""
        # Imported late: it takes JAX.
        from merging import methods

        known = set(methods.names())
        takes = {m: methods.get(m).takes for m in self.methods if m in known}
        return {
            m: tuple(K for K in self.counts if takes.get(m) in (None, K))
            for m in self.methods
        }

    def models(self, size: str, base: str, method: str, K: int | None = None):
        """The models of a cell; K None means whatever K the method was run with."""
        if K is not None:
            return self.cells.get(Cell(size, base, method, K), ())
        return tuple(
            model
            for cell, models in self.cells.items()
            if cell[:3] == (size, base, method)
            for model in models
        )


def spread(values: Iterable[float | None]) -> Spread:
    """Summarise scores; None values are counted as excluded."""
    values = list(values)
    known = [value for value in values if value is not None]
    if not known:
        return Spread(None, None, None, None, 0, len(values))
    sd = statistics.stdev(known) if len(known) > 1 else None
    # Clamped: rounding must not put the mean of equal values outside their range.
    mean = min(max(statistics.fmean(known), min(known)), max(known))
    return Spread(
        mean, sd, min(known), max(known), len(known), len(values) - len(known)
    )


def measure(models: Sequence[ModelScores], name: str) -> Spread:
    """The spread of one attribute of `ModelScores` over models."""
    return spread(getattr(model, name) for model in models)


def by_seed(models: Sequence[ModelScores], name: str) -> dict[int, float]:
    """Seed → mean of an attribute over that seed's models (subsets)."""
    values: dict[int, list[float]] = {}
    for model in models:
        if (value := getattr(model, name)) is not None:
            values.setdefault(model.seed, []).append(value)
    return {seed: statistics.fmean(values[seed]) for seed in sorted(values)}


def across_methods(
    grid: "Grid", size: str, bases: Sequence[str], K: int, name: str
) -> Spread:
    """The spread over runs (a base and a seed) of the mean over the merge methods.

    Methods without a value in a run that others have drop that run, so that every run
    is a mean of the same methods. Those that merge two models alone are left out where
    there are others: along K, the mean is of the same methods, too.
    """
    means: list[float] = []
    any_count = [m for m, counts in grid.counts_of.items() if counts == grid.counts]
    for base in bases:
        each = [
            by_seed(grid.models(size, base, m, K), name)
            for m in any_count or grid.methods
        ]
        each = [seeds for seeds in each if seeds]
        shared = set.intersection(*map(set, each)) if each else set()
        means += [statistics.fmean(e[seed] for e in each) for seed in sorted(shared)]
    return spread(means)


def of_category(grid: "Grid", category: str) -> "Grid | None":
    """The same experiment, scored on one category's datasets; None without any."""
    kept = {(c, m.seed, m.subset) for c, models in grid.cells.items() for m in models}
    rows = [
        row
        for row in grid.rows
        if row.category == category
        and (Cell(row.size, row.base, row.method, row.K), row.seed, row.subset) in kept
    ]
    return summarise(rows) if rows else None


def method_key(method: str) -> tuple:
    """Sort key: merge methods in the papers' order, unknown ones last by name."""
    known = method in METHOD_ORDER
    return (not known, METHOD_ORDER.index(method) if known else 0, method)


def summarise(rows: Iterable[Row]) -> Grid:
    """Aggregate rows into the grid's cells.

    Raises:
      UserError: no rows, rows of several suites or families, or runs that
        contradict each other.
    """
    rows, notes = join(rows)
    require_one_experiment(rows)
    everything = frozenset(r.dataset for r in rows)
    held_in = frozenset(r.dataset for r in rows if r.split == "held_in")
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        cell = Cell(row.size, row.base, row.method, row.K)
        key = cell, row.seed, tuple(sorted(row.subset))
        groups.setdefault(key, []).append(row)

    cells: dict[Cell, list[ModelScores]] = {}
    incomplete = 0
    for (cell, _, _), group in groups.items():
        # Experts and bases may be evaluated on part of the suite; what is
        # compared on means over the whole suite may not.
        whole = {row.dataset for row in group} == everything
        if not whole and cell.method not in ("base", "expert"):
            incomplete += 1
            continue
        cells.setdefault(cell, []).append(_score(cell, group, held_in))
    if incomplete:
        notes.append(
            f"{incomplete} models lack some datasets and are left out of every score."
        )
    merges = [cell for cell in cells if cell.method not in BASELINES]
    grid = Grid(
        suite=rows[0].suite,
        family=rows[0].family,
        sizes=dict(sorted({(r.size, r.params) for r in rows}, key=lambda x: x[::-1])),
        bases=tuple(base for base in BASES if any(r.base == base for r in rows)),
        methods=tuple(sorted({c.method for c in merges}, key=method_key)),
        counts=tuple(sorted({c.K for c in merges})),
        seeds=tuple(sorted({r.seed for r in rows if r.method not in BASELINES})),
        categories=tuple(sorted({r.category for r in rows if r.split == "held_in"})),
        cells={cell: tuple(models) for cell, models in cells.items()},
        rows=tuple(rows),
        notes=(),
    )
    return dataclasses.replace(grid, notes=(*notes, *_caveats(grid)))


def _score(cell: Cell, rows: Sequence[Row], all_held_in: frozenset[str]) -> ModelScores:
    held_in = [row for row in rows if row.split == "held_in"]
    held_out = [row for row in rows if row.split == "held_out"]
    # A multitask model is trained on every held-in task.
    own = [row for row in held_in if row.merged or cell.method in MULTITASK]
    comparable = [row for row in own if row.value_of_expert]
    based = [row for row in held_out if row.value_of_base]
    known = [r for r in own if None not in (r.value_of_expert, r.value_of_base)]
    floors = [r for r in comparable if r.value_of_base is not None]
    settings = rows[0].parameters
    edge = settings.get("scale_at_edge")
    gain, normalised_gain_all = _gain(held_in, all_held_in)
    return ModelScores(
        cell=cell,
        seed=rows[0].seed,
        subset=rows[0].subset,
        held_in=_mean(row.value / row.value_of_expert for row in comparable),
        floor=_mean(row.value_of_base / row.value_of_expert for row in floors),
        normalised_gain=share(known),
        held_in_raw=_mean(row.value for row in own),
        expert_raw=_mean(row.value_of_expert for row in known),
        base_raw=_mean(row.value_of_base for row in known),
        held_in_excluded=len(own) - len(comparable),
        held_out=_mean(row.value / row.value_of_base for row in based),
        held_out_raw=_mean(row.value for row in held_out),
        held_out_excluded=len(held_out) - len(based),
        gain=gain,
        normalised_gain_all=normalised_gain_all,
        scale=_number(settings.get("scale")),
        density=_number(settings.get("density")),
        scale_at_edge=edge if isinstance(edge, bool) else None,
        tried=_tried(settings),
    )


def _tried(settings: Mapping[str, object]) -> tuple[tuple[float, float], ...]:
    """Pairs of `tried_scales` and `tried_scores`, or none where they do not fit."""
    lists = [settings.get(name) for name in ("tried_scales", "tried_scores")]
    if not all(isinstance(found, list | tuple) for found in lists):
        return ()
    numbers = [tuple(map(_number, found)) for found in lists]
    if len(numbers[0]) != len(numbers[1]) or None in (*numbers[0], *numbers[1]):
        return ()
    return tuple(zip(*numbers, strict=True))


def _gain(
    held_in: Sequence[Row], every: frozenset[str]
) -> tuple[float | None, float | None]:
    if {row.dataset for row in held_in} != every or not every:
        return None, None
    if any(row.value_of_base is None for row in held_in):
        return None, None
    gain = statistics.fmean(row.value - row.value_of_base for row in held_in)
    if any(row.value_of_expert is None for row in held_in):
        return gain, None
    return gain, share(held_in)


def share(rows: Sequence[Row]) -> float | None:
    """(model - base) / (expert - base) of mean raw scores; None without a gap."""
    if not rows:
        return None
    base = statistics.fmean(row.value_of_base for row in rows)
    gap = statistics.fmean(row.value_of_expert for row in rows) - base
    if gap < SMALLEST_GAP:
        return None
    return (statistics.fmean(row.value for row in rows) - base) / gap


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.fmean(values) if values else None


def _number(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else None


def _caveats(grid: Grid) -> list[str]:
    notes = []
    expected = len(grid.sizes) * len(grid.bases)
    expected *= sum(map(len, grid.counts_of.values()))
    present = sum(cell.method not in BASELINES for cell in grid.cells)
    if present < expected:
        notes.append(
            f"{expected - present} of {expected} combinations of size, base, method "
            "and K have no merged model: the run is partial."
        )
    models = [
        m for c, ms in grid.cells.items() for m in ms if c.method not in BASELINES
    ]
    if sum(m.held_in_excluded + m.held_out_excluded for m in models):
        notes.append(
            f"{sum(m.held_in_excluded for m in models)} held-in and "
            f"{sum(m.held_out_excluded for m in models)} held-out ratios of merged "
            "models have a zero or unknown denominator and are left out of the means."
        )
    if gapless := sum(m.normalised_gain is None for m in models):
        notes.append(
            f"{gapless} of {len(models)} merged models have no normalised gain: their "
            f"experts' mean is less than {SMALLEST_GAP} above the base, or there is no "
            "dataset of theirs."
        )
    edges = [m.scale_at_edge for m in models if m.scale_at_edge is not None]
    if any(edges):
        notes.append(
            f"λ lies at an end of its grid in {sum(edges)} of {len(edges)} merges: "
            "a wider grid might have served these better."
        )
    guessing = [
        f"{size} {base}"
        for size in grid.sizes
        for base in grid.bases
        if _guesses([r for r in grid.rows if (r.size, r.base) == (size, base)])
    ]
    if guessing:
        notes.append(
            f"The unmerged base is within {NEAR_CHANCE} of chance on held-out tasks, "
            f"on average, at {', '.join(guessing)}: held-out ratios there compare "
            "guesses."
        )
    if len(grid.seeds) == 1:
        notes.append("One seed: every spread over seeds is unknown.")
    if len({row.config_hash for row in grid.rows}) > 1:
        notes.append("The rows come from several configurations (listed below).")
    return notes


def _guesses(rows: Sequence[Row]) -> bool:
    bottom = {
        row.dataset: row.value_of_base - row.chance
        for row in rows
        if row.split == "held_out" and row.value_of_base is not None
    }
    return bool(bottom) and statistics.fmean(bottom.values()) < NEAR_CHANCE
