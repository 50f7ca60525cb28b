"""Tables of scores: summaries, single models, datasets and baselines."""

from collections.abc import Iterable, Sequence

from merging.report.summaries import (
    MULTITASK,
    Grid,
    ModelScores,
    Spread,
    measure,
    spread,
)
from merging.report.table import CELL, SPREAD, every_cell
from merging.runtime.results import Row
from merging.runtime.text import Table, shown

MODEL_MEASURES = (
    "held_in",
    "floor",
    "normalised_gain",
    "held_in_raw",
    "expert_raw",
    "base_raw",
    "held_out",
    "held_out_raw",
    "gain",
    "normalised_gain_all",
)


def scores(grid: Grid) -> Table:
    """Method × size × base × K: every summary score, its spread, and the chosen λ."""
    spread_names = [
        f"{name} {part}"
        for name in ("held-in", "floor", "normalised gain", "held-out")
        for part in ("mean", "sd", "min", "max")
    ]
    rows = []
    for size, base, method, K, models in every_cell(grid):
        spreads = [
            measure(models, name)[:4]
            for name in ("held_in", "floor", "normalised_gain", "held_out")
        ]
        rows.append(
            (
                *(size, grid.sizes[size], base, method, K, len(models)),
                len({model.seed for model in models}),
                *(value for part in spreads for value in part),
                *(measure(models, n).mean for n in _RAW),
                sum(m.held_in_excluded + m.held_out_excluded for m in models),
                *chosen(models),
            )
        )
    columns = (*CELL, "models", "seeds", *spread_names)
    raw = ("raw held-in", "raw experts", "raw base", "raw held-out")
    columns += (*raw, "ratios excluded", "lambda", "density", "lambda at edge")
    return Table(
        "scores", "All scores by size, base, method and K", columns, tuple(rows)
    )


_RAW = ("held_in_raw", "expert_raw", "base_raw", "held_out_raw")


def main_scores(grid: Grid) -> Table:
    """The scores one looks at first: means ± sd, narrow enough for a terminal."""
    rows = []
    for size, base, method, K, models in every_cell(grid):
        texts = [
            _plus_minus(measure(models, name))
            for name in ("held_in", "floor", "normalised_gain", "held_out")
        ]
        scale, _, edge = chosen(models)
        rows.append((size, base, method, K, len(models), *texts, scale, edge))
    columns = ("size", "base", "method", "K", "models", "held-in", "floor")
    columns += ("normalised gain", "held-out", "lambda", "lambda at edge")
    return Table("main", "Scores by size, base, method and K", columns, tuple(rows))


def models(grid: Grid) -> Table:
    """One line per model: what the spreads are spreads of."""
    rows = [
        (
            *(size, grid.sizes[size], base, method, K, model.seed),
            " ".join(model.subset),
            *(getattr(model, name) for name in MODEL_MEASURES),
            *(model.held_in_excluded, model.held_out_excluded),
            *(model.scale, model.density, model.scale_at_edge),
        )
        for size, base, method, K, found in every_cell(grid)
        for model in found
    ]
    columns = (*CELL, "seed", "subset", *MODEL_MEASURES, "held_in_excluded")
    columns += ("held_out_excluded", "lambda", "density", "lambda at edge")
    return Table("models", "Scores of every single model", columns, tuple(rows))


def datasets(grid: Grid) -> Table:
    """Raw score of every dataset under every kind of model."""
    groups: dict[tuple, list[Row]] = {}
    for row in grid.rows:
        key = (row.size, row.params, row.base, row.method, row.K, row.split)
        key += (row.category, row.dataset, row.metric, row.chance, row.merged)
        groups.setdefault(key, []).append(row)
    rows = [
        (*key, *spread(row.value for row in found)[:5], found[0].examples)
        for key, found in groups.items()
    ]
    columns = (*CELL, "split", "category", "dataset", "metric", "chance", "merged")
    columns += (*SPREAD[:5], "examples")
    return Table("datasets", "Raw scores of every dataset", columns, tuple(rows))


def baselines(grid: Grid) -> Table:
    """Chance, base, own expert, floor and multitask of every dataset."""
    keys = sorted(
        {
            (r.params, r.size, grid.bases.index(r.base), r.split, r.category, r.dataset)
            for r in grid.rows
        }
    )
    facts = {row.dataset: row for row in grid.rows}
    found: dict[tuple, list[Row]] = {}
    for row in grid.rows:
        found.setdefault((row.size, row.base, row.dataset), []).append(row)
    rows = []
    for params, size, base, split, category, dataset in keys:
        these = found[size, grid.bases[base], dataset]
        columns = [spread(_values_of(these, kind)) for kind in _KINDS]
        bottom, top = columns[0].mean, columns[1].mean
        floor = bottom / top if top and bottom is not None else None
        rows.append(
            (size, params, grid.bases[base], split, category, dataset)
            + (facts[dataset].metric, facts[dataset].chance, bottom, top)
            + (columns[1].sd, floor, columns[2].mean, columns[3].mean)
        )
    columns = ("size", "params", "base", "split", "category", "dataset", "metric")
    columns += ("chance", "base model", "own expert", "expert sd", "floor")
    columns += ("multitask", "multitask early")
    return Table("baselines", "Baselines of every dataset", columns, tuple(rows))


