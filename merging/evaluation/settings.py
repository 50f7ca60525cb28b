"""What an evaluation's config says, checked before anything is read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from merging import tasks
from merging.runtime.errors import UserError, nearest
from merging.runtime.results import BASELINES, BASES
from merging.tasks.metrics import MEASURES


@dataclasses.dataclass(frozen=True)
class Settings:
    """An evaluation.

    Attributes:
      checkpoint: folder of the model, with its config.json.
      tokenizer: folder of its tokenizer; "" for the checkpoint's own.
      suite: name of the suite.
      suite_settings: those of `tasks.suite`, without the tokenizer.
      datasets: names; all of the suite's if empty.
      split: "train", "validation" or "test".
      count: the first examples of each dataset; None for all.
      metrics: to find beside each dataset's own, where they fit its kind.
      batch_size: rows per call.
      context: the most tokens the model is given; None for what its config says.
      dtype: of the parameters and activations; None for the checkpoint's.
      mesh: axes and sizes.
      resamples, level, bootstrap_seed: of the intervals.
      labels: fields of the result rows.
      base_results, expert_results: workdirs whose values the rows are held against.
    """

    checkpoint: str
    tokenizer: str
    suite: str
    suite_settings: Mapping[str, Any]
    datasets: tuple[str, ...]
    split: str
    count: int | None
    metrics: tuple[str, ...]
    batch_size: int
    context: int | None
    dtype: str | None
    mesh: Mapping[str, int]
    resamples: int
    level: float
    bootstrap_seed: int
    labels: Mapping[str, Any]
    base_results: str
    expert_results: str

    def names(self, suite: tasks.Suite) -> list[str]:
        """Return the datasets to evaluate, in the suite's order."""
        for name in self.datasets:
            suite.dataset(name)
        every = [d.name for d in suite.datasets]
        return [name for name in every if not self.datasets or name in self.datasets]

    def measured(self, suite: tasks.Suite, dataset: str) -> tuple[str, ...]:
        """Return the metrics of a dataset: its own, then those asked for that fit."""
        own = suite.dataset(dataset).metric
        fitting = [m for m in self.metrics if _same_kind(m, own) and m != own]
        return (own, *dict.fromkeys(fitting))


def read(config: Any) -> Settings:
    """Return the settings of a config (see `configs/evaluate/`).

    Raises:
      UserError: what can't be, all of it.
    """
    suite = dict(config.suite)
    name = suite.pop("name")
    faults = _faults(config)
    if faults:
        raise UserError("\n".join(faults))
    return Settings(
        checkpoint=config.checkpoint,
        tokenizer=config.tokenizer,
        suite=name,
        suite_settings=suite,
        datasets=tuple(config.datasets),
        split=config.split,
        count=config.count or None,
        metrics=tuple(config.metrics),
        batch_size=config.batch_size,
        context=config.context or None,
        dtype=config.dtype or None,
        mesh=dict(config.mesh),
        resamples=config.bootstrap.resamples,
        level=config.bootstrap.level,
        bootstrap_seed=config.bootstrap.seed,
        labels=dict(config.labels) | {"subset": tuple(config.labels.subset)},
        base_results=config.base_results,
        expert_results=config.expert_results,
    )


def _faults(config: Any) -> list[str]:
    faults = []
    if not config.checkpoint:
        faults.append("no checkpoint to evaluate: --config.checkpoint=DIR")
    for metric in config.metrics:
        if metric not in MEASURES:
            faults.append(str(nearest("metric", metric, MEASURES)))
    for key, least in (("count", 0), ("batch_size", 1), ("context", 0)):
        if config[key] < least:
            faults.append(f"{key} = {config[key]} must be {least} or more")
    if config.bootstrap.resamples < 2:
        faults.append("bootstrap.resamples must be 2 or more")
    if not 0 < config.bootstrap.level < 1:
        faults.append("bootstrap.level must lie between 0 and 1")
    return faults + _label_faults(config.labels)


def _label_faults(labels: Any) -> list[str]:
    faults = []
    if labels.base not in BASES:
        faults.append(str(nearest("labels.base", labels.base, BASES)))
    if labels.method not in BASELINES and labels.K != len(labels.subset):
        faults.append(
            f"labels.K is {labels.K}, but labels.subset names {len(labels.subset)} "
            "categories: a merge of K experts names theirs"
        )
    return faults


def _same_kind(one: str, other: str) -> bool:
    return MEASURES[one].ranked == MEASURES[other].ranked
