"""A suite's datasets as seqio Tasks and its training data as Mixtures.

Imports TensorFlow. For a suite with prefix P this registers

- ``P_DATASET``: prompt and answer, with the metrics of a generated dataset; with
  several wordings ``P_DATASET_WORDING``, and ``P_DATASET`` mixes them;
- ``…_score_eval``: a row per choice, for rank classification;
- ``P_pretrain``, ``P_instruct``: the training data of the two bases;
- ``P_category_CATEGORY``, ``P_multitask``: mixtures of held-in datasets.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from merging.tasks.backend import load_seqio
from merging.tasks.metrics import METRICS, rank_target
from merging.tasks.suites import Dataset, Suite, ranked
from merging.tasks.texts import pairs, rank_classification
from merging.tasks.vocabulary import tokenize, vocabulary

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)

# Our pipelines have no Python control flow to convert, and looking for some takes a
# quarter of the time to read a suite.
as_written = tf.autograph.experimental.do_not_convert

_registered: dict[str, Suite] = {}


def register(suite: Suite) -> None:
    """Register every Task and Mixture of a suite; a second time changes nothing.

    A suite of the same prefix with other settings takes the place of the first.
    """
    if _registered.get(suite.prefix) == suite:
        return
    _remove(suite.prefix)
    for dataset in suite.datasets:
        _add_dataset(suite, dataset)
    for what in suite.material.corpora:
        _add_task(
            suite, suite.training(what), suite.material.data_source(what), [pairs]
        )
    for what in (*suite.categories, "multitask"):
        weighted = [w for name in suite.members(what) for w in _weights(suite, name)]
        if not weighted:  # a suite to evaluate only
            continue
        _add_mixture(suite.training(what), weighted)
    _registered[suite.prefix] = suite


def _remove(prefix: str) -> None:
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in [n for n in registry.names() if n.startswith(f"{prefix}_")]:
            registry.remove(name)


def _add_dataset(suite: Suite, dataset: Dataset) -> None:
    material, metric = suite.material, METRICS[dataset.metric]
    for prompt, evaluation in suite.evaluations(dataset.name).items():
        texts = list(material.render(dataset.name, prompt))
        source = material.data_source(dataset.name)
        name = suite.task(dataset.name, prompt)
        metrics = [] if ranked(dataset) else [metric]
        _add_task(suite, name, source, [*texts, pairs], metric_fns=metrics)
        if ranked(dataset):
            _add_task(
                suite,
                evaluation,
                source,
                [*texts, rank_classification],
                # A choice is scored without the end mark, as its probability is read
                # off the prompt's last position when it is one token.
                add_eos=False,
                postprocess_fn=rank_target,
                metric_fns=[metric],
            )
    if material.prompts(dataset.name) != ("",):
        name = suite.training(dataset.name)
        _add_mixture(name, _weights(suite, dataset.name))


def _add_mixture(name: str, weighted: list[tuple[str, float]]) -> None:
    # seqio would end with the first Task that runs out, and lose examples of the rest.
    sample = tf.data.Dataset.sample_from_datasets
    sample = functools.partial(sample, stop_on_empty_dataset=False)
    seqio.MixtureRegistry.add(name, weighted, sample_fn=sample)


def _weights(suite: Suite, dataset: str) -> list[tuple[str, float]]:
    """Return the Tasks of a dataset's wordings with their weights in a mixture."""
    return [
        (suite.task(dataset, prompt), suite.material.rate(dataset, prompt))
        for prompt in suite.material.prompts(dataset)
    ]


def _add_task(
    suite: Suite,
    name: str,
    source: Any,
    texts: Sequence[Callable],
    *,
    add_eos: bool = True,
    **metrics: Any,
) -> None:
    tokens = vocabulary(suite.tokenizer)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *texts,
            tokenize(suite.tokenizer),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            "inputs": seqio.Feature(tokens, add_eos=False),
            "targets": seqio.Feature(tokens, add_eos=add_eos),
        },
        **metrics,
    )
