"""The page of a finished search: its trials, and what the best is worth on test."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from merging.report.document import (
    Document,
    Download,
    Panel,
    Section,
    plot,
    versions,
)
from merging.report.searches import MOST, Point
from merging.runtime.text import Table

_LOOKS = {
    "series": {
        "trial": {"light": "#0B5CAD", "dark": "#7DB8F2", "symbol": "circle-open"},
        "best so far": {"light": "#041E42", "dark": "#DCE9F7", "symbol": "line-ns"},
        "the best": {"light": "#B34400", "dark": "#FF9A66", "symbol": "star"},
        "grid": {"light": "#00664B", "dark": "#57C9A5", "symbol": "line-ns"},
        "model": {"light": "#0B5CAD", "dark": "#7DB8F2", "symbol": "circle"},
    }
}
for _name, _look in _LOOKS["series"].items():
    _look["dash"] = {"best so far": "solid", "grid": "dash"}.get(_name, "none")

_MEASURES = {"ratio": "ratio to the best experts", "mean": "mean of values"}


def page(
    points: Sequence[Point],
    tested: Sequence[Mapping[str, Any]],
    *,
    gain: str | None = None,
    reference: float | None = None,
    facts: Sequence[tuple[str, str]] = (),
    provenance: Sequence[tuple[str, str]] = (),
) -> Document:
    """Return the page of a finished search.

    Args:
      points: the trials, in their order.
      tested: a line for each model on the test split: `model`; `mean` of the datasets'
        values and `ratio` of them to the best expert's, each with `_low` and `_high`
        (ratios are None where no expert scores anything);
        `datasets`, {name: value}. A line without `datasets` is a paired difference.
        The last that is none is the search's own merge.
      gain: which of `tested` is the search's gain on the grid, if any.
      reference: the objective of task arithmetic by a grid of λ.
      facts, provenance: what was searched; how to get it again.
    """
    best = max(points, key=lambda point: point.objective)
    models = [line for line in tested if line["model"] != gain]
    trials, scores = _trials(points), _tested(tested)
    values = Table(
        "best",
        "The best trial's numbers",
        ("number", "value"),
        tuple(best.values.items()),
    )
    return Document(
        title=f"Search: {len(points)} trials in {len(best.values)} dimensions",
        facts=facts,
        answer=_answer(points, best, tested, gain, reference),
        lead=[_history(points, best, reference), _models(models)],
        sections=[
            Section("slices", "The objective over each number", _slices(points, best)),
            Section("datasets", "Dataset by dataset, test split", _by_set(models)),
            Section("tables", "Tables", tables=[values, scores, trials]),
        ],
        terms=[
            (
                "Objective",
                "the mean over datasets of a merge's value over the best expert's, "
                "on the validation split. Choosing by it flatters what is chosen.",
            ),
            (
                "Ratio",
                "the same on the test split, which the search did not read; bars "
                "are bootstrap intervals over its examples.",
            ),
        ],
        provenance=[*provenance, ("Page drawn by", versions())],
        downloads=[
            Download("trials.csv", trials.title, trials.csv()),
            Download("test.csv", scores.title, scores.csv()),
        ],
        looks=_LOOKS,
    )


def _answer(
    points: Sequence[Point],
    best: Point,
    tested: Sequence[Mapping[str, Any]],
    gain: str | None,
    reference: float | None,
) -> list[str]:
    """Three sentences: what was found, what it is worth on test, and against what."""
    said = [
        f"Of {len(points)} trials, number {best.number} has the highest objective on "
        f"validation, {best.objective:.4f}"
        + (
            "."
            if reference is None
            else f"; task arithmetic with λ by a grid has {reference:.4f}."
        )
    ]
    *others, found = (line for line in tested if line["model"] != gain)
    measure = _measure(tested)
    value, low, high = _ends(found, measure)
    text = (
        f"On the test split it reaches {value:.4f} of the best experts' values"
        if measure == "ratio"
        else "On the test split no expert scores anything; the mean of its values is "
        f"{value:.4f}"
    )
    text += f" ({low:.4f} to {high:.4f})"
    if others:
        second = max(others, key=lambda line: line[measure])
        text += f"; of the others {second['model']} comes first ({second[measure]:.4f})"
    said.append(f"{text}.")
    for line in tested:
        if line["model"] == gain:
            value, low, high = _ends(line, measure)
            apart = low > 0 or high < 0
            said.append(
                f"There, its {_MEASURES[measure]} less the grid's is "
                f"{value:+.4f} ({low:+.4f} to {high:+.4f}, paired)"
                + ("." if apart else ": the examples can't tell them apart.")
            )
    if len(said) < 3:
        half = points[: max(len(points) // 2, 1)]
        more = best.objective - max(point.objective for point in half)
        said.append(f"The second half of the trials added {more:.4f} to the objective.")
    return said


def _measure(tested: Sequence[Mapping[str, Any]]) -> str:
    """Return what models are held against each other by, of `_MEASURES`."""
    return "mean" if tested[0]["ratio"] is None else "ratio"


def _ends(line: Mapping[str, Any], measure: str) -> tuple[float, float, float]:
    return line[measure], line[f"{measure}_low"], line[f"{measure}_high"]


def _history(points: Sequence[Point], best: Point, reference: float | None) -> Panel:
    numbers = [point.number for point in points]
    objective = [point.objective for point in points]
    so_far = list(itertools.accumulate(objective, max))
    lines = {"mode": "lines", "hoverinfo": "skip"}
    traces = [
        _trace("trial", numbers, objective, hovertext=[_told(p) for p in points]),
        _trace("best so far", numbers, so_far, **lines, line={"shape": "hv"}),
        _star([best.number], best),
    ]
    if reference is not None:
        ends = [numbers[0], numbers[-1]]
        traces.append(_trace("grid", ends, [reference] * 2, **lines))
        traces[-1]["name"] = "task arithmetic, λ by the grid"
    layout = {
        "height": 330,
        "xaxis": {"title": "trial"},
        "yaxis": {"title": "objective (validation)"},
    }
    caption = "Every trial, in the order in which they were made."
    return Panel("history", "The search's history", caption, plot(traces, layout))


def _models(models: Sequence[Mapping[str, Any]]) -> Panel:
    measure = _measure(models)
    ends = [_ends(line, measure) for line in models]
    trace = _trace(
        "model",
        [value for value, _, _ in ends],
        [line["model"] for line in models],
        hovertext=[
            f"{line['model']}\n{measure} {value:.4f} ({low:.4f} to {high:.4f})"
            f"\nmean of values {line['mean']:.4f}"
            for line, (value, low, high) in zip(models, ends, strict=True)
        ],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - value for value, _, high in ends],
            "arrayminus": [value - low for value, low, _ in ends],
        },
    )
    layout = {
        "height": 24 * len(models) + 90,
        "margin": {"l": 10},
        "xaxis": {"title": _MEASURES[measure]},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    caption = "The test split is read when the search is over."
    return Panel("tested", "On the test split", caption, plot([trace], layout))


def _slices(points: Sequence[Point], best: Point) -> list[Panel]:
    """The objective over each number that was varied; the table has those beyond."""
    objective = [point.objective for point in points]
    told = [_told(point) for point in points]
    found = []
    for number, label in enumerate(list(best.values)[:MOST]):
        at = [point.values[label] for point in points]
        traces = [
            _trace("trial", at, objective, hovertext=told),
            _star([best.values[label]], best),
        ]
        layout = {
            "height": 260,
            "xaxis": {"title": label},
            "yaxis": {"title": "objective (validation)"},
        }
        found.append(Panel(f"slice_{number}", label, "", plot(traces, layout)))
    return found


def _by_set(models: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A heat map: models × datasets, the values on the test split."""
    names = list(models[0]["datasets"])
    z = [[line["datasets"][name] for name in names] for line in models]
    labels = [line["model"] for line in models]
    trace = {
        "type": "heatmap",
        "x": names,
        "y": labels,
        "z": z,
        "zmin": 0,
        "zmax": 1,
        "hoverinfo": "text",
        "hovertext": [
            [
                f"{label}\n{name} {value:.3f}"
                for name, value in zip(names, row, strict=True)
            ]
            for label, row in zip(labels, z, strict=True)
        ],
        "text": [[f"{value:.2f}" for value in row] for row in z],
        "texttemplate": "%{text}",
    }
    layout = {
        "height": 26 * len(models) + 150,
        "margin": {"l": 10},
        "xaxis": {"type": "category", "tickangle": -45},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    caption = "Each dataset's own metric, in 0 to 1."
    return [Panel("by_set", "Values", caption, plot([trace], layout))]


def _trials(points: Sequence[Point]) -> Table:
    labels = list(points[0].values)
    rows = [
        (point.number, point.objective, *(point.values[name] for name in labels))
        for point in points
    ]
    return Table("trials", "Every trial", ("trial", "objective", *labels), tuple(rows))


def _tested(tested: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("mean", "mean_low", "mean_high", "ratio", "ratio_low", "ratio_high")
    rows = [(line["model"], *(line[name] for name in columns)) for line in tested]
    heads = ("mean of values", "from", "to")
    heads += ("ratio to best expert", "ratio from", "ratio to")
    return Table("test", "On the test split", ("model", *heads), tuple(rows))


def _told(point: Point) -> str:
    values = [f"{name} {value:.4g}" for name, value in point.values.items()]
    more = [f"… {len(values) - 12} more"] if len(values) > 12 else []
    return "\n".join(
        [f"trial {point.number}: {point.objective:.4f}", *values[:12], *more]
    )


def _star(x: Sequence[float], best: Point) -> dict[str, Any]:
    marker = {"size": 14, "line": {"width": 1}}
    told = {"hovertext": [_told(best)], "marker": marker}
    return _trace("the best", x, [best.objective], **told)


def _trace(name: str, x: Sequence, y: Sequence, **given: Any) -> dict[str, Any]:
    trace = {"type": "scatter", "mode": "markers", "hoverinfo": "text", "name": name}
    return trace | {"look": ["series", name], "x": list(x), "y": list(y)} | given
