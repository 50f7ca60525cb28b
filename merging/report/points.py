"""Every point that the page can show, from the functions behind tables and figures.

The page's script selects among these rows and computes nothing: a number on the page is
a number of `summaries`, rounded to six digits.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from merging.report import curves
from merging.report.saturation import gains
from merging.report.summaries import (
    MULTITASK,
    Cell,
    Grid,
    ModelScores,
    Spread,
    across_methods,
    measure,
    of_category,
    share,
    spread,
)
from merging.report.tables import chosen
from merging.runtime.results import BASELINES, Row
from merging.runtime.text import Table

# What stands for the mean over the merge methods, and for all categories.
ALL_METHODS, ALL = "mean of methods", "all"
# (split, metric) → the attribute of `ModelScores`.
MEASURES = {
    ("held_in", "ratio"): "held_in",
    ("held_in", "gain"): "normalised_gain",
    ("held_in", "raw"): "held_in_raw",
    ("held_out", "ratio"): "held_out",
    ("held_out", "raw"): "held_out_raw",
}
SPREAD = ("mean", "sd", "low", "high", "n", "excluded")
# What `tables.chosen` tells of a point's merges.
SETTINGS = ("lambda", "density", "at edge")
# A page is mailed around: what would make more points than this loses a control.
MOST_POINTS = 12_000
# Points of a fitted curve, so that it looks smooth.
_FINE = 30

# The baselines have one K of their own, or none: they are shown beside any.
_ANY_K = None


def points(grid: Grid) -> tuple[Table, list[str]]:
    """One row for each size, base, method, K, category and metric that has a score.

    Returns:
      The table (its `reference` is what the score is to be read against: the unmerged
      base on the same datasets), and what was left out of it, in words.
    """
    sources = _sources(grid.rows)
    rows = list(_points(grid, ALL, sources))
    by_category: list[tuple] = []
    notes = []
    for category in sorted({row.category for row in grid.rows}):
        if part := of_category(grid, category):
            by_category += _points(part, category, sources)
    if len(rows) + len(by_category) > MOST_POINTS:
        by_category = []
        notes.append("The rows are too many for the page to tell categories apart.")
    columns = ("split", "metric", "category", "size", "base", "method", "K", *SPREAD)
    columns += ("reference", *SETTINGS, "source")
    return Table("points", "Every score", columns, (*rows, *by_category)), notes


def _points(grid: Grid, category: str, sources: Mapping[Cell, str]) -> Iterator[tuple]:
    for (split, metric), name in MEASURES.items():
        for (size, base), K in itertools.product(_pairs(grid), grid.counts):
            for method in grid.methods:
                models = grid.models(size, base, method, K)
                found = measure(models, name)
                if found.count:
                    reference = _reference(grid, name, models, size, base)
                    yield (split, metric, category, size, base, method, K, *found) + (
                        (reference, *chosen(models), sources[models[0].cell])
                    )
            found = across_methods(grid, size, (base,), K, name)
            if found.count and len(grid.methods) > 1:
                models = [
                    m for x in grid.methods for m in grid.models(size, base, x, K)
                ]
                reference = _reference(grid, name, models, size, base)
                source = _joined(sources, (model.cell for model in models))
                yield (split, metric, category, size, base, ALL_METHODS, K, *found) + (
                    (reference, None, None, None, source)
                )
        for (size, base), method in itertools.product(_pairs(grid), MULTITASK):
            models = grid.models(size, base, method)
            found = measure(models, name)
            if found.count:
                reference = _reference(grid, name, models, size, base)
                yield (split, metric, category, size, base, method, _ANY_K, *found) + (
                    (reference, None, None, None, sources[models[0].cell])
                )


def _reference(
    grid: Grid, name: str, models: Sequence[ModelScores], size: str, base: str
) -> float | None:
    """What a score is read against: the unmerged base's, in the same measure."""
    if name == "held_in":
        return measure(models, "floor").mean
    if name == "held_in_raw":
        return measure(models, "base_raw").mean
    if name == "held_out_raw":
        return measure(grid.models(size, base, "base"), "held_out_raw").mean
    return {"normalised_gain": 0.0, "held_out": 1.0}[name]


