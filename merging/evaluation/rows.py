"""Scores → result rows, held against a base's and an expert's."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from merging.evaluation.scores import DatasetScore, Record
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


def rows(
    records: Iterable[Record],
    model: ModelLabels,
    *,
    base: Mapping[str, float],
    expert: Mapping[str, float],
    config_hash: str,
) -> list[Row]:
    """Return the result rows of a model's scores.

    Args:
      records: its scores.
      model: what it is.
      base: {dataset: value of its base}, where known; a base is its own.
      expert: {dataset: value of the dataset's own expert}, where known; an expert is
        its own, and a held-out dataset has none, whatever is given.
      config_hash: of the run that they are rows of.
    """
    return [
        _row(
            record,
            model,
            base.get(record.score.dataset),
            expert.get(record.score.dataset),
            config_hash,
        )
        for record in records
    ]


def _row(
    record: Record,
    model: ModelLabels,
    base: float | None,
    expert: float | None,
    config_hash: str,
) -> Row:
    score = record.score
    held_in = score.split == "held_in"
    merged = held_in and score.category in model.subset
    if model.method == "base":
        base = score.value
    if model.method == "expert" and merged:
        expert = score.value
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
        wall_seconds=record.seconds,
        git_revision=record.git_revision,
        config_hash=config_hash,
        target_log_p=score.log_p,
        target_tokens=score.tokens,
    )


def reference(workdir: str | Path, suite: str) -> dict[str, Row]:
    """Return {dataset: row} of another evaluation on a suite; none for "".

    Raises:
      UserError: no rows there, or several models' values of one dataset.
    """
    read = results.read(workdir) if workdir else []
    ours = [one for one in read if one.suite == suite]
    found = {one.dataset: one for one in ours}
    unlike = {(one.dataset, *_measured(one), one.value) for one in ours}
    names = [name for name, *_ in sorted(unlike)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{workdir} has several values of {', '.join(twice)}: name the "
            "workdir of one model's evaluation."
        )
    return found


def require_comparable(
    scores: Iterable[DatasetScore], base: Mapping[str, Row], expert: Mapping[str, Row]
) -> None:
    """Refuse values that were not found with the same metric on as many examples.

    Args:
      scores: to be held against the others.
      base, expert: from `reference`; an expert's of held-out datasets don't matter.

    Raises:
      UserError: them all.
    """
    faults = [
        f"{score.dataset}: the {kind}'s value is {other.metric} on {other.examples} "
        f"examples, this one {score.metric} on {score.examples}"
        for score in scores
        for kind, others in (("base", base), ("expert", expert))
        if (other := others.get(score.dataset)) and _measured(other) != _measured(score)
        if kind == "base" or score.split == "held_in"
    ]
    if faults:
        raise UserError("values that can't be compared:\n" + "\n".join(faults))


def _measured(one: Row | DatasetScore) -> tuple[str, int]:
    return one.metric, one.examples
