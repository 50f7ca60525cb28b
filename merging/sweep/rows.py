"""Finished steps → result rows; nothing here computes a score."""

from collections.abc import Iterable

from merging import models
from merging.evaluation import ModelLabels
from merging.runtime.results import Row
from merging.sweep import scoring
from merging.sweep.steps import Grid, Step
from merging.sweep.store import Store

_BASELINE = {"pretrain": "base", "instruct": "base", "load": "base"}


def rows(
    grid: Grid, steps: Iterable[Step], store: Store, config_hash: str
) -> list[Row]:
    """Return the rows of the finished steps among `steps`, a model's rows together."""
    found = []
    for step in steps:
        if step.kind in ("data", "collect") or not store.finished(step):
            continue
        base = grid.base(step.settings["size"], step.settings["base"])
        if not store.finished(base):
            continue
        output = store.output(step)
        method = step.settings.get("method", _BASELINE.get(step.kind, step.kind))
        tests = {method: ""}
        if "best_test" in output:
            tests[f"{method}_early"] = "best_"
        for name, of in tests.items():
            found += _rows(grid, step, store, config_hash, output, name, of)
    return found


def _rows(
    grid: Grid, step: Step, store: Store, config_hash: str, output, method: str, of: str
) -> list[Row]:
    """Return the rows of a step's model, whose test has `of` before its name."""
    experiment = grid.experiment
    suite = experiment.suite
    size, of_base = step.settings["size"], step.settings["base"]
    base = store.output(grid.base(size, of_base))["test"]
    experts = {}
    merged = {category for *_, category in experiment.experts()}
    for category in (c for c in suite.categories if c in merged):
        expert = grid.expert(size, of_base, category, step.settings["seed"])
        # A part of a grid need not have them all.
        if store.finished(expert):
            experts |= store.output(expert)["test"]
    subset = _subset(step, suite.categories)
    decoder = experiment.decoder(size, of_base)
    model = ModelLabels(
        suite=suite.name,
        family=experiment.family,
        size=size,
        params=models.parameter_count(decoder),
        base=of_base,
        method=method,
        parameters=_parameters(step, output),
        K=len(subset),
        subset=tuple(subset),
        seed=step.settings["seed"],
    )
    return scoring.rows(
        suite,
        model,
        output[f"{of}test"],
        output,
        # Steps that were finished before there were any have none.
        output.get(f"{of}targets", {}),
        base=base,
        experts=experts,
        config_hash=config_hash,
    )


def _parameters(step: Step, output: dict) -> dict:
    """Return what a merge chose, and how each λ did at the density that it chose."""
    chosen = output.get("parameters", {})
    tried = zip(
        step.settings.get("candidates", ()), output.get("validation", ()), strict=False
    )
    found = {
        candidate["scale"]: score
        for candidate, score in tried
        if "scale" in candidate and candidate.get("density") == chosen.get("density")
    }
    if len(found) < 2:
        return chosen
    scales = sorted(found)
    return chosen | {
        "tried_scales": scales,
        "tried_scores": [round(found[scale], 6) for scale in scales],
    }


def _subset(step: Step, categories: tuple[str, ...]) -> tuple[str, ...]:
    """Return the categories that went into a model beside its base's data."""
    if step.kind == "merge":
        return tuple(step.settings["subset"])
    if step.kind == "expert":
        return (step.settings["what"],)
    return categories if step.kind == "multitask" else ()
