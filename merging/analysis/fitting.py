"""`merging fit`: laws of merging, fitted to rows, with intervals and held-out tests.

Quantities of the rows in analysis.json; `of` begins with the group (family/base/method,
and the size of a saturating law, or a CSV's own):

  parameter        of = (group, its name): value and bootstrap interval
  r_squared, rmse  of the fit (`laws.Law`)
  observations     how many were fitted
  at_bound         of = (group, name): 1 for a number that the data do not tell
  observed, fitted of = (group, N): at = k, the mean, and the law with its interval
  predicted        of = (group, N) of `predict_N`: at = k, with the interval of one more
                   merge's value
  held_out_observed, held_out_predicted
                   of = (group, the test, N): at = k, with the interval of such a mean
  held_out_error   of = (group, the test): mean of |predicted − observed| / |observed|
  held_out_covered of = (group, the test): share of intervals that hold the observed
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merging.analysis import figures, law_rows, laws, place, rows
from merging.analysis.bootstrap_laws import Prediction, Sureness, bootstrap, held_out
from merging.analysis.laws import Observation
from merging.analysis.rows import Row, number
from merging.runtime import config_keys, storage, text
from merging.runtime.errors import UserError, nearest

_KEYS = {
    "rows": tuple,
    "form": laws.MERGING,
    "quantity": "cross_entropy",
    "split": "held_in",
    "weights": "k",
    "fit_k": 0,
    "fit_N": 0,
    "predict_N": (),
    "resamples": 200,
    "level": 0.95,
    "seed": 0,
}


def run(config: Any, workdir: Path) -> None:
    """Do what a config says (see configs/fit/law.py), into a workdir.

    Raises:
      UserError: rows that can't be read, or do not tell the law; by group.
    """
    workdir = Path(storage.supported_path(workdir, "--workdir"))
    config = config_keys.completed(config, _KEYS, "merging fit", "fit/law")
    values = config.to_dict()
    _check(values)
    saturating = values["form"] == laws.SATURATING
    groups, notes = law_rows.read(
        list(values["rows"]),
        quantity=values["quantity"],
        split=values["split"],
        gain=saturating,
        by_size=saturating,
    )
    made: list[Row] = []
    refused: dict[str, str] = {}
    for group, observed in sorted(groups.items()):
        try:
            made += _fitted(group, observed, values, refused)
        except UserError as error:
            refused[group] = str(error)
    if not made:
        lines = [f"{group}: {reason}" for group, reason in refused.items()]
        raise UserError("no law could be fitted:\n  " + "\n  ".join(lines))
    with place.held(workdir, values):
        place.claim(workdir, values)
        path = rows.write(workdir, "law", made, settings=values, refused=refused)
        figures.write(workdir, figures.of_law(made, _label(values)))
    print("\n".join([_summary(made), *(f"note: {note}" for note in notes)]))
    for group, reason in refused.items():
        print(f"not fitted: {group}: {reason}")
    print(f"Rows: {path}")


def _check(values: Mapping[str, Any]) -> None:
    for key, valid in (
        ("form", laws.FORMS),
        ("weights", laws.WEIGHTS),
        ("quantity", law_rows.QUANTITIES),
        ("split", law_rows.SPLITS),
    ):
        if values[key] not in valid:
            raise nearest(key, values[key], valid)
    if values["resamples"] < 2 or not 0 < values["level"] < 1:
        raise UserError("resamples must be 2 or more, and level between 0 and 1.")
    if values["predict_N"] and values["form"] == laws.SATURATING:
        raise UserError("predict_N: the saturating law is of one N each.")
    for N in values["predict_N"]:
        if not isinstance(N, (int, float)) or not 0 < N < math.inf:
            raise UserError(f"predict_N holds {N!r}, no number of parameters.")


def _fitted(
    group: str,
    observed: Sequence[Observation],
    values: Mapping[str, Any],
    refused: dict[str, str],
) -> list[Row]:
    """Return a group's rows; tests that can't be go to `refused`."""
    form, weights = values["form"], values["weights"]
    how = {key: values[key] for key in ("resamples", "level", "seed")}
    sure = bootstrap(observed, form, weights, **how)
    made = list(_law_rows(group, observed, sure))
    made += _prediction_rows(group, observed, sure, values["predict_N"])
    for name, key, limit in (
        ("k", "k", values["fit_k"]),
        ("N", "N", values["fit_N"]),
    ):
        seen = [one for one in observed if getattr(one, key) <= limit]
        if not limit or len(seen) == len(observed):
            continue
        test = f"fitted on {name} <= {limit:g}"

        def is_seen(one: Observation, key: str = key, limit: float = limit) -> bool:
            return getattr(one, key) <= limit

        try:
            _, predicted = held_out(observed, is_seen, form, weights, **how)
            made += _test_rows(group, test, predicted)
        except UserError as error:
            refused[f"{group}, {test}"] = str(error)
    return made


def _label(values: Mapping[str, Any]) -> str:
    """Return what the law is of, in words."""
    name = values["quantity"].replace("_", "-")
    saturating = values["form"] == laws.SATURATING
    return f"gain over the base ({name})" if saturating else name


def _law_rows(
    group: str, observed: Sequence[Observation], sure: Sureness
) -> Iterator[Row]:
    law = sure.law
    for name, value in law.parameters.items():
        low, high = map(number, sure.interval(name))
        yield Row("parameter", number(value), of=(group, name), low=low, high=high)
    yield Row("r_squared", number(law.r_squared), of=(group,))
    yield Row("rmse", number(law.rmse), of=(group,))
    yield Row("observations", len(observed), of=(group,))
    for name in law.at_bound:
        yield Row("at_bound", 1, of=(group, name))
    for N, k, mean in _cells(observed):
        of = (group, f"{N:g}")
        yield Row("observed", mean, of=of, at=k)
        low, high = map(number, sure.around(N, k))
        fitted = float(law.predict(N, k))
        yield Row("fitted", fitted, of=of, at=k, low=low, high=high)


def _prediction_rows(
    group: str, observed: Sequence[Observation], sure: Sureness, sizes: Sequence[float]
) -> Iterator[Row]:
    for N in sizes:
        for k in sorted({one.k for one in observed}):
            low, high = map(number, sure.around(N, k, observations=1))
            value, of = float(sure.law.predict(N, k)), (group, f"{N:g}")
            yield Row("predicted", value, of=of, at=k, low=low, high=high)


def _cells(observed: Sequence[Observation]) -> list[tuple[float, float, float]]:
    cells: dict[tuple[float, float], list[float]] = {}
    for one in observed:
        cells.setdefault((one.N, one.k), []).append(one.value)
    return [(*at, statistics.fmean(of)) for at, of in sorted(cells.items())]


def _test_rows(group: str, test: str, found: Sequence[Prediction]) -> Iterator[Row]:
    for one in found:
        of = (group, test, f"{one.N:g}")
        yield Row("held_out_observed", one.observed, of=of, at=one.k)
        ends = {"low": number(one.low), "high": number(one.high)}
        yield Row("held_out_predicted", one.predicted, of=of, at=one.k, **ends)
    error = statistics.fmean(one.error for one in found)
    yield Row("held_out_error", number(error), of=(group, test))
    covered = [one.covered for one in found if one.covered is not None]
    share = statistics.fmean(covered) if covered else None
    yield Row("held_out_covered", share, of=(group, test))


def _summary(made: Sequence[Row]) -> str:
    lines: list[tuple[object, ...]] = [("group", "quantity", "value", "from", "to")]
    shown = ("parameter", "r_squared", "rmse", "held_out_error", "held_out_covered")
    shown += ("predicted",)
    for row in made:
        if row.quantity in shown:
            of = row.quantity if row.quantity != "parameter" else row.of[1]
            of = f"{of}, {row.of[1]}" if row.quantity.startswith("held") else of
            of = (
                f"N = {row.of[1]}, k = {row.at:g}"
                if row.quantity == "predicted"
                else of
            )
            numbers = (row.value, row.low, row.high)
            cells = ("" if x is None else f"{x:.4g}" for x in numbers)
            lines.append((row.of[0], of, *cells))
    return text.table(lines)
