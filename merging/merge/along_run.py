"""A merge along a run: its checkpoints' weights, from a schedule over their order.

A schedule is a way to say weights. What is merged, and what the manifest records, are
the checkpoints with their weights, so a repeated merge needs no schedule.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from merging import checkpoints, methods
from merging.merge import rules
from merging.merge.inputs import expert_names
from merging.methods import Method
from merging.runtime import text
from merging.runtime.errors import UserError


def scheduled(
    experts: Sequence[str] | Mapping[str, str], method: Method | str, schedule: str
) -> tuple[dict[str, str], Method | str]:
    """Return the experts by name, and the method with the schedule's weights for them.

    The order is that of the steps if all are steps of one run (``RUN@100``,
    ``RUN/100``), else the one given. An expert whose weight is 0, as LAWA's older ones,
    is left out and never read.

    Args:
      experts: the checkpoints.
      method: one that takes weights, and has none.
      schedule: see `methods.run_weights`.

    Raises:
      UserError: no such schedule, or a method that has weights or takes none.
    """
    named = dict(experts) if isinstance(experts, Mapping) else expert_names(experts)
    every = methods.run_weights(schedule, len(named))
    weight = dict(zip(_oldest_first(named), every, strict=True))
    kept = {name: uri for name, uri in named.items() if weight[name] != 0}
    return kept, _with_weights(method, tuple(weight[name] for name in kept))


def _oldest_first(experts: Mapping[str, str]) -> list[str]:
    """Return the names in the order of the steps of one run; of all else, as given."""
    steps = {n: checkpoints.step_number(n, uri) for n, uri in experts.items()}
    if None in steps.values():
        return list(experts)
    if len({_run_of(uri, steps[name]) for name, uri in experts.items()}) > 1:
        return list(experts)
    return sorted(experts, key=lambda name: steps[name])


def _run_of(uri: str, step: int | None) -> str:
    """Return the folder of a step's run: above that whose name has the number."""
    parts = os.path.normpath(uri.partition("#")[0]).split("/")
    for place in reversed(range(len(parts))):
        if re.search(rf"(?<!\d)0*{step}(?!\d)", parts[place]):
            return "/".join(parts[:place])
    return os.path.dirname(uri)


def table(settings: Mapping[str, Any]) -> str:
    """Return each expert's weight, the oldest first, as a dry run prints it.

    Args:
      settings: a merge's, as its manifest has them.
    """
    experts = settings["experts"]
    given = rules.parse(settings["method"]).parameters["weights"]
    weight = dict(zip(experts, given, strict=True))
    rows = [("expert", "weight", "checkpoint")]
    rows += [(n, f"{weight[n]:.6f}", experts[n]) for n in _oldest_first(experts)]
    return f"Weights by the schedule {settings['schedule']}:\n{text.table(rows)}"


def _with_weights(method: Method | str, weights: tuple[float, ...]) -> Method | str:
    twice = UserError("both weights and a schedule, which gives weights: choose one.")
    if isinstance(method, Method):
        if method.weights is not None:
            raise twice
        return dataclasses.replace(method, weights=weights)
    spec = rules.parse(method)
    if spec.parameters.get("weights") is not None:
        raise twice
    return str(spec._replace(parameters=spec.parameters | {"weights": weights}))
