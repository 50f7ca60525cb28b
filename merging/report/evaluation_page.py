"""The page of one evaluated model, and of two compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merging.evaluation import Record, bootstrap, comparison, store, tables
from merging.evaluation.tables import Value
from merging.report.document import (
    Document,
    Download,
    Panel,
    Section,
    of_run,
    plot,
    versions,
)
from merging.runtime.text import Table, duration

_SPLITS = {"held_in": "Held-in datasets", "held_out": "Held-out datasets"}
_LOOKS = {
    "series": {
        "value": {"light": "#0B5CAD", "dark": "#7DB8F2", "symbol": "circle"},
        "chance": {"light": "#6A7683", "dark": "#A3AFBD", "symbol": "line-ns-open"},
        "A": {"light": "#B34400", "dark": "#FF9A66", "symbol": "square"},
        "B": {"light": "#0B5CAD", "dark": "#7DB8F2", "symbol": "circle"},
        "template": {"light": "#8A5A00", "dark": "#F0BD5A", "symbol": "diamond-open"},
    }
}
for _look in _LOOKS["series"].values():
    _look["dash"] = "none"


def evaluation(workdir: Path, how: bootstrap.Options = bootstrap.DEFAULT) -> Document:
    """Return the page of a workdir's finished evaluation.

    Args:
      workdir: of `merging evaluate`.
      how: the intervals are drawn, as the table's that the command prints.

    Raises:
      UserError: it holds no finished evaluation.
    """
    records = store.present(workdir)
    said = store.described(workdir)
    scores = [record.score for record in records]
    values = [
        {metric: tables.value(score, metric, how) for metric in score.metrics}
        for score in scores
    ]
    own = [found[score.metric] for score, found in zip(scores, values, strict=True)]
    table = tables.table(scores, values, how.level)
    panels = [
        _dots(split, title, records, own, how.level)
        for split, title in _SPLITS.items()
        if any(score.split == split for score in scores)
    ]
    templates = _templates(records, own)
    facts = [
        ("model", said["model"]),
        ("suite", said["suite"]),
        ("datasets", str(len(records))),
        ("examples", str(sum(score.examples for score in scores))),
    ]
    return Document(
        title=f"Evaluation: {Path(said['model']).name or said['model']}"
        f" on {said['suite']}",
        facts=facts,
        answer=_answer(records, own, how.level),
        lead=panels,
        notes=tables.notes(scores),
        sections=[
            Section("prompts", "Prompt templates", templates),
            Section("values", "Values", tables=[table], opened=True),
        ],
        terms=_terms(how),
        provenance=_provenance([("Model", said, records)], how),
        downloads=[Download("values.csv", table.title, table.csv())],
        looks=_LOOKS,
    )


def compared(one: Path, other: Path) -> Document:
    """Return the page of two evaluations on the same examples, A and B.

    Raises:
      UserError: as `evaluation.comparison.compared`.
    """
    table = comparison.compared(one, other)
    said = [store.described(path) for path in (one, other)]
    records = [store.present(path) for path in (one, other)]
    datasets = [row for row in table.rows if row[1]]
    wide = {"height": _height(len(datasets)), "margin": {"l": 10}}
    down = {"type": "category", "autorange": "reversed"}
    order = sorted(datasets, key=lambda row: -row[4])
    names = [f"{row[0]} ({row[1]})" for row in order]
    difference = {
        **_points([row[4] for row in order], names, [row[5:7] for row in order]),
        "name": "B − A",
        "look": ["series", "B"],
        "hovertext": [
            f"{name}\nA {row[2]:.3f}, B {row[3]:.3f}\nB − A {row[4]:+.3f} "
            f"({row[5]:+.3f} to {row[6]:+.3f})"
            for name, row in zip(names, order, strict=True)
        ],
    }
    both = [
        {
            **_points([row[at] for row in order], names, None),
            "name": f"{label}: {Path(about['model']).name or about['model']}",
            "look": ["series", label],
        }
        for label, at, about in (("A", 2, said[0]), ("B", 3, said[1]))
    ]
    zero = {"zeroline": True, "title": "B − A"}
    level = f"{bootstrap.DEFAULT.level:.0%}"
    panels = [
        Panel(
            "difference",
            "B minus A, on the same examples",
            f"Bars are paired bootstrap intervals ({level}): where one leaves 0 out, "
            "other examples would hardly turn the difference around.",
            plot([difference], {**wide, "xaxis": zero, "yaxis": down}),
        ),
        Panel(
            "values_of_both",
            "Both models' values",
            "In the order of the difference.",
            plot(both, {**wide, "xaxis": {"title": "value"}, "yaxis": down}),
        ),
    ]
    return Document(
        title=f"Two models on {said[0]['suite']}",
        facts=[
            ("A", f"{said[0]['model']} ({one})"),
            ("B", f"{said[1]['model']} ({other})"),
            ("datasets compared", str(len(datasets))),
        ],
        answer=_answer_of_two(table, datasets),
        lead=panels,
        notes=[table.title.partition("; ")[2]] if "; " in table.title else [],
        sections=[Section("values", "Values", tables=[table], opened=True)],
        terms=_terms(bootstrap.DEFAULT),
        provenance=_provenance(
            list(zip("AB", said, records, strict=True)), bootstrap.DEFAULT
        ),
        downloads=[Download("comparison.csv", "the table above", table.csv())],
        looks=_LOOKS,
    )


def _dots(
    split: str,
    title: str,
    records: Sequence[Record],
    own: Sequence[Value],
    level: float,
) -> Panel:
    """A split's datasets with their intervals, and what guessing would reach."""
    pairs = [
        (record.score, value)
        for record, value in zip(records, own, strict=True)
        if record.score.split == split
    ]
    pairs.sort(key=lambda pair: (pair[0].category, pair[0].dataset))
    names = [f"{score.dataset} ({score.metric})" for score, _ in pairs]
    values = {
        **_points(
            [value.value for _, value in pairs],
            names,
            [value.interval[:2] for _, value in pairs],
        ),
        "name": "value",
        "look": ["series", "value"],
        "hovertext": [
            f"{score.dataset}, {score.category}\n{score.metric} {value.value:.3f} "
            f"({value.interval.low:.3f} to {value.interval.high:.3f})\n"
            f"n = {score.examples} examples, {len(value.by_template)} prompts\n"
            f"chance {score.chance:.3f}"
            for score, value in pairs
        ],
    }
    chance = {
        **_points([score.chance for score, _ in pairs], names, None),
        "name": "chance",
        "look": ["series", "chance"],
        "marker": {"size": 13, "line": {"width": 2}},
        "hovertext": [f"chance {score.chance:.3f}" for score, _ in pairs],
    }
    layout = {
        "height": _height(len(pairs)),
        "margin": {"l": 10},
        "xaxis": {"title": "value", "range": [-0.02, 1.02]},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    caption = f"Bars are bootstrap intervals over examples ({level:.0%})."
    return Panel(f"dots_{split}", title, caption, plot([values, chance], layout))


def _templates(records: Sequence[Record], own: Sequence[Value]) -> list[Panel]:
    """Each prompt template's value; nothing where every dataset has one."""
    found = [
        (f"{record.score.dataset}", name, value)
        for record, values in zip(records, own, strict=True)
        for name, value in values.by_template.items()
        if len(values.by_template) > 1
    ]
    if not found:
        return []
    trace = {
        **_points([value for *_, value in found], [name for name, *_ in found], None),
        "name": "a prompt template",
        "look": ["series", "template"],
        "hovertext": [f"{name}, {one}\n{value:.3f}" for name, one, value in found],
    }
    layout = {
        "height": _height(len({name for name, *_ in found})),
        "margin": {"l": 10},
        "xaxis": {"title": "value", "range": [-0.02, 1.02]},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    caption = "How far a score hangs on how it is asked."
    return [
        Panel("templates", "Value by prompt template", caption, plot([trace], layout))
    ]


def _points(
    x: Sequence[float], y: Sequence[str], bars: Sequence[Sequence[float]] | None
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "hoverinfo": "text",
        "hovertext": [f"{n}\n{v:.3f}" for n, v in zip(y, x, strict=True)],
    }
    if bars is not None:
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - v for v, (_, high) in zip(x, bars, strict=True)],
            "arrayminus": [v - low for v, (low, _) in zip(x, bars, strict=True)],
        }
    return trace


