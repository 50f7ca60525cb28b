"""Datasets on which there is nothing to merge, as their experts learned too little."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from merging.runtime.errors import UserError, listed
from merging.runtime.results import Row


class _Pair(NamedTuple):
    """What an expert and its base score on a dataset of so many examples."""

    expert: float
    base: float
    examples: int


def gated(rows: Iterable[Row], errors: float) -> tuple[list[Row], list[str]]:
    """Leave out the held-in datasets whose experts are not clearly above their base.

    A dataset stays if, at every size and base where both are known, e − b > errors ·
    √((e(1 − e) + b(1 − b)) / n), e being the mean of its experts over the seeds, b the
    base's score and n the number of examples. x(1 − x) is the variance of answers that
    are right or wrong, and the most that any score between 0 and 1 can have; that all
    models answer the same examples, and that several experts count, is not made use of.
    Held-out datasets have no experts, and stay; of held-in ones those go of which no
    expert is known at all.

    Args:
      rows: scores are between 0 and 1.
      errors: how many standard errors of the difference are clear; 0 keeps what is
        above the base at all.

    Returns:
      The rows that stay, and for each dataset that does not a line that says why.

    Raises:
      UserError: no held-in dataset stays.
    """
    rows = list(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.split == "held_in":
            groups.setdefault((row.dataset, row.size, row.base), []).append(row)
    known = {key: found for key, of in groups.items() if (found := _scores(of))}
    unknown = {of[0] for of in groups} - {of[0] for of in known}
    gone = {dataset: f"{dataset}: no expert's score is known" for dataset in unknown}
    for (dataset, size, base), scores in sorted(known.items()):
        if dataset not in gone and (fault := _fault(scores, errors)):
            gone[dataset] = f"{dataset} at {size} {base.upper()}: {fault}"
    if gone and not {dataset for dataset, _, _ in groups} - gone.keys():
        raise UserError(
            f"no held-in dataset has experts {errors:g} standard errors above the base:"
            f" {listed(sorted(gone.values()))}. Ask for fewer (--gate), or report "
            "without."
        )
    return [row for row in rows if row.dataset not in gone], sorted(gone.values())


def _scores(rows: Sequence[Row]) -> Mapping[int, _Pair]:
    """Return each seed's scores on one dataset, where both are known."""
    return {
        row.seed: _Pair(row.value_of_expert, row.value_of_base, row.examples)
        for row in rows
        if row.value_of_expert is not None and row.value_of_base is not None
    }


def _fault(scores: Mapping[int, _Pair], errors: float) -> str | None:
    """Say how the experts of one dataset compare, if they are not clearly above."""
    expert = fmean(pair.expert for pair in scores.values())
    base = fmean(pair.base for pair in scores.values())
    variance = max(expert * (1 - expert) + base * (1 - base), 0.0)
    examples = min(pair.examples for pair in scores.values())
    needed = errors * math.sqrt(variance / examples)
    if expert - base > needed:
        return None
    return f"experts {expert:.2f}, base {base:.2f}, {needed:.2f} asked for"
