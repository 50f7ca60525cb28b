"""Datasets read, cut to fit the model, scored, and boiled down to what is kept."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging import evaluation, tasks
from merging.evaluation import EvalSet, store
from merging.evaluation.model import Bound, Opened, context
from merging.evaluation.settings import Settings
from merging.tasks import cache
from merging.tasks.metrics import MEASURES, METRICS


class Work(NamedTuple):
    """A dataset to evaluate: a set for each of its wordings.

    Attributes:
      dataset: the suite's record of it.
      metrics: those to find, the dataset's own first.
      eval_sets: its sets, cut to the model's context.
      truncated: examples whose prompt was cut, for each set.
    """

    dataset: Any
    metrics: tuple[str, ...]
    eval_sets: tuple[EvalSet, ...]
    truncated: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Tokens to compute, roughly."""
        made = sum(s.max_new_tokens * s.examples for s in self.eval_sets)
        return float(evaluation.lengths(self.eval_sets).sum() + made)

    @property
    def warning(self) -> str:
        """What a reader of the values must know, in a line; "" if there is nothing."""
        cut, every = sum(self.truncated), sum(s.examples for s in self.eval_sets)
        if not cut:
            return ""
        return (
            f"{self.dataset.name}: {cut} of {every} prompts were longer than the "
            "model's context and lost their beginning."
        )


def key(settings: Settings, model: Opened, suite: tasks.Suite, name: str) -> str:
    """Return a hash of all that a dataset's values depend on."""
    return cache.key(
        *(model.identity, suite.digest, name, settings.split, settings.count),
        *(settings.measured(suite, name), context(settings, model), settings.dtype),
    )


def read_work(
    settings: Settings,
    model: Opened,
    suite: tasks.Suite,
    name: str,
    cache_dir: Path,
) -> Work:
    """Read a dataset in all its wordings.

    Raises:
      UserError: as `tasks.load_suite` and `evaluation.fit`.
    """
    metrics = settings.measured(suite, name)
    sets, truncated = [], []
    loaded = tasks.load_suite(
        suite,
        settings.split,
        settings.count,
        datasets=[name],
        cache_dir=cache_dir,
        fewer=True,
    )
    room, vocabulary = context(settings, model), model.config.vocab_size
    for one in loaded:
        chosen = tuple(METRICS[metric] for metric in metrics)
        one = dataclasses.replace(one, metrics=chosen)
        fitted, cut = evaluation.fit(one, room, vocabulary)
        sets.append(fitted)
        truncated.append(cut)
    return Work(suite.dataset(name), metrics, tuple(sets), tuple(truncated))


def evaluated(
    work: Work,
    bound: Bound,
    batch_size: int,
    shapes: evaluation.Shapes,
    tick: Callable[[float], None],
) -> dict[str, Any]:
    """Return what a model scores on a dataset, as a JSON record (see `store`).

    Args:
      work: the dataset.
      bound: the model.
      batch_size: rows per call.
      shapes: what to pad rows to.
      tick: told the part of `Work.cost` that a batch was; what it raises ends it.
    """
    prepared = evaluation.prepare(
        work.eval_sets,
        batch_size=batch_size,
        sharding=bound.sharding,
        shapes=shapes,
    )
    share = work.cost / prepared.batches
    outputs = evaluation.outputs(prepared, bound.predict, lambda: tick(share))
    prompts = {}
    for one, output, cut in zip(work.eval_sets, outputs, work.truncated, strict=True):
        counts = evaluation.counts(one, output)
        prompts[one.prompt] = {
            "examples": one.examples,
            "truncated": cut,
            "answers": _digest(one),
            "values": {
                metric: MEASURES[metric].value(table.sum(axis=0), len(table))
                for metric, table in counts.items()
            },
            "counts": {m: store.packed(table) for m, table in counts.items()},
        }
    of = work.dataset
    return {
        "dataset": of.name,
        "category": of.category,
        "split": of.split,
        "metric": of.metric,
        "chance": of.chance,
        "padding": round(prepared.padding, 4),
        "prompts": prompts,
    }


def _digest(one: EvalSet) -> str:
    """Return a hash of the right answers: models are compared on the same ones."""
    # Without the number of tokens, which is the tokenizer's and not the example's.
    facts = [
        [*target[0], bool(target[1]), target[4]] if one.ranked else target
        for target in one.targets
    ]
    facts = [one.examples, np.asarray(one.groups).tolist(), facts]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
