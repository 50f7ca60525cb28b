"""Finished steps → result rows (SUITES.md); nothing here computes a score."""

import math
from collections.abc import Iterable

from merging import models
from merging.results import Row, normalise
from merging.sweep.settings import Settings
from merging.sweep.steps import Grid, Step
from merging.sweep.store import Store
from merging.telemetry import git_revision

_BASELINE = {"pretrain": "base", "instruct": "base", "expert": "expert"}


def rows(grid: Grid, steps: Iterable[Step], store: Store, config_hash: str):
    """Return the rows of the finished steps among `steps`.

    A row needs the scores of its base and experts; a step without them gives none.
    """
    common = {"git_revision": git_revision(), "config_hash": config_hash}
    found = []
    for step in steps:
        if step.kind == "data" or not store.finished(step):
            continue
        references = _references(grid, step)
        if all(store.finished(reference) for reference in references):
            found += _rows(grid.settings, step, references, store, common)
    return found


def _references(grid: Grid, step: Step) -> list[Step]:
    """Return the base and the experts that a step's scores are compared with."""
    size, base = step.settings["size"], step.settings["base"]
    references = [grid.base(size, base)]
    if step.kind == "merge":
        return [*step.needs]
    if step.kind.startswith("multitask"):
        categories = grid.settings.suite.categories
        seed = step.settings["seed"]
        references += [grid.expert(size, base, c, seed) for c in categories]
    return references


def _rows(settings: Settings, step, references, store: Store, common) -> list[Row]:
    suite = settings.suite
    output = store.output(step)
    base = store.output(references[0])["test"]
    experts = {}
    for reference in references[1:]:
        experts |= store.output(reference)["test"]
    if step.kind == "expert":
        experts = output["test"]
    subset = {
        "merge": step.settings.get("subset", ()),
        "expert": (step.settings["what"],) if step.kind == "expert" else (),
    }.get(step.kind, suite.categories if step.kind.startswith("multi") else ())
    decoder = settings.decoder(step.settings["size"])
    of_model = {
        "suite": suite.name,
        "ladder": settings.ladder,
        "size": step.settings["size"],
        "params": models.parameter_count(decoder),
        "base": step.settings["base"],
        "method": step.settings.get("method", _BASELINE.get(step.kind, step.kind)),
        "parameters": output.get("parameters", {}),
        "K": len(subset),
        "subset": tuple(subset),
        "seed": step.settings["seed"],
        "wall_seconds": output["wall_seconds"],
        **common,
    }
    made = []
    for dataset in suite.datasets:
        if dataset.name not in output["test"]:
            continue
        value = output["test"][dataset.name]
        of_expert = experts.get(dataset.name)
        held_in = dataset.split == "held_in"
        of_base = base[dataset.name]
        made.append(
            Row(
                **of_model,
                dataset=dataset.name,
                category=dataset.category,
                split=dataset.split,
                metric=dataset.metric,
                chance=dataset.chance,
                merged=held_in and dataset.category in subset,
                value=value,
                value_of_expert=of_expert if held_in else None,
                value_of_base=of_base,
                normalised=normalise(value, of_expert if held_in else of_base),
                examples=suite.test_examples,
            )
        )
    return made


def standard_error(value: float, examples: int) -> float:
    """Return an upper bound of a mean score's standard error, scores being in 0..1.

    Exact for accuracy and exact match; F1 and ROUGE vary less than a coin does.
    """
    return math.sqrt(max(value * (1 - value), 0.0) / examples)
