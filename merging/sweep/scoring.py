"""What a sweep's models score, by the one evaluator, and their result rows."""

import functools
import itertools
from collections.abc import Collection, Mapping
from typing import Any

from jax.sharding import Mesh

from merging import evaluation, models, tasks
from merging.evaluation import DatasetScore, ModelLabels, Record, job
from merging.runtime import sharding
from merging.runtime.results import Row
from merging.runtime.storage import Folder
from merging.sweep.experiment import Experiment


def scores(
    experiment: Experiment,
    decoder: models.DecoderConfig,
    params: models.Params,
    split: str,
    datasets: Collection[str],
    data_dir: Folder,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Return {dataset: value} of a model; arguments as `scored`."""
    found = scored(experiment, decoder, params, split, datasets, data_dir, mesh)
    return {score.dataset: score.value for score in found}


def tested(
    experiment: Experiment,
    decoder: models.DecoderConfig,
    params: models.Params,
    datasets: Collection[str],
    data_dir: Folder,
    mesh: Mesh | None = None,
) -> dict[str, dict[str, Any]]:
    """Return what a step's output holds of its test; arguments as `scored`.

    "test" is {dataset: value}, and "targets" {dataset: [log p of the right answers,
    their tokens]} where they were scored.
    """
    found = scored(experiment, decoder, params, "test", datasets, data_dir, mesh)
    return {
        "test": {score.dataset: score.value for score in found},
        "targets": {
            score.dataset: [score.log_p, score.tokens]
            for score in found
            if score.log_p is not None
        },
    }


def scored(
    experiment: Experiment,
    decoder: models.DecoderConfig,
    params: models.Params,
    split: str,
    datasets: Collection[str],
    data_dir: Folder,
    mesh: Mesh | None = None,
) -> list[DatasetScore]:
    """Return a model's scores on some of the suite's datasets.

    Args:
      experiment: whose suite.
      decoder: the model; prompts are truncated to its context.
      params: its parameters.
      split: "validation" or "test".
      datasets: names.
      data_dir: where the suite's rows are kept.
      mesh: where the parameters are, to split the rows over it.

    Raises:
      Preempted: it was asked to stop, which is looked for after every batch.
    """
    asked = _requests(
        *(experiment.suite, split, frozenset(datasets)),
        *(decoder.max_length, decoder.vocab_size, data_dir),
    )
    calls = models.predictor(decoder, mesh)
    where = None
    if mesh is None:
        params = sharding.settled(params)
    else:
        where = sharding.batch_sharding(mesh)
    predictor = models.Predictor(*(functools.partial(call, params) for call in calls))
    return evaluation.evaluate(
        asked,
        predictor,
        sharding=where,
        tick=lambda tokens: job.raise_if_preempted(),
    )


def examples(
    experiment: Experiment,
    decoder: models.DecoderConfig,
    split: str,
    datasets: Collection[str],
    data_dir: Folder,
) -> dict[str, int]:
    """Return {dataset: number of examples}; arguments as `scores`."""
    asked = _requests(
        *(experiment.suite, split, frozenset(datasets)),
        *(decoder.max_length, decoder.vocab_size, data_dir),
    )
    return {one.dataset.name: one.eval_set.examples for one in asked.sets}


# A worker asks many models the same: each dataset is read once, and each choice of
# datasets cut into batches once.
@functools.lru_cache(maxsize=64)
def _requests(
    suite: tasks.Suite,
    split: str,
    datasets: frozenset[str],
    context: int,
    vocab_size: int,
    data_dir: Folder,
) -> evaluation.Requests:
    names = [of.name for of in suite.datasets if of.name in datasets]
    each = (
        _dataset_requests(suite, split, name, context, vocab_size, data_dir).sets
        for name in names
    )
    return evaluation.Requests(tuple(itertools.chain(*each)))


@functools.lru_cache(maxsize=256)
def _dataset_requests(
    suite: tasks.Suite,
    split: str,
    dataset: str,
    context: int,
    vocab_size: int,
    data_dir: Folder,
) -> evaluation.Requests:
    return evaluation.requests(
        suite,
        split,
        datasets=[dataset],
        references=split == "test",  # for the rows; on validation only values count
        context=context,
        vocab_size=vocab_size,
        cache_dir=data_dir,
    )


def rows(
    suite: tasks.Suite,
    model: ModelLabels,
    values: Mapping[str, float],
    output: Mapping[str, Any],
    targets: Mapping[str, Any],
    *,
    base: Mapping[str, float],
    experts: Mapping[str, float],
    config_hash: str,
) -> list[Row]:
    """Return a model's result rows, in the suite's order.

    Args:
      suite: what it was tested on.
      model: what it is.
      values: {dataset: value} of its test.
      output: of the step that it comes from.
      targets: {dataset: [log p of the right answers, their tokens]}, where known.
      base, experts: {dataset: value} of its base, and of each dataset's own expert.
      config_hash: the sweep's.
    """
    records = [
        Record(
            DatasetScore(
                *(of.name, of.category, of.split, of.metric, of.chance),
                value=values[of.name],
                examples=output["examples"][of.name],
                log_p=targets.get(of.name, (None, None))[0],
                tokens=targets.get(of.name, (None, None))[1],
            ),
            output["wall_seconds"],
            output["git_revision"],
        )
        for of in suite.datasets
        if of.name in values
    ]
    return evaluation.rows(
        records, model, base=base, expert=experts, config_hash=config_hash
    )
