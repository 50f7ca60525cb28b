"""What a search found: on the test split, as a merge to run again, and as a picture."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation import DatasetScore, bootstrap, tables
from merging.merge import merge_checkpoints
from merging.report import document, search_page
from merging.report.searches import Point, search_figure
from merging.runtime import processes, storage, text, workdir
from merging.runtime.revision import git_revision
from merging.sweep import merge_config
from merging.sweep.scorers import Model, Scorers, Settings
from merging.sweep.space import Recipe, Space
from merging.sweep.trials import Lines, Trial

BASE, GRID, BEST = "base", "task arithmetic, λ by the grid", "search"
GAIN = f"{BEST} − grid, paired"
_COLUMNS = [f"{k}{end}" for k in ("mean", "ratio") for end in ("", "_low", "_high")]


class Outcome(NamedTuple):
    """A finished search.

    Attributes:
      space: that was searched.
      trials: all, in their order.
      grid: the line of task arithmetic's best λ; None without a base or a grid.
      experts: their names.
    """

    space: Space
    trials: Sequence[Trial]
    grid: Mapping[str, Any] | None
    experts: Sequence[str]

    @property
    def best(self) -> Trial:
        """The trial of the highest objective, the first of several."""
        return max(self.trials, key=lambda trial: trial.value)

    @property
    def recipe(self) -> Recipe:
        """The best trial's merge."""
        return self.space.recipe(self.best.point)


def publish(outcome: Outcome, scorers: Scorers, settings: Settings) -> Path:
    """Write and print all that a search found; return the merge's config.

    Args:
      outcome: of the search.
      scorers: of the search.
      settings: of the search.
    """
    lines = _test(outcome, scorers, settings)
    path = processes.broadcast(lambda: _report(outcome, lines, settings))
    if settings.merge:
        merged = merge_checkpoints(
            settings.base,
            settings.experts,
            outcome.recipe.method,
            settings.folder / f"merged_{outcome.best.number}",
            statistics=settings.expert_statistics,
            method_file=settings.method_file,
            leaf_rules=outcome.recipe.rules,
            seed=settings.seed,
        )
        if processes.is_first():
            print(f"Merged: {merged} (`merging verify {merged}` checks it)")
    return Path(path)


def _report(
    outcome: Outcome, lines: Sequence[Mapping[str, Any]], settings: Settings
) -> str:
    """Write the merge's config, whose path is returned, the figure and the page."""
    folder = settings.folder
    path = _write_config(outcome, settings)
    points = [Point(t.number, t.point, t.value) for t in outcome.trials]
    reference = outcome.grid and outcome.grid["value"]
    figure = search_figure(points, reference)
    for suffix in ("png", "svg", "pdf"):
        storage.write_bytes(folder / f"search.{suffix}", getattr(figure, suffix))
    made = search_page.page(
        points,
        lines,
        gain=GAIN,
        reference=reference,
        facts=_facts(outcome, settings),
        provenance=_provenance(outcome, settings),
    )
    page = document.write(made, folder / "report")
    print(_table(lines))
    print(f"Report: {page}")
    print(f"Best, trial {outcome.best.number} of {len(outcome.trials)}: {path}")
    return str(path)


def _facts(outcome: Outcome, settings: Settings) -> list[tuple[str, str]]:
    """Return what was searched, in words."""
    where = settings.base or "no base"
    return [
        ("base and experts", f"{where}; {', '.join(outcome.experts)}"),
        ("method of the best", outcome.recipe.method),
        ("suite", f"{settings.suite}: {', '.join(settings.datasets)}"),
        ("trials", str(len(outcome.trials))),
    ]


def _provenance(outcome: Outcome, settings: Settings) -> list[tuple[str, str]]:
    """Return what it takes to get the best merge, and this page, again."""
    run = next(iter(workdir.runs([settings.folder]).values()), (None, {}))
    rules = "; ".join(outcome.recipe.rules)
    experts = ", ".join(f"{name}={path}" for name, path in settings.experts.items())
    return [
        ("Experts", experts),
        ("Best merge", f"{outcome.recipe.method}{rules and f', rules: {rules}'}"),
        ("To merge it", f"merging merge --config {settings.folder / 'best.py'}"),
        ("Seed of random masks", str(settings.seed)),
        ("Revision", git_revision()),
        (
            "To search again",
            "merging search --config FILE.py --workdir DIR, with a file whose "
            "get_config() returns the config below",
        ),
        *document.of_run(*run),
    ]


