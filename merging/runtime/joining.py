"""Rows of several runs, put together or refused."""

import dataclasses
from collections.abc import Iterable, Sequence

from merging.runtime.errors import UserError
from merging.runtime.results import BASELINES, Row, normalise, order


def join(rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """Sort rows and keep each (model, dataset) once.

    Returns the rows, and notes on what was dropped: repeats that agree, and repeats
    of one configuration that differ (two machines need not round alike; the first
    given is kept).

    Raises:
      UserError: different configurations gave different values for the same model.
    """
    kept: dict[tuple, Row] = {}
    repeats, unlike, contradictions = 0, 0, []
    for row in sorted(_with_experts(list(rows)), key=order):
        first = kept.setdefault(order(row), row)
        if first is row:
            continue
        if _measured(first) == _measured(row):
            repeats += 1
        elif first.config_hash == row.config_hash:
            unlike += 1
        else:
            contradictions.append(
                f"{row.size} {row.base} {row.method} K={row.K} seed {row.seed} "
                f"{row.dataset}: {first.value:.4g} (config {first.config_hash}) and "
                f"{row.value:.4g} (config {row.config_hash})"
            )
    if contradictions:
        raise UserError(
            "these runs had different configurations and evaluated the same models "
            f"differently ({len(contradictions)} rows); take them one by one:\n"
            + "\n".join(contradictions[:5])
        )
    notes = []
    if repeats:
        notes.append(f"{repeats} rows were given twice, alike; each is counted once.")
    if unlike:
        notes.append(
            f"{unlike} rows were given twice with different values by the same "
            "configuration (two machines?); the first of each is counted."
        )
    return list(kept.values()), notes


def _with_experts(rows: list[Row]) -> list[Row]:
    """Give rows the expert's value that only another part of their grid has."""

    def key(row: Row) -> tuple:
        model = (row.config_hash, row.suite, row.family, row.size, row.base)
        return (*model, row.seed, row.dataset)

    experts = {
        key(row): row.value
        for row in rows
        if row.method == "expert" and row.split == "held_in"
    }

    def complete(row: Row) -> Row:
        value = experts.get(key(row))
        if row.split != "held_in" or row.value_of_expert is not None or value is None:
            return row
        return dataclasses.replace(
            row, value_of_expert=value, normalised=normalise(row.value, value)
        )

    return [complete(row) for row in rows]


def _measured(row: Row) -> tuple:
    # The base and a multitask model are the same for all seeds, and a run gives them
    # the values of its own first seed's experts.
    shared = row.method in BASELINES and row.method != "expert"
    of_expert = None if shared else row.value_of_expert
    return row.value, of_expert, row.value_of_base, row.merged, row.examples


def require_one_experiment(rows: Sequence[Row]) -> None:
    """Refuse rows that cannot share a figure's axes.

    Raises:
      UserError: no rows, several suites or families, or one name for two things.
    """
    if not rows:
        raise UserError("no result rows: nothing to report; run the sweep first")
    for what, several in (("suite", "suites"), ("family", "families")):
        if len(names := sorted({getattr(row, what) for row in rows})) > 1:
            raise UserError(
                f"rows of several {several} ({', '.join(names)}) do not share an axis; "
                "report them one by one"
            )
    for key, of in (
        ("size", ("params",)),
        ("dataset", ("category", "split", "metric")),
    ):
        seen: dict[str, tuple] = {}
        for row in rows:
            facts = tuple(getattr(row, name) for name in of)
            first = seen.setdefault(getattr(row, key), facts)
            if first != facts:
                raise UserError(
                    f"{key} {getattr(row, key)} has two different {'/'.join(of)}: "
                    f"{first} and {facts}; these runs do not belong together"
                )
