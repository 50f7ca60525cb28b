"""Datasets on which there is nothing to merge, as their experts learned too little."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from merging.runtime.errors import UserError
from merging.runtime.results import Row


def gated(rows: Iterable[Row], errors: float) -> tuple[list[Row], list[str]]:
    """Leave out the held-in datasets whose experts are not clearly above their base.

    A dataset stays if at every size and base e − b > errors · √((e(1 − e) + b(1 − b)) /
    n), e being the mean of its experts over the seeds, b the base's score and n the
    number of examples. x(1 − x) is the variance of answers that are right or wrong, and
    the most that any score between 0 and 1 can have; that all models answer the same
    examples, and that several experts count, is not made use of. Held-out datasets have
    no experts, and stay.

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
    gone: dict[str, str] = {}
    for (dataset, size, base), group in sorted(groups.items()):
        if dataset not in gone and (fault := _fault(group, errors)):
            gone[dataset] = f"{dataset} at {size} {base.upper()}: {fault}"
    if gone and not {dataset for dataset, _, _ in groups} - gone.keys():
        raise UserError(
            f"no held-in dataset has experts {errors:g} standard errors above the base:"
            f" {'; '.join(gone.values())}. Ask for fewer (--gate)."
        )
    return [row for row in rows if row.dataset not in gone], list(gone.values())


def _fault(rows: Sequence[Row], errors: float) -> str | None:
    """Say how the experts of one dataset compare, if they are not clearly above."""
    scores = {
        row.seed: (row.value_of_expert, row.value_of_base)
        for row in rows
        if row.value_of_expert is not None and row.value_of_base is not None
    }
    if not scores:
        return "no score of an expert and a base"
    expert, base = (fmean(of) for of in zip(*scores.values(), strict=True))
    variance = expert * (1 - expert) + base * (1 - base)
    needed = errors * math.sqrt(variance / min(row.examples for row in rows))
    if expert - base > needed:
        return None
    return f"experts {expert:.2f}, base {base:.2f}, {needed:.2f} asked for"
