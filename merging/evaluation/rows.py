"""Scores → result rows, held against a base's and an expert's."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from merging.evaluation import store
from merging.evaluation.scores import DatasetScore, Record
from merging.runtime import results, storage
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


class Reference(NamedTuple):
    """Another evaluation, which values are held against.

    Attributes:
      rows: {dataset: row}.
      scores: {dataset: score}, which know their examples; none where only rows are.
    """

    rows: Mapping[str, Row]
    scores: Mapping[str, DatasetScore]


def reference(workdir: str | Path, suite: str) -> Reference:
    """Return another evaluation on a suite; an empty one for "".

    Args:
      workdir: its folder, or a file of rows.
      suite: whose rows count.

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
    return Reference(found, store.scores(storage.place(workdir)) if workdir else {})


def require_comparable(
    scores: Iterable[DatasetScore], base: Reference, expert: Reference
) -> None:
    """Refuse values that were not found with the same metric on the same examples.

    Of a file of rows, only how many examples there were is known.

    Args:
      scores: to be held against the others.
      base, expert: from `reference`; an expert's of held-out datasets don't matter.

    Raises:
      UserError: them all.
    """
    faults = [
        f"{score.dataset}: the {kind}'s value is {fault}"
        for score in scores
        for kind, other in (("base", base), ("expert", expert))
        if kind == "base" or score.split == "held_in"
        if (fault := _unlike(score, other))
    ]
    if faults:
        raise UserError("values that can't be compared:\n" + "\n".join(faults))


def _unlike(score: DatasetScore, of: Reference) -> str:
    """Return what keeps another evaluation's value from being held against; or ""."""
    row, other = of.rows.get(score.dataset), of.scores.get(score.dataset)
    if row and _measured(row) != _measured(score):
        return (
            f"{row.metric} on {row.examples} examples, this one {score.metric} on "
            f"{score.examples}"
        )
    if row and other and other.asked != score.asked:
        return "of other examples (another split, world or file, or other prompts)"
    return ""


def _measured(one: Row | DatasetScore) -> tuple[str, int]:
    return one.metric, one.examples
