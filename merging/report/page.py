"""The report as one web page: no script, no file beside it, readable by a stranger."""

import base64
import html
from collections.abc import Mapping, Sequence

from merging.report import tables
from merging.report.drawing import BASE_NAMES, Figure, human
from merging.report.judging import RULE, Verdict, verdict_table
from merging.report.saturation import SATURATED
from merging.report.summaries import SMALLEST_GAP, Grid
from merging.runtime.results import BASELINES
from merging.runtime.text import Table, shown

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.8rem; margin: 0.5rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.15rem 0.5rem; text-align: left;
  white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
th { background: #f4f4f4; }
summary { cursor: pointer; color: #0072B2; }
.verdict { border-left: 0.4rem solid #999; padding: 0.1rem 1rem; margin: 1rem 0; }
.holds { border-color: #009E73; } .fails { border-color: #D55E00; }
.mixed { border-color: #E69F00; }
.outcome { font-weight: bold; } .small { font-size: 0.85rem; color: #444; }
"""
_CLASSES = {"holds": "holds", "does not hold": "fails", "mixed": "mixed"}
_MARKS = {"holds": "✓", "does not hold": "✗", "mixed": "~", "not tested": "–"}


def page(
    grid: Grid,
    verdicts: Sequence[Verdict],
    figures: Sequence[Figure],
    behind: Mapping[str, Sequence[Table]],
) -> str:
    """Return the page's HTML.

    Args:
      grid: the experiment.
      verdicts: judged readings, shown first.
      figures: drawn figures, each inlined as SVG.
      behind: figure name → the tables to show under it.
    """
    title = f"Merging report: suite {grid.suite}, family {grid.family}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        _what_was_run(grid),
        _how_to_read(),
        "<h2>Verdicts</h2>",
        "<p>The headline readings of the two papers, held against these rows: MS is "
        "“What Matters for Model Merging at Scale?” (arXiv 2410.03617), WF “Why Do "
        "More Experts Fail?” (arXiv 2505.21226).</p>",
        *map(_verdict, verdicts),
        f"<details><summary>The rule behind the verdicts</summary><p>{_text(RULE)}</p>"
        "</details>",
        _folded(verdict_table(verdicts)),
        "<h2>Figures</h2>",
        *(_figure(figure, behind.get(figure.name, ())) for figure in figures),
        "<h2>Scores</h2>",
        _folded(tables.main_scores(grid), opened=True),
        "<h2>Baselines</h2>",
        "<p>Mean raw scores. A base at chance on held-out tasks makes the held-out "
        "ratio a ratio of noise; a floor near 1 leaves a merge nothing to show.</p>",
        _table(tables.summary_of_baselines(grid)),
        _folded(tables.baselines(grid)),
        "<h2>Raw scores of every dataset</h2>",
        "<p>Means over seeds and subsets; for held-in datasets over the merges that "
        "contain the dataset's expert. Spread and counts: <code>tables/datasets.csv"
        "</code>.</p>",
        *(
            _folded(tables.raw_scores(grid, size, base))
            for size in grid.sizes
            for base in grid.bases
        ),
        _provenance(grid),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _what_was_run(grid: Grid) -> str:
    merged = [
        m for c, ms in grid.cells.items() for m in ms if c.method not in BASELINES
    ]
    held_in = {r.dataset for r in grid.rows if r.split == "held_in"}
    held_out = {r.dataset for r in grid.rows if r.split == "held_out"}
    sizes = ", ".join(f"{s} ({human(n)} parameters)" for s, n in grid.sizes.items())
    facts = [
        ("Model sizes", sizes),
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
    items = "".join(f"<li><b>{_text(k)}:</b> {_text(v)}</li>" for k, v in facts)
    notes = "".join(f"<li>{_text(note)}</li>" for note in grid.notes)
    mind = f"<p><b>Mind:</b></p><ul>{notes}</ul>" if notes else ""
    return (
        "<h2>What was run</h2><p>From each base model one expert was fine-tuned per "
        "held-in category; K experts at a time were merged into one model, with no "
        "further training, and the merged model was evaluated on every dataset: those "
        "of its experts, those of the others, and held-out ones that no expert was "
        "trained on.</p>"
        f"<ul>{items}</ul>{mind}"
    )


def _how_to_read() -> str:
    terms = {
        "Held-in ratio": "mean over the merged experts' tasks of the merged model's "
        "score divided by that task's own expert's. 1 means merging lost nothing.",
        "Floor": "the same ratio for the unmerged base. A held-in ratio is only "
        "interesting as far as it is above its floor; a high floor alone makes a base "
        "look mergeable.",
        "Recovered share": "(merged - base) / (experts - base) on mean raw scores: 0 "
        "is no better than the base, 1 as good as the experts. Left out where the "
        f"experts' mean is less than {SMALLEST_GAP} above the base.",
        "Held-out ratio": "mean over held-out tasks of the merged model's score "
        "divided by the base's. Above 1, merging made the model better at what no "
        "expert learned.",
        "λ": "the merge's scale, chosen on validation data per merge from a grid; “at "
        "edge” says how often an end of the grid won.",
        "Spread": "sd is the sample standard deviation over seeds and expert subsets, "
        "min and max its range. Ratios over a zero or unknown score are left out and "
        "counted (“excluded”).",
        "Saturation": f"the number of experts at which the fitted gain curve reaches "
        f"{SATURATED:.0%} of its asymptote.",
    }
    items = "".join(
        f"<dt><b>{_text(t)}</b></dt><dd>{_text(d)}</dd>" for t, d in terms.items()
    )
    return f"<h2>How to read it</h2><dl>{items}</dl>"


def _verdict(verdict: Verdict) -> str:
    lines = [
        f"<li>{_text(e.sentence())} → {_text(e.outcome)}"
        f"{'' if e.decides else ' (beside the verdict)'}</li>"
        for e in verdict.evidence
    ]
    notes = "".join(f"<p class='small'>{_text(note)}</p>" for note in verdict.notes)
    outcome, source = _text(verdict.outcome), _text(verdict.source)
    return (
        f"<div class='verdict {_CLASSES.get(verdict.outcome, '')}'>"
        f"<p><span class='outcome'>{_MARKS[verdict.outcome]} {outcome}</span>"
        f" · {_text(verdict.reading)} <span class='small'>({source})</span>"
        f"</p><ul class='small'>{''.join(lines)}</ul>{notes}</div>"
    )


def _figure(figure: Figure, behind: Sequence[Table]) -> str:
    # As an image, not inline markup: ids of several SVGs in one page would clash.
    data = base64.b64encode(figure.svg).decode("ascii")
    label = figure.name.replace("_", " ")
    return (
        f"<h3>{_text(label)}. {_text(figure.title)}</h3>"
        f'<div class="wide"><img alt="{_text(figure.title)}" '
        f'src="data:image/svg+xml;base64,{data}"></div>'
        f"<p class='small'>{_text(figure.caption)}</p>" + "".join(map(_folded, behind))
    )


def _folded(table: Table, opened: bool = False) -> str:
    return (
        f"<details{' open' if opened else ''}><summary>{_text(table.title)} "
        f"({len(table.rows)} rows)</summary>{_table(table)}</details>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = _text(shown(value, "–", 3))
    return f"<td class='number'>{text}</td>" if number else f"<td>{text}</td>"


def _provenance(grid: Grid) -> str:
    revisions = ", ".join(sorted({row.git_revision for row in grid.rows}))
    configs = ", ".join(sorted({row.config_hash for row in grid.rows}))
    return (
        "<h2>Provenance</h2><p class='small'>"
        f"{len(grid.rows)} result rows; "
        f"configuration {_text(configs)}; revision {_text(revisions)}. "
        "Every table is beside this page as CSV under tables/, "
        "every figure as PNG and SVG under figures/.</p>"
    )


def _text(text: object) -> str:
    return html.escape(str(text))
