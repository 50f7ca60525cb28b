"""What the records say, for a person: values with their intervals, and the prompts'."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation import bootstrap, store
from merging.evaluation.settings import Settings
from merging.runtime.text import Table
from merging.tasks.metrics import MEASURES


class Value(NamedTuple):
    """A metric of a dataset: its mean over the prompts, and how sure that is.

    Attributes:
      value: the mean.
      by_prompt: {wording: value}.
      resampled: [R], the mean for other examples.
      interval: of `resampled`.
    """

    value: float
    by_prompt: dict[str, float]
    resampled: np.ndarray
    interval: bootstrap.Interval

    @property
    def spread(self) -> float | None:
        """Standard deviation over the prompts; None with one."""
        values = list(self.by_prompt.values())
        return statistics.stdev(values) if len(values) > 1 else None


class Summary(NamedTuple):
    """A dataset's record (see `store`) and its metrics, its own first."""

    record: dict[str, Any]
    values: dict[str, Value]

    @property
    def main(self) -> Value:
        """The dataset's own metric."""
        return self.values[self.record["metric"]]

    @property
    def examples(self) -> int:
        """Examples under each wording, at most."""
        return max(prompt["examples"] for prompt in self.record["prompts"].values())


def summary(record: dict[str, Any], settings: Settings) -> Summary:
    """Return a record's metrics with their intervals."""
    metrics = next(iter(record["prompts"].values()))["counts"]
    options = {
        "resamples": settings.resamples,
        "seed": settings.bootstrap_seed,
        "level": settings.level,
    }
    return Summary(record, {m: value(record, m, **options) for m in metrics})


def value(
    record: dict[str, Any],
    metric: str,
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    level: float = bootstrap.LEVEL,
) -> Value:
    """Return a metric of a record with its interval."""
    prompts = record["prompts"]
    by_prompt = {name: prompt["values"][metric] for name, prompt in prompts.items()}
    drawn = bootstrap.resampled(
        [store.unpacked(prompt["counts"][metric]) for prompt in prompts.values()],
        MEASURES[metric].value,
        name=record["dataset"],
        resamples=resamples,
        seed=seed,
    )
    mean = statistics.fmean(by_prompt.values())
    return Value(mean, by_prompt, drawn, bootstrap.interval(drawn, level))


def table(summaries: Sequence[Summary], settings: Settings) -> Table:
    """Return the values by dataset, then the means of either split."""
    percent = f"{100 * settings.level:g} %"
    columns = ("dataset", "split", "metric", "value", f"{percent} from", "to")
    columns += ("prompts", "sd", "examples", "chance")
    lines = [
        line
        for summary in summaries
        for metric, found in summary.values.items()
        for line in [_line(summary, metric, found)]
    ]
    for split in ("held_in", "held_out"):
        members = [s.main for s in summaries if s.record["split"] == split]
        if len(members) > 1:
            drawn = np.mean([found.resampled for found in members], axis=0)
            low, high, _ = bootstrap.interval(drawn, settings.level)
            mean = statistics.fmean(found.value for found in members)
            blank = ("", None, None, None)
            lines.append(("mean", split, "", mean, low, high, *blank))
    return Table("evaluation", "Values by dataset", columns, tuple(lines))


def _line(summary: Summary, metric: str, found: Value) -> tuple:
    record = summary.record
    own = metric == record["metric"]
    name = (record["dataset"], record["split"]) if own else ("", "")
    values = (metric, found.value, found.interval.low, found.interval.high)
    rest = (len(found.by_prompt), found.spread, summary.examples)
    return (*name, *values, *rest, record["chance"] if own else None)


def notes(summaries: Sequence[Summary]) -> list[str]:
    """Return lines on cut prompts and on padding."""
    found = []
    for summary in summaries:
        cut = sum(p["truncated"] for p in summary.record["prompts"].values())
        if cut:
            found.append(
                f"{summary.record['dataset']}: {cut} prompts were longer than the "
                "model's context and lost their beginning."
            )
    padding = [summary.record["padding"] for summary in summaries]
    found.append(
        f"Padding took {min(padding):.0%} to {max(padding):.0%} of the batches' slots."
    )
    return found