def datasets(grid: Grid) -> Table | None:
    """Every dataset under every method (the heat map); None if they are too many.

    Held-in datasets count where the dataset's own expert was merged.
    """
    groups: dict[tuple, list[Row]] = {}
    models = {(m.cell, m.seed, m.subset): m for ms in grid.cells.values() for m in ms}
    for row in grid.rows:
        baseline = row.method in BASELINES
        if row.split == "held_in" and not row.merged and row.method in grid.methods:
            continue
        if row.method == "expert" and not row.merged:
            continue
        K = _ANY_K if baseline else row.K
        key = (row.split, row.category, row.dataset)
        groups.setdefault((*key, row.size, row.base, row.method, K), []).append(row)
    rows = [
        (metric, *key, row.metric, row.chance, *found, *settings, source)
        for key, group in groups.items()
        for row, settings, source in [
            (group[0], _chosen_by(group, models), _source(group))
        ]
        for metric, found in _of_dataset(group)
        if found.count
    ]
    columns = ("metric", "split", "category", "dataset", "size", "base", "method")
    if len(rows) > MOST_POINTS:
        return None
    columns += ("K", "scored by", "chance", *SPREAD, *SETTINGS, "source")
    return Table("datasets", "Every dataset", columns, tuple(rows))


def _chosen_by(rows: Sequence[Row], models: Mapping[tuple, ModelScores]) -> tuple:
    """What was chosen for the models that rows are of."""
    keys = {(_cell(row), row.seed, row.subset) for row in rows}
    return chosen([models[key] for key in sorted(keys) if key in models])


def _of_dataset(rows: Sequence[Row]) -> list[tuple[str, Spread]]:
    return [
        ("ratio", spread(row.normalised for row in rows)),
        ("gain", spread(map(_gain, rows))),
        ("raw", spread(row.value for row in rows)),
    ]


def _gain(row: Row) -> float | None:
    known = None not in (row.value_of_expert, row.value_of_base)
    return share([row]) if known else None


def converging(grid: Grid) -> Table:
    """Best minus worst method, by size and K (figure F4)."""
    table = curves.method_spread(grid)
    at = table.columns.index
    sources = _sources(grid.rows)
    rows = []
    for row in table.rows:
        size, base, K = (row[at(name)] for name in ("size", "base", "K"))
        found = (*row[at("mean") : at("max") + 1], row[at("seeds")])
        cells = (Cell(size, base, method, K) for method in grid.methods)
        rows.append((size, base, K, *found, _joined(sources, cells)))
    columns = ("size", "base", "K", *SPREAD[:5], "source")
    return Table("converging", table.title, columns, tuple(rows))


def gain_curves(grid: Grid) -> tuple[Table, Table]:
    """The gains over the base against K with their fits, and per added expert (F6)."""
    gained, added = [], []
    sources = _sources(grid.rows)
    for metric, name in (("raw", "gain"), ("gain", "normalised_gain_all")):
        for (size, base), method in itertools.product(_pairs(grid), grid.methods):
            found = gains(grid, size, base, method, name)
            if found is None:
                continue
            key, fit = (metric, size, base, method), found.fit
            for K, seeds in found.by_seed.items():
                points = spread(seeds.values())[:5]
                made = _settings(grid, size, base, method, [K], sources)
                told = (fit.status, fit.saturation, *made)
                gained.append((*key, "points", K, *points, *told))
            for (before, K), seeds in found.marginal.items():
                points = spread(seeds.values())[:5]
                made = _settings(grid, size, base, method, [before, K], sources)
                told = (before, K, *made)
                added.append((*key, "points", (before + K) / 2, *points, *told))
            if not fit.quotable:
                continue
            most = max(found.by_seed)
            first = sum(next(iter(found.marginal))) / 2
            for step in range(_FINE + 1):
                K = most * step / _FINE
                blank = (None,) * (4 + 2 + len(SETTINGS) + 1)
                gained.append((*key, "fit", K, fit.gain(K), *blank))
                if K >= first:
                    added.append((*key, "fit", K, fit.marginal(K), *blank))
    columns = ("metric", "size", "base", "method", "part", "K", *SPREAD[:5])
    of_gains = (*columns, "fit", "saturation", *SETTINGS, "source")
    of_added = (*columns, "from K", "to K", *SETTINGS, "source")
    return (
        Table("gains", "Gains over the base", of_gains, tuple(gained)),
        Table("added", "Gains per added expert", of_added, tuple(added)),
    )


