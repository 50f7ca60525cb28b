"""The report as one web page, from a template that a designer can edit."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources

from merging.report import tables
from merging.report.judging import RULE, Verdict, verdict_table
from merging.report.plotting import BASE_NAMES, Figure, human
from merging.report.saturation import SATURATED
from merging.report.summaries import SMALLEST_GAP, Grid
from merging.runtime.results import BASELINES
from merging.runtime.text import Table, shown

_CLASSES = {"holds": "holds", "does not hold": "fails", "mixed": "mixed"}
_CLASSES["not tested"] = ""
_MARKS = {"holds": "✓", "does not hold": "✗", "mixed": "~", "not tested": "–"}


def page(
    grid: Grid,
    verdicts: Sequence[Verdict],
    figures: Sequence[Figure],
    behind: Mapping[str, Sequence[Table]],
) -> str:
    """Return the page's HTML; whatever stands in rows is escaped.

    Args:
      grid: the experiment.
      verdicts: judged claims, shown first.
      figures: drawn figures, each inlined as SVG.
      behind: figure name → the tables to show under it.
    """
    # Imported late: the command line must start quickly.
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["cell"] = lambda value: shown(value, "–", 3)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = resources.files("merging.report") / "templates" / "page.html.j2"
    return environment.from_string(template.read_text("utf-8")).render(
        title=f"Merging report: suite {grid.suite}, family {grid.family}",
        grid=grid,
        facts=_facts(grid),
        smallest_gap=SMALLEST_GAP,
        saturated=f"{SATURATED:.0%}",
        verdicts=verdicts,
        classes=_CLASSES,
        marks=_MARKS,
        rule=RULE,
        verdict_table=verdict_table(verdicts),
        figures=figures,
        behind=behind,
        main_scores=tables.main_scores(grid),
        baselines_summary=tables.summary_of_baselines(grid),
        baselines=tables.baselines(grid),
        raw_scores=[
            tables.raw_scores(grid, size, base)
            for size in grid.sizes
            for base in grid.bases
        ],
        configs=", ".join(sorted({row.config_hash for row in grid.rows})),
        revisions=", ".join(sorted({row.git_revision for row in grid.rows})),
    )


def _facts(grid: Grid) -> list[tuple[str, str]]:
    """Return what was run, in pairs of a name and words."""
    merged = [
        m for c, ms in grid.cells.items() for m in ms if c.method not in BASELINES
    ]
    held_in = {r.dataset for r in grid.rows if r.split == "held_in"}
    held_out = {r.dataset for r in grid.rows if r.split == "held_out"}
    sizes = (f"{s} ({human(n)} parameters)" for s, n in grid.sizes.items())
    return [
        ("Model sizes", ", ".join(sizes)),
        ("Bases", ", ".join(BASE_NAMES[base] for base in grid.bases)),
        ("Merge methods", ", ".join(grid.methods) or "none yet"),
        ("Experts merged, K", ", ".join(map(str, grid.counts)) or "none yet"),
        ("Seeds", ", ".join(map(str, grid.seeds)) or "-"),
        ("Merged models evaluated", str(len(merged))),
        (
            "Datasets",
            f"{len(held_in)} held-in in {len(grid.categories)} categories "
            f"({', '.join(grid.categories)}), {len(held_out)} held-out",
        ),
    ]
