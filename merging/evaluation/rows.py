"""Records → result rows (SUITES.md), held against a base's and an expert's."""

from collections.abc import Mapping, Sequence

from merging.evaluation.model import Opened
from merging.evaluation.settings import Settings
from merging.evaluation.tables import Summary
from merging.runtime import results
from merging.runtime.errors import UserError
from merging.runtime.results import Row, normalise

# {dataset: (metric, examples, value)} of another evaluation.
Reference = Mapping[str, tuple[str, int, float]]


def reference(workdir: str, settings: Settings) -> Reference:
    """Return another evaluation's values; none for "".

    Raises:
      UserError: no rows there, or several models' values of one dataset.
    """
    found: dict[str, tuple[str, int, float]] = {}
    twice = set()
    for row in results.read(workdir) if workdir else ():
        if row.suite == settings.suite:
            value = (row.metric, row.examples, row.value)
            if found.setdefault(row.dataset, value) != value:
                twice.add(row.dataset)
    if twice:
        raise UserError(
            f"{workdir} has several values of {', '.join(sorted(twice))}: name the "
            "workdir of one model's evaluation."
        )
    return found


def rows(
    settings: Settings,
    model: Opened,
    summaries: Sequence[Summary],
    base: Reference,
    expert: Reference,
    config_hash: str,
) -> list[Row]:
    """Return a row for each dataset; its value is the mean over the prompts.

    Raises:
      UserError: a reference was found on other examples.
    """
    labels = settings.labels
    of_model = {
        "suite": settings.suite,
        "family": labels["family"] or model.family,
        "size": labels["size"] or _size(model.parameters),
        "params": model.parameters,
        "base": labels["base"],
        "method": labels["method"],
        "parameters": {},
        "K": labels["K"],
        "subset": labels["subset"],
        "seed": labels["seed"],
        "config_hash": config_hash,
    }
    found, faults = [], []
    for summary in summaries:
        record, value = summary.record, summary.main.value
        held_in = record["split"] == "held_in"
        merged = held_in and record["category"] in labels["subset"]
        itself = {"base": labels["method"] == "base", "expert": False}
        itself["expert"] = labels["method"] == "expert" and merged
        known = {}
        for kind, values in (("base", base), ("expert", expert if held_in else {})):
            metric, examples, other = values.get(record["dataset"], (None, 0, None))
            if metric and (metric, examples) != (record["metric"], summary.examples):
                faults.append(
                    f"{record['dataset']}: the {kind}'s value is {metric} on "
                    f"{examples} examples, this one {record['metric']} on "
                    f"{summary.examples}"
                )
            known[kind] = value if itself[kind] else other
        found.append(
            Row(
                **of_model,
                dataset=record["dataset"],
                category=record["category"],
                split=record["split"],
                metric=record["metric"],
                chance=record["chance"],
                merged=merged,
                value=value,
                value_of_expert=known["expert"],
                value_of_base=known["base"],
                normalised=normalise(value, known["expert" if held_in else "base"]),
                examples=summary.examples,
                wall_seconds=record["seconds"],
                git_revision=record["git_revision"],
            )
        )
    if faults:
        raise UserError("values that can't be compared:\n" + "\n".join(faults))
    return found


def _size(parameters: int) -> str:
    """Return a number of parameters as models are named: 37.8K, 135M, 8.03B."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return f"{parameters / 1e3:.3g}K"