def _settings(
    grid: Grid,
    size: str,
    base: str,
    method: str,
    counts: Iterable[int],
    sources: Mapping[Cell, str],
) -> tuple:
    """What was chosen for a method's merges of some K, and where their rows are from.

    The point at K = 1 is of experts, which are no merges.
    """
    cells = [Cell(size, base, method, K) for K in counts]
    cells += [Cell(size, base, "expert", 1)] if 1 in counts else []
    models = [m for c in cells for m in grid.cells.get(c, ()) if c.method == method]
    return *chosen(models), _joined(sources, cells)


def scales(grid: Grid) -> Table:
    """The λ that validation chose, by size, base, method and K."""
    rows = []
    sources = _sources(grid.rows)
    for size, base, method, K, models in _merges(grid):
        found = measure(models, "scale")
        if found.count:
            _, density, edge = chosen(models)
            source = sources[models[0].cell]
            rows.append((size, base, method, K, *found[:5], density, edge, source))
    columns = ("size", "base", "method", "K", *SPREAD[:5], "density", "at edge")
    columns += ("source",)
    return Table("scales", "Chosen λ", columns, tuple(rows))


def scale_sweeps(grid: Grid) -> Table:
    """The validation score of every λ that was tried, at the chosen density."""
    rows = []
    sources = _sources(grid.rows)
    for size, base, method, K, models in _merges(grid):
        _, density, _ = chosen(models)
        source = sources[models[0].cell]
        tried: dict[float, list[float]] = {}
        for model in models:
            for scale, score in model.tried:
                tried.setdefault(scale, []).append(score)
        for scale, scores in sorted(tried.items()):
            found = (*spread(scores)[:5], density, source)
            rows.append((size, base, method, K, scale, *found))
    columns = ("size", "base", "method", "K", "scale", *SPREAD[:5], "density", "source")
    return Table("scale_sweeps", "Validation against λ", columns, tuple(rows))


def _merges(grid: Grid) -> Iterator[tuple]:
    for (size, base), method in itertools.product(_pairs(grid), grid.methods):
        for K in grid.counts:
            if models := grid.models(size, base, method, K):
                yield size, base, method, K, models


def _pairs(grid: Grid) -> list[tuple[str, str]]:
    return list(itertools.product(grid.sizes, grid.bases))


def _sources(rows: Iterable[Row]) -> dict[Cell, str]:
    """Where each cell's rows come from: configuration and revision."""
    groups: dict[Cell, list[Row]] = {}
    for row in rows:
        groups.setdefault(_cell(row), []).append(row)
    return {cell: _source(group) for cell, group in groups.items()}


def _cell(row: Row) -> Cell:
    return Cell(row.size, row.base, row.method, row.K)


def _joined(sources: Mapping[Cell, str], cells: Iterable[Cell]) -> str:
    """The sources of several cells' rows, each once."""
    found = {part for c in cells if c in sources for part in sources[c].split("; ")}
    return "; ".join(sorted(found))


def _source(rows: Sequence[Row]) -> str:
    found = {(row.config_hash, row.git_revision) for row in rows}
    return "; ".join(f"config {c}, revision {r}" for c, r in sorted(found))
