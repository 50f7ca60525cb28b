"""A suite's datasets as seqio Tasks and its training data as Mixtures.

Imports TensorFlow. For a suite with prefix P this registers

- ``P_DATASET``: prompt and answer, with the metrics of a generated dataset;
- ``P_DATASET_score_eval``: a row per choice, for rank classification;
- ``P_pretrain``, ``P_instruct``: the training data of the two bases;
- ``P_category_CATEGORY``, ``P_multitask``: equal mixtures of held-in datasets.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

from merging.tasks.backend import load_seqio
from merging.tasks.faults import require_none
from merging.tasks.metrics import METRICS, rank_target
from merging.tasks.suites import SPLITS, Dataset, Suite
from merging.tasks.vocabulary import WordVocabulary

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
    vocabulary = WordVocabulary(suite.words)
    for dataset in suite.datasets:
        _add_pairs(suite, dataset, vocabulary)
        if dataset.metric == "accuracy":
            _add_choices(suite, dataset, vocabulary)
    for what in ("pretrain", "instruct"):
        _add_corpus(suite, what, vocabulary)
    for what in (*suite.categories, "multitask"):
        tasks = [suite.training(name) for name in suite.members(what)]
        seqio.MixtureRegistry.add(suite.training(what), tasks, default_rate=1.0)
    _registered[suite.prefix] = suite


def rank_classification(ds: tf.data.Dataset) -> tf.data.Dataset:
    """Turn an example with n choices into n rows, as t5's preprocessor of that name.

    Reads ``inputs``, ``choices`` [n], ``label`` and ``index``; gives ``inputs``,
    ``targets``, ``idx`` (example, choice) and ``is_correct``.
    """

    def expand(example):
        choices = example["choices"]
        n = tf.shape(choices)[0]
        order = tf.range(n)
        rows = {
            "inputs": tf.repeat(example["inputs"], n),
            "targets": choices,
            "idx": tf.stack([tf.repeat(example["index"], n), order], axis=1),
            "is_correct": order == example["label"],
        }
        return tf.data.Dataset.from_tensor_slices(rows)

    return ds.flat_map(expand)


def _remove(prefix: str) -> None:
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in [n for n in registry.names() if n.startswith(f"{prefix}_")]:
            registry.remove(name)


def _add_pairs(suite: Suite, dataset: Dataset, vocabulary: WordVocabulary) -> None:
    generated = dataset.metric != "accuracy"
    _add_task(
        suite.training(dataset.name),
        functools.partial(_pairs, functools.partial(_examples, suite, dataset)),
        {split: suite.examples(split) for split in SPLITS},
        vocabulary,
        metric_fns=[METRICS[dataset.metric]] if generated else [],
    )


def _add_choices(suite: Suite, dataset: Dataset, vocabulary: WordVocabulary) -> None:
    _add_task(
        suite.evaluation(dataset.name),
        functools.partial(_choices, functools.partial(_examples, suite, dataset)),
        {split: suite.examples(split) for split in SPLITS},
        vocabulary,
        # A choice is scored without the end mark, as its probability is read off the
        # prompt's last position when it is one token.
        add_eos=False,
        preprocessors=[rank_classification],
        postprocess_fn=rank_target,
        metric_fns=[METRICS[dataset.metric]],
    )


def _add_corpus(suite: Suite, what: str, vocabulary: WordVocabulary) -> None:
    counts = {
        "train": suite.documents if what == "pretrain" else suite.instructions,
        "validation": suite.validation_examples,
    }
    _add_task(
        suite.training(what),
        functools.partial(_pairs, functools.partial(_corpus, suite, what, counts)),
        counts,
        vocabulary,
    )


def _add_task(
    name: str,
    dataset_fn: Callable,
    counts: Mapping[str, int],
    vocabulary: WordVocabulary,
    *,
    add_eos: bool = True,
    preprocessors: Sequence[Callable] = (),
    **metrics,
) -> None:
    def source(split: str, shuffle_files: bool, seed: int | None = None):
        del shuffle_files, seed
        return dataset_fn(split)

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(source, list(counts), dict(counts)),
        preprocessors=[
            *preprocessors,
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=add_eos),
        },
        **metrics,
    )


def _pairs(read: Callable[[str], list[dict]], split: str) -> tf.data.Dataset:
    rows = read(split)
    columns = {k: [row[k] for row in rows] for k in ("inputs", "targets")}
    columns = {k: tf.constant(v, tf.string) for k, v in columns.items()}
    return tf.data.Dataset.from_tensor_slices(columns)


def _choices(read: Callable[[str], list[dict]], split: str) -> tf.data.Dataset:
    rows = read(split)
    columns = {
        "inputs": tf.constant([row["inputs"] for row in rows], tf.string),
        "choices": tf.ragged.constant([row["choices"] for row in rows], tf.string, 1),
        "label": tf.constant([row["label"] for row in rows], tf.int32),
        "index": tf.range(len(rows)),
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def _examples(suite: Suite, dataset: Dataset, split: str) -> list[dict]:
    count = suite.examples(split)
    rows = suite.module.examples(dataset.name, split, suite.world_seed, count)
    faults = _spelling(suite, rows)
    if dataset.metric == "accuracy":
        faults += _choice_faults(rows)
    require_none(faults, f"{dataset.name} ({split})")
    return rows


def _corpus(suite: Suite, what: str, counts: dict[str, int], split: str) -> list[dict]:
    # Validation is what follows the training texts in the same stream.
    total = sum(counts.values())
    if what == "pretrain":
        texts = suite.module.documents(suite.world_seed, total)
        rows = [{"inputs": "", "targets": text} for text in texts]
    else:
        rows = suite.module.instructions(suite.world_seed, total)
    require_none(_spelling(suite, rows), what)
    edge = counts["train"]
    return rows[:edge] if split == "train" else rows[edge:]


def _spelling(suite: Suite, rows: list[dict]) -> list[str]:
    faults = []
    for i, row in enumerate(rows):
        texts = [row["inputs"], row["targets"], *row.get("choices", ())]
        for word in dict.fromkeys(word for _, word in suite.words.unknown(texts)):
            faults.append(f"example {i}: the word {word!r} is not in the vocabulary")
    return faults


def _choice_faults(rows: list[dict]) -> list[str]:
    faults = []
    for i, row in enumerate(rows):
        n = len(row["choices"])
        if n < 2:
            faults.append(f"example {i}: {n} choices, a rank task needs 2 or more")
        elif not 0 <= row["label"] < n:
            faults.append(f"example {i}: label {row['label']} of {n} choices")
    return faults
