"""Scores → result rows (SUITES.md), held against a base's and an expert's."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from merging.evaluation.scores import DatasetScore
from merging.runtime import results
from merging.runtime.errors import UserError
from merging.runtime.results import Row, normalise


class ModelLabels(NamedTuple):
    """What the rows say of the model, and on which suite; see `results.Row`."""

    suite: str
    family: str
    size: str
    params: int
    base: str
    method: str
    parameters: Mapping[str, object]
    K: int
    subset: tuple[str, ...]
    seed: int


def row(
    score: DatasetScore,
    model: ModelLabels,
    *,
    base: float | None,
    expert: float | None,
    wall_seconds: float,
    git_revision: str,
    config_hash: str,
) -> Row:
    """Return the result row of a model's score on a dataset.

    Args:
      score: the model's.
      model: what it is.
      base: the value of its base, which a base is itself; None if unknown.
      expert: the value of the dataset's own expert, which an expert is itself; None
        if unknown. A held-out dataset has none, whatever is given.
      wall_seconds, git_revision, config_hash: of the row.
    """
    held_in = score.split == "held_in"
    merged = held_in and score.category in model.subset
    base = score.value if model.method == "base" else base
    expert = score.value if model.method == "expert" and merged else expert
    expert = expert if held_in else None
    return Row(
        **model._asdict(),
        dataset=score.dataset,
        category=score.category,
        split=score.split,
        metric=score.metric,
        chance=score.chance,
        merged=merged,
        value=score.value,
        value_of_expert=expert,
        value_of_base=base,
        normalised=normalise(score.value, expert if held_in else base),
        examples=score.examples,
        wall_seconds=wall_seconds,
        git_revision=git_revision,
        config_hash=config_hash,
    )


def reference(workdir: str | Path, suite: str) -> dict[str, Row]:
    """Return {dataset: row} of another evaluation on a suite; none for "".

    Raises:
      UserError: no rows there, or several models' values of one dataset.
    """
    rows = [r for r in results.read(workdir) if r.suite == suite] if workdir else []
    found = {one.dataset: one for one in rows}
    unlike = {(one.dataset, *_measured(one), one.value) for one in rows}
    names = [name for name, *_ in sorted(unlike)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{workdir} has several values of {', '.join(twice)}: name the "
            "workdir of one model's evaluation."
        )
    return found


def require_comparable(
    scores: Iterable[DatasetScore], kind: str, others: Mapping[str, Row]
) -> None:
    """Refuse values that were not found with the same metric on as many examples.

    Raises:
      UserError: them all; `kind` says whose they are.
    """
    faults = [
        f"{score.dataset}: the {kind}'s value is {other.metric} on {other.examples} "
        f"examples, this one {score.metric} on {score.examples}"
        for score in scores
        if (other := others.get(score.dataset)) and _measured(other) != _measured(score)
    ]
    if faults:
        raise UserError("values that can't be compared:\n" + "\n".join(faults))


def _measured(one: Row | DatasetScore) -> tuple[str, int]:
    return one.metric, one.examples
