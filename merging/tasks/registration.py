"""A suite's datasets as seqio Tasks and its training data as Mixtures.

Imports TensorFlow. For a suite with prefix P this registers

- ``P_DATASET``: prompt and answer, with the metrics of a generated dataset; with
  several prompt templates ``P_DATASET_TEMPLATE``, and ``P_DATASET`` mixes them;
- ``…_score_eval``: a row per choice, for rank classification;
- ``P_pretrain``, ``P_instruct``: the training data of the two bases;
- ``P_category_CATEGORY``, ``P_multitask``: mixtures of held-in datasets.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from merging.tasks.backend import load_seqio
from merging.tasks.metrics import rank_target, seqio_metric
from merging.tasks.suites import Suite, ranked
from merging.tasks.texts import pairs, rank_classification
from merging.tasks.vocabulary import Vocabulary, tokenize

seqio = load_seqio()
import tensorflow as tf  # noqa: E402  (only after load_seqio has blindfolded it)

# Our pipelines have no Python control flow to convert, and looking for some takes a
# quarter of the time to read a suite.
as_written = tf.autograph.experimental.do_not_convert

_registered: dict[str, tuple[Suite, str]] = {}  # by prefix: a suite and its digest


def register(suite: Suite) -> None:
    """Register every Task and Mixture of a suite; a second time changes nothing.

    A suite of the same prefix with other settings takes the place of the first.
    """
    if _registered.get(suite.prefix) == (suite, suite.digest):
        return
    _remove(suite.prefix)
    for dataset in suite.datasets:
        _add_dataset(suite, dataset)
    for what in suite.source.corpora:
        _add_task(suite, suite.training(what), suite.source.data_source(what), [pairs])
    for what in (*suite.categories, "multitask"):
        if suite.members(what):  # none in a suite to evaluate only
            _add_mixture(suite, what)
    _registered[suite.prefix] = suite, suite.digest


def _remove(prefix: str) -> None:
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in [n for n in registry.names() if n.startswith(f"{prefix}_")]:
            registry.remove(name)


def _add_dataset(suite: Suite, dataset: Any) -> None:
    source, metric = suite.source, seqio_metric(dataset.metric)
    for prompt, evaluation in suite.evaluations(dataset.name).items():
        texts = source.render(dataset.name, prompt)
        records = source.data_source(dataset.name)
        name = suite.task(dataset.name, prompt)
        metrics = [] if ranked(dataset) else [metric]
        _add_task(suite, name, records, [*texts, pairs], metric_fns=metrics)
        if ranked(dataset):
            _add_task(
                suite,
                evaluation,
                records,
                [*texts, rank_classification],
                # A choice is scored without the end mark, as its probability is read
                # off the prompt's last position when it is one token.
                add_eos=False,
                postprocess_fn=rank_target,
                metric_fns=[metric],
            )
    if source.prompts(dataset.name) != ("",):
        _add_mixture(suite, dataset.name)


def _add_mixture(suite: Suite, what: str) -> None:
    name, weighted = suite.training(what), list(suite.mixture(what).items())
    # seqio would end with the first Task that runs out, and lose examples of the rest.
    sample = tf.data.Dataset.sample_from_datasets
    sample = functools.partial(sample, stop_on_empty_dataset=False)
    seqio.MixtureRegistry.add(name, weighted, sample_fn=sample)


def _add_task(
    suite: Suite,
    name: str,
    source: Any,
    texts: Sequence[Callable],
    *,
    add_eos: bool = True,
    **metrics: Any,
) -> None:
    tokens = Vocabulary(suite.tokenizer)
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
