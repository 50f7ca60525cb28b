"""A sweep's page: its answer, the curves behind it, and where they come from."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence

from merging.report import analyses, looks, panels, points, tables
from merging.report.answer import answer
from merging.report.document import (
    Control,
    Document,
    Download,
    Panel,
    Section,
    of_run,
    versions,
)
from merging.report.judging import RULE, Verdict, verdict_table
from merging.report.plotting import BASE_NAMES, Figure, human, label
from merging.report.summaries import MULTITASK, Grid
from merging.runtime.results import BASELINES, Row
from merging.runtime.text import Table
from merging.runtime.workdir import Run


def page(
    grid: Grid,
    verdicts: Sequence[Verdict],
    figures: Sequence[Figure] = (),
    behind: Mapping[str, Sequence[Table]] = {},
    more: Sequence[Section] = (),
    runs: Mapping[str, Run] | None = None,
) -> Document:
    """Return the page; whatever stands in rows is escaped.

    Args:
      grid: the experiment.
      verdicts: judged claims.
      figures: what lies beside the page, for papers.
      behind: figure name → the tables behind it.
      more: sections that do not come from result rows (laws, geometry).
      runs: config hash → what its workdir says of the run, where it is known.
    """
    every, left_out = points.points(grid)
    gained, added = points.gain_curves(grid)
    drawn = {
        "points": every,
        "datasets": points.datasets(grid),
        "converging": points.converging(grid),
        "gains": gained,
        "added": added,
        "scales": points.scales(grid),
        "scale_sweeps": points.scale_sweeps(grid),
    }
    drawn = {name: table for name, table in drawn.items() if table and table.rows}
    if "datasets" not in drawn and grid.methods:
        left_out.append("The rows are too many for the page's heat map of datasets.")
    found = {p.name: p for p in panels.sweep() if p.spec["table"] in drawn}
    lead = [p for name in ("held_in", "held_out") if (p := found.get(name))]
    lead = [p for p in lead if _has(drawn["points"], p)]
    shown = sorted({row[5] for row in every.rows if row[5] in MULTITASK})
    return Document(
        title=f"Merging report: {grid.suite}, {grid.family}",
        facts=_facts(grid),
        answer=answer(grid),
        lead=lead,
        controls=_controls(grid, every) if lead else (),
        notes=(*grid.notes, *left_out),
        verdicts=verdicts,
        rule=RULE,
        verdict_table=verdict_table(verdicts),
        sections=[*panels.sections(found), *more, *_numbers(grid, behind)],
        terms=panels.TERMS,
        provenance=_provenance(grid, figures, runs or {}),
        downloads=[Download("rows.csv", f"{len(grid.rows)} rows", _csv(grid.rows))],
        tables=list(drawn.values()),
        looks={
            "method": looks.of_methods((*grid.methods, *shown, "base", "expert")),
            "K": looks.ordered(grid.counts),
            "size": looks.ordered(list(grid.sizes)),
            "base": looks.bases(),
            "ordinal": looks.ordered(range(analyses.ORDINALS)),
        },
        labels=_labels(grid),
        positions={
            "size": dict(grid.sizes),
            "K": {str(K): K for K in (0, *grid.counts)},
        },
    )


def _has(every: Table, panel: Panel) -> bool:
    split = panel.spec["fixed"]["split"]
    return any(row[0] == split for row in every.rows)


def _numbers(grid: Grid, behind: Mapping[str, Sequence[Table]]) -> list[Section]:
    raw = [
        tables.raw_scores(grid, size, base)
        for size in grid.sizes
        for base in grid.bases
    ]
    of_figures = [
        table._replace(title=f"{table.name}: {table.title}")
        for found in behind.values()
        for table in found
        if table.rows
    ]
    return [
        Section(
            "scores",
            "Tables",
            tables=[
                tables.main_scores(grid),
                tables.summary_of_baselines(grid),
                tables.baselines(grid),
                *(t._replace(title=f"Raw scores: {t.title}") for t in raw),
                *of_figures,
            ],
            intro="A base at chance on held-out tasks makes the held-out ratio a ratio "
            "of noise; a floor near 1 leaves a merge nothing to show. Raw scores are "
            "means over seeds and subsets; for held-in datasets over the merges that "
            "contain the dataset's expert.",
        )
    ]


def _controls(grid: Grid, every: Table) -> list[Control]:
    names = {row[5] for row in every.rows}
    methods = [m for m in (points.ALL_METHODS, *grid.methods) if m in names]
    splits = {(row.split, row.category) for row in grid.rows}
    kept = {row[2] for row in every.rows}
    categories = [
        (category, category.replace("_", " "), split.replace("_", "-"))
        for split, category in sorted(splits)
        if category in kept
    ]
    axes = {"size": "size", "K": "K"}
    across = axes if len(grid.sizes) > 1 else {"K": "K"}
    several = {"K": grid.counts, "base": grid.bases, "size": grid.sizes}
    lines = {"K": "K", "method": "methods", "base": "bases", "size": "sizes"}
    lines = {n: w for n, w in lines.items() if n == "method" or len(several[n]) > 1}
    size, base = list(grid.sizes)[-1], grid.bases[-1]
    found = [
        Control("across", "Across", _options(across), list(across)[0]),
        Control(
            *("lines", "Lines", _options(lines)),
            "K" if "K" in lines and len(grid.sizes) > 1 else "method",
        ),
        Control(
            *("metric", "Metric", _options(panels.METRICS)),
            "gain" if any(row[1] == "gain" for row in every.rows) else "ratio",
        ),
        Control("size", "Size", [(s, s, "") for s in grid.sizes], size),
        Control("base", "Base", [(b, BASE_NAMES[b], "") for b in grid.bases], base),
        Control("method", "Method", [(m, label(m), "") for m in methods], methods[0]),
        Control("K", "K", [(K, str(K), "") for K in grid.counts], grid.counts[-1]),
        Control(
            *("category", "Category", [(points.ALL, "all categories", "")]), points.ALL
        ),
    ]
    found[-1] = found[-1]._replace(options=[*found[-1].options, *categories])
    return found


def _options(words: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [(value, text, "") for value, text in words.items()]


def _labels(grid: Grid) -> dict[str, dict[str, str]]:
    methods = (*grid.methods, points.ALL_METHODS, *BASELINES)
    return {
        "size": {size: _sized(size, n) for size, n in grid.sizes.items()},
        "base": BASE_NAMES,
        "method": {method: label(method) for method in methods},
        "K": {str(K): f"K = {K}" for K in grid.counts},
        "metric": panels.METRICS,
        "category": {points.ALL: "all categories"},
    }


def _facts(grid: Grid) -> list[tuple[str, str]]:
    """Return what was run, in pairs of a name and words."""
    merged = [
        m for c, ms in grid.cells.items() for m in ms if c.method not in BASELINES
    ]
    held_in = {r.dataset for r in grid.rows if r.split == "held_in"}
    held_out = {r.dataset for r in grid.rows if r.split == "held_out"}
    sizes = (_sized(size, count) for size, count in grid.sizes.items())
    return [
        ("sizes", ", ".join(sizes)),
        ("bases", ", ".join(base.upper() for base in grid.bases)),
        ("methods", ", ".join(map(label, grid.methods)) or "none yet"),
        ("experts merged, K", ", ".join(map(str, grid.counts)) or "none yet"),
        ("seeds", ", ".join(map(str, grid.seeds)) or "–"),
        ("merged models", str(len(merged))),
        (
            "datasets",
            f"{len(held_in)} held-in in {len(grid.categories)} categories, "
            f"{len(held_out)} held-out",
        ),
    ]


def _sized(size: str, count: int) -> str:
    return size if size == human(count) else f"{size} ({human(count)})"


def _provenance(
    grid: Grid, figures: Sequence[Figure], runs: Mapping[str, Run]
) -> list[tuple[str, str]]:
    hashes = sorted({row.config_hash for row in grid.rows})
    found = [
        ("Rows", f"{len(grid.rows)} result rows, {len({*map(_model, grid.rows)})} "
         "models"),
        ("Configuration", ", ".join(hashes)),
        ("Revision", ", ".join(sorted({row.git_revision for row in grid.rows}))),
        ("Seeds", ", ".join(map(str, grid.seeds)) or "–"),
        ("Computed in", f"{_hours(grid.rows)} of model time, as the rows have it"),
        ("Page drawn by", versions()),
        (
            "To get it again",
            "merging report --workdir RUN, with the folder that holds these rows, "
            "draws this page; merging sweep --config FILE.py --workdir RUN, with a "
            "file whose get_config() returns the config below, makes the rows",
        ),
    ]  # fmt: skip
    if figures:
        names = ", ".join(figure.name for figure in figures)
        beside = f"figures/ ({names}; PNG, SVG and PDF) and tables/ (CSV)"
        found.append(("Beside the page", beside))
    for name in hashes:
        run = runs.get(name, Run(None, {}))
        found += [(f"{what}, {name}", text) for what, text in of_run(*run)]
    return found


def _model(row: Row) -> tuple:
    return (row.size, row.base, row.method, row.K, row.seed, row.subset)


def _hours(rows: Sequence[Row]) -> str:
    seconds = sum({_model(row): row.wall_seconds for row in rows}.values())
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} s"


def _csv(rows: Sequence[Row]) -> bytes:
    """The rows as a spreadsheet reads them; lists and settings as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Row)]
    writer.writerow(fields)
    for row in rows:
        values = (getattr(row, name) for name in fields)
        writer.writerow(
            [
                json.dumps(v, sort_keys=True) if isinstance(v, Mapping | tuple) else v
                for v in values
            ]
        )
    return text.getvalue().encode("utf-8")
