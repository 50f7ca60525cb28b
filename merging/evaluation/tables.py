"""What the scores say, for a person: values with their intervals, by dataset."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merging.evaluation import bootstrap
from merging.evaluation.scores import DatasetScore
from merging.runtime.text import Table
from merging.tasks.metrics import METRICS


class Value(NamedTuple):
    """A metric of a dataset, or its mean over several, and how sure that is.

    Attributes:
      value: the mean over the prompt templates.
      by_template: {prompt template: value}.
      resampled: [R], `value` for other examples.
      interval: of `resampled`.
    """

    value: float
    by_template: dict[str, float]
    resampled: np.ndarray
    interval: bootstrap.Interval

    @property
    def spread(self) -> float | None:
        """Standard deviation over the prompt templates; None with one."""
        values = list(self.by_template.values())
        return statistics.stdev(values) if len(values) > 1 else None


def value(
    score: DatasetScore, metric: str, how: bootstrap.Options = bootstrap.DEFAULT
) -> Value:
    """Return a metric of a dataset with its interval."""
    each = score.templates
    by_template = {name: one.values[metric] for name, one in each.items()}
    resampled = bootstrap.resampled(
        [one.counts[metric] for one in each.values()],
        METRICS[metric].value,
        name=score.dataset,
        how=how,
    )
    interval = bootstrap.interval(resampled, how.level)
    mean = statistics.fmean(by_template.values())
    return Value(mean, by_template, resampled, interval)


def mean(members: Sequence[Value], level: float = bootstrap.DEFAULT.level) -> Value:
    """Return the mean of several datasets' values, which were resampled alike."""
    resampled = np.mean([member.resampled for member in members], axis=0)
    middle = statistics.fmean(member.value for member in members)
    return Value(middle, {}, resampled, bootstrap.interval(resampled, level))


def table(
    scores: Sequence[DatasetScore], found: Sequence[dict[str, Value]], level: float
) -> Table:
    """Return the values by dataset, then the means of either split.

    Args:
      scores: of the datasets.
      found: {metric: value} of each, its own metric first.
      level: of the intervals.
    """
    percent = f"{100 * level:g} %"
    columns = ("dataset", "split", "metric", "value", f"{percent} from", "to")
    columns += ("prompts", "sd", "examples", "chance")
    lines = [
        _line(score, metric, one)
        for score, metrics in zip(scores, found, strict=True)
        for metric, one in metrics.items()
    ]
    for split in ("held_in", "held_out"):
        pairs = zip(scores, found, strict=True)
        members = [metrics[s.metric] for s, metrics in pairs if s.split == split]
        if len(members) > 1:
            whole = mean(members, level)
            blank = ("", None, None, None)
            lines.append(("mean", split, "", whole.value, *whole.interval[:2], *blank))
    return Table("evaluation", "Values by dataset", columns, tuple(lines))


def _line(score: DatasetScore, metric: str, found: Value) -> tuple:
    own = metric == score.metric
    name = (score.dataset, score.split) if own else ("", "")
    numbers = (metric, found.value, *found.interval[:2])
    rest = (len(found.by_template), found.spread, score.examples)
    return (*name, *numbers, *rest, score.chance if own else None)


def notes(scores: Sequence[DatasetScore]) -> list[str]:
    """Return lines on truncated prompts and on padding."""
    found = []
    for score in scores:
        prompts = sum(one.examples for one in score.templates.values())
        if score.truncated:
            found.append(truncation(score.dataset, score.truncated, prompts))
    padding = [score.padding for score in scores]
    found.append(
        f"Padding took {min(padding):.0%} to {max(padding):.0%} of the batches' slots."
    )
    return found


def truncation(dataset: str, truncated: int, prompts: int) -> str:
    """Return a line on a dataset's truncated prompts."""
    return (
        f"{dataset}: {truncated} of {prompts} prompts were longer than the model's "
        "context and lost their beginning."
    )