def _write_config(outcome: Outcome, settings: Settings) -> Path:
    best = outcome.best
    words = f"Of {len(outcome.trials)} trials, number {best.number} had the highest "
    return merge_config.write(
        settings.folder / "best.py",
        outcome.recipe,
        title="The best merge that a search found.",
        words=f"{words}objective on\nthe validation split, {best.value:.6f}.",
        base=settings.base,
        experts=settings.experts,
        statistics=settings.expert_statistics,
        output=settings.folder / f"merged_{best.number}",
        method_file=settings.method_file,
        seed=settings.seed,
    )


def _test(
    outcome: Outcome, scorers: Scorers, settings: Settings
) -> list[dict[str, Any]]:
    """Return the lines of the test split; read from the workdir if they are there."""
    path = settings.folder / "test.jsonl"
    kept = Lines(path, "model", "merge", *_COLUMNS).read
    if _plain(outcome.recipe) in [line["merge"] for line in kept]:
        return kept
    merges = {BEST: outcome.recipe}
    if outcome.grid:
        merges = {GRID: Recipe(outcome.grid["method"], ())} | merges
    asked: dict[str, Model] = {BASE: None} if settings.base else {}
    asked |= {f"expert {name}": name for name in outcome.experts} | merges
    if processes.is_first():
        print("search: the test split", file=sys.stderr)
    found = dict(zip(asked, scorers.tested(asked.values()), strict=True))
    lines = compared(found, settings.bootstrap)
    for line in lines:
        of = merges.get(line["model"])
        line["merge"] = of and _plain(of)
    if processes.is_first():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        storage.write_bytes(path, content.encode())
    return lines


def _plain(recipe: Recipe) -> list:
    return [recipe.method, list(recipe.rules)]


def compared(
    found: Mapping[str, Sequence[DatasetScore]], how: bootstrap.Options
) -> list[dict[str, Any]]:
    """Return a line for each model, and one for the search's gain on the grid.

    Each has the mean of the datasets' values, and of their ratios to the best expert's
    value (which is held fixed; no ratio where that is 0 on all), with bootstrap
    intervals over the examples; the gain's are paired.
    """
    names = [score.dataset for score in next(iter(found.values()))]
    values = {
        model: [tables.value(score, score.metric, how) for score in scores]
        for model, scores in found.items()
    }
    experts = [of for model, of in values.items() if model.startswith("expert ")]
    best = [max(of[i].value for of in experts) for i in range(len(names))]
    drawn = {
        model: {
            "mean": _over(of, [1.0] * len(names)),
            "ratio": _over(of, best),
        }
        for model, of in values.items()
    }
    lines = [
        {
            "model": model,
            "split": "test",
            **_shown(drawn[model], how.level),
            "datasets": {n: v.value for n, v in zip(names, of, strict=True)},
        }
        for model, of in values.items()
    ]
    if GRID in drawn:
        gain = {k: drawn[BEST][k] - drawn[GRID][k] for k in ("mean", "ratio")}
        line = {"model": GAIN, "split": "test"}
        lines.append(line | _shown(gain, how.level))
    return lines


def _over(values: Sequence[tables.Value], divisors: Sequence[float]) -> np.ndarray:
    """Return the mean of values over divisors that are not 0, and then resampled.

    NaN where there is no such divisor.
    """
    rows = [
        np.concatenate([[value.value], value.resampled]) / divisor
        for value, divisor in zip(values, divisors, strict=True)
        if divisor > 0
    ]
    return np.mean(rows or [np.full(1 + len(values[0].resampled), np.nan)], axis=0)


def _shown(drawn: Mapping[str, np.ndarray], level: float) -> dict[str, float | None]:
    found = {}
    for name, row in drawn.items():
        low, high, _ = bootstrap.interval(row[1:], level)
        found |= {name: float(row[0]), f"{name}_low": low, f"{name}_high": high}
    return {name: None if np.isnan(value) else value for name, value in found.items()}


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [("test split", "mean", "from", "to", "ratio to best expert", "from", "to")]
    rows += [
        (line["model"], *(text.shown(line[k], "-", 4) for k in _COLUMNS))
        for line in lines
    ]
    return text.table(rows, right=range(1, 7))