_KINDS = ("base", "expert", *MULTITASK)


def _values_of(rows: Sequence[Row], kind: str) -> list[float]:
    own = [r.value for r in rows if r.method == kind and (kind != "expert" or r.merged)]
    if own or kind in MULTITASK:
        return own
    # No row of its own (a partial run): the value the merged models were held against.
    field = f"value_of_{kind}"
    return sorted({v for row in rows if (v := getattr(row, field)) is not None})


def summary_of_baselines(grid: Grid) -> Table:
    """Mean raw scores of each size and base: how far the experts are from the base."""
    table = baselines(grid)
    at = table.columns.index
    rows = []
    for size, params in grid.sizes.items():
        for base in grid.bases:
            mine = [r for r in table.rows if (r[0], r[2]) == (size, base)]
            if not mine:
                continue
            held_in = [r for r in mine if r[3] == "held_in"]
            held_out = [r for r in mine if r[3] == "held_out"]
            line: tuple = (size, params, base)
            for rows_of_split, columns in (
                (held_in, ("chance", "base model", "own expert")),
                (held_out, ("chance", "base model")),
            ):
                for column in columns:
                    line += (spread(r[at(column)] for r in rows_of_split).mean,)
            line += (spread(r[at("floor")] for r in held_in).mean,)
            for kind in MULTITASK:
                found = grid.models(size, base, kind)
                names = ("held_in", "normalised_gain", "held_out")
                line += tuple(measure(found, name).mean for name in names)
            rows.append(line)
    columns = ("size", "params", "base", "held-in chance", "held-in base")
    columns += ("held-in experts", "held-out chance", "held-out base", "floor")
    for kind in ("multitask", "multitask early"):
        columns += tuple(
            f"{kind} {n}" for n in ("held-in", "normalised gain", "held-out")
        )
    title = "Baselines: mean raw scores, floors, and the multitask models"
    return Table("baselines_summary", title, columns, tuple(rows))


def raw_scores(grid: Grid, size: str, base: str) -> Table:
    """Mean raw score, datasets down, models across; merged tasks only, if held-in."""
    here = [row for row in grid.rows if (row.size, row.base) == (size, base)]
    names = sorted({(r.split, r.category, r.dataset, r.chance) for r in here})
    kinds = [k for k in _KINDS if any(r.method == k for r in here)]
    merges = [
        (method, K)
        for method in grid.methods
        for K in grid.counts
        if grid.models(size, base, method, K)
    ]
    values: dict[tuple, list[float]] = {}
    for row in here:
        if row.split == "held_out" or row.merged or row.method in ("base", *MULTITASK):
            values.setdefault((row.dataset, row.method, row.K), []).append(row.value)
            values.setdefault((row.dataset, row.method, None), []).append(row.value)
    asked = [(kind, None) for kind in kinds] + merges
    rows = [
        (split, category, dataset, chance)
        + tuple(spread(values.get((dataset, *model), ())).mean for model in asked)
        for split, category, dataset, chance in names
    ]
    columns = ("split", "category", "dataset", "chance", *kinds)
    columns += tuple(f"{method} K={K}" for method, K in merges)
    return Table(f"raw_{size}_{base}", f"{size}, {base}", columns, tuple(rows))


def _plus_minus(s: Spread) -> str:
    if s.mean is None:
        return "-"
    text = shown(s.mean, "", 3)
    return text if s.sd is None else f"{text} ±{s.sd:.3f}"


def chosen(
    found: Sequence[ModelScores],
) -> tuple[str | None, str | None, str | None]:
    """The chosen λ and density with how often, and how often λ was at an edge."""

    def counted(values: Iterable[float | None]) -> str | None:
        known = [value for value in values if value is not None]
        return (
            " ".join(
                f"{v:g}" + (f" x{n}" if (n := known.count(v)) > 1 else "")
                for v in sorted(set(known))
            )
            or None
        )

    edges = [m.scale_at_edge for m in found if m.scale_at_edge is not None]
    return (
        counted(m.scale for m in found),
        counted(m.density for m in found),
        f"{sum(edges)}/{len(edges)}" if edges else None,
    )