def _height(lines: int) -> int:
    return 24 * lines + 90


def _answer(records: Sequence[Record], own: Sequence[Value], level: float) -> list[str]:
    found = []
    pairs = list(zip((record.score for record in records), own, strict=True))
    for split, name in _SPLITS.items():
        members = [value for score, value in pairs if score.split == split]
        if members:
            mean = tables.mean(members, level)
            found.append(
                f"{name} ({len(members)}): {mean.value:.3f} on average "
                f"({mean.interval.low:.3f} to {mean.interval.high:.3f})."
            )
    above = [score for score, value in pairs if value.interval.low > score.chance]
    best = max(pairs, key=lambda pair: pair[1].value - pair[0].chance)
    worst = min(pairs, key=lambda pair: pair[1].value - pair[0].chance)
    found.append(
        f"{len(above)} of {len(pairs)} datasets are above chance with their whole "
        f"interval; furthest above is {best[0].dataset} ({best[1].value:.3f} against "
        f"{best[0].chance:.3f}), least {worst[0].dataset} ({worst[1].value:.3f} "
        f"against {worst[0].chance:.3f})."
    )
    return found


def _answer_of_two(table: Table, datasets: Sequence[tuple]) -> list[str]:
    better = sum(row[5] > 0 for row in datasets)
    worse = sum(row[6] < 0 for row in datasets)
    found = [
        f"Of {len(datasets)} datasets B is better on {better} and worse on {worse} by "
        f"more than their intervals; on {len(datasets) - better - worse} the examples "
        "can't tell them apart."
    ]
    for row in table.rows:
        if not row[1]:  # a mean
            found.append(
                f"{row[0].replace('_', '-').capitalize()}: A {row[2]:.3f}, B "
                f"{row[3]:.3f}, a difference of {row[4]:+.3f} ({row[5]:+.3f} to "
                f"{row[6]:+.3f})."
            )
    return found


