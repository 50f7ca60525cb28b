"""Two models on the same examples: what they differ by, and how sure that is."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from merging.evaluation import bootstrap, store
from merging.evaluation.tables import Value, value
from merging.runtime.errors import UserError
from merging.runtime.text import Table


def compared(one: Path, other: Path) -> Table:
    """Return the table of two workdirs: values, differences, their paired intervals.

    Raises:
      UserError: a workdir without a finished evaluation, or no dataset of which both
        answered the same examples.
    """
    (_, ours), (_, theirs) = store.present(one), store.present(other)
    theirs = {record["dataset"]: record for record in theirs}
    lines, unlike, splits = [], [], {}
    for record in ours:
        name = record["dataset"]
        if name not in theirs:
            continue
        if _asked(record) != _asked(theirs[name]):
            unlike.append(name)
            continue
        a, b = (value(r, record["metric"]) for r in (record, theirs[name]))
        lines.append(_line(name, record["metric"], a, b))
        splits.setdefault(record["split"], []).append((a, b))
    if not lines:
        reason = f"other examples of {', '.join(unlike)}" if unlike else "no dataset"
        raise UserError(f"{one} and {other} cannot be compared: they share {reason}.")
    for split, pairs in splits.items():
        if len(pairs) > 1:
            means = [_mean([pair[side] for pair in pairs]) for side in (0, 1)]
            lines.append(_line(f"mean of {split}", "", *means))
    percent = f"{100 * bootstrap.LEVEL:g} %"
    columns = ("dataset", "metric", "A", "B", "B - A", f"{percent} from", "to", "sure")
    title = f"A: {one}, B: {other}"
    if unlike:
        title += f"; other examples, left out: {', '.join(unlike)}"
    return Table("comparison", title, columns, tuple(lines))


def _asked(record: dict[str, Any]) -> dict[str, tuple]:
    """Return what identifies the examples under each wording, and the metric."""
    return {
        name: (record["metric"], prompt["examples"], prompt["answers"])
        for name, prompt in record["prompts"].items()
    }


def _mean(values: list[Value]) -> Value:
    drawn = np.mean([found.resampled for found in values], axis=0)
    mean = statistics.fmean(found.value for found in values)
    return Value(mean, {}, drawn, bootstrap.interval(drawn))


def _line(name: str, metric: str, a: Value, b: Value) -> tuple:
    # Both were drawn from the same examples, resample by resample.
    low, high, _ = bootstrap.interval(b.resampled - a.resampled)
    sure = "yes" if low > 0 or high < 0 else "no"
    return (name, metric, a.value, b.value, b.value - a.value, low, high, sure)