def _terms(how: bootstrap.Options) -> list[tuple[str, str]]:
    return [
        (
            "Value",
            "the dataset's own metric in 0 to 1, the mean over its prompt templates.",
        ),
        (
            "Interval",
            f"the middle {how.level:.0%} of {how.resamples} resamples of the examples "
            "(bootstrap): how far the value would move with other examples. Two models "
            "are resampled alike, which pairs their difference.",
        ),
        ("Chance", "what guessing reaches."),
    ]


def _provenance(
    models: Sequence[tuple[str, Mapping[str, Any], Sequence[Record]]],
    how: bootstrap.Options,
) -> list[tuple[str, str]]:
    """Return where pages come from.

    Args:
      models: (what it is called here, what its workdir says, its records).
      how: its intervals were drawn.
    """
    found = []
    for name, said, records in models:
        revisions = ", ".join(sorted({record.git_revision for record in records}))
        seconds = duration(sum(record.seconds for record in records))
        told = f"{said['model']}, scored in {seconds} at revision {revisions}"
        command = str(said["command"] or "unknown: it was scored from Python")
        found += [(name, told), (f"{name}: to get it again", command)]
        of = of_run(said["config"], said["versions"])
        found += [(f"{name}: {what.lower()}", text) for what, text in of]
    seed = f"{how.seed}, of the intervals; nothing else is drawn at random"
    return [*found, ("Seed", seed), ("Page drawn by", versions())]
