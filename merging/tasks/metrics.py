"""The metrics, plain Python, each in 0..1; seqio Tasks and our evaluation share them.

A metric turns what a model made of a dataset into counts, example by example, and sums
of counts into a value: enough for the value itself, for a bootstrap over examples, and
for comparing two models on the same examples. `METRICS` has them by name.
"""

import collections
import functools
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# ((example, choice), is it the right one, weight, tokens, characters): the record that
# t5 uses, and the length of the choice as a person reads it.
RankTarget = tuple[tuple[int, int], bool, float, int, int]


class Metric(NamedTuple):
    """How a metric is found.

    Attributes:
      ranked: it judges log-likelihoods of choices; otherwise, generated texts.
      counts: ``(targets, outputs) -> [N, k]``, what each example adds.
      value: ``(sums [k], N) -> float`` in 0..1.
      unconditional: a choice's score is what its prompt adds to log p.
    """

    ranked: bool
    counts: Callable[[Sequence[Any], Sequence[Any]], np.ndarray]
    value: Callable[[np.ndarray, int], float]
    unconditional: bool = False


@functools.cache
def seqio_metric(name: str) -> Callable[..., dict[str, float]]:
    """Return a metric as seqio wants it: ``(targets, outputs) -> {name: value}``.

    seqio tells scoring from generating by the name of the second parameter.
    """

    def found(targets: Sequence[Any], outputs: Sequence[Any]) -> dict[str, float]:
        counts = METRICS[name].counts(targets, outputs)
        return {name: METRICS[name].value(counts.sum(axis=0), len(counts))}

    if METRICS[name].ranked:

        def metric(targets, scores):
            return found(targets, scores)
    else:

        def metric(targets, predictions):
            return found(targets, predictions)

    metric.__name__ = name
    return metric


def rank_target(
    text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """Postprocess for rank classification: a target becomes a ``RankTarget``."""
    if not is_target:
        return text
    index = tuple(int(i) for i in example["idx"])
    tokens = len(example["targets"])
    return index, bool(example["is_correct"]), 1.0, tokens, len(text)


def _mean(sums: np.ndarray, examples: int) -> float:
    return float(sums[0]) / examples


def _right(targets, scores, lengths=None) -> np.ndarray:
    """Return [N, 1], whether the likeliest choice is right, examples ascending.

    Ties go to the lowest choice. A NaN never wins: an example with nothing but NaN
    counts as wrong, so that a merge that broke the model scores 0 and not chance.
    """
    scores = np.asarray(scores, np.float64)
    if lengths is not None:
        scores = scores / lengths
    best: dict[int, tuple[float, float, bool]] = {}
    for ((example, choice), correct, *_), score in zip(
        targets, scores.tolist(), strict=True
    ):
        if math.isnan(score):
            entry = (-math.inf, -math.inf, False)
        else:
            entry = (score, -choice, correct)
        if example not in best or entry[:2] > best[example][:2]:
            best[example] = entry
    return np.array([[best[example][2]] for example in sorted(best)], np.float64)


def _right_per_token(targets, scores) -> np.ndarray:
    return _right(targets, scores, [tokens for *_, tokens, _ in targets])


def _right_per_character(targets, scores) -> np.ndarray:
    return _right(targets, scores, [max(length, 1) for *_, length in targets])


def _each(compare: Callable[[str, str], float]) -> Metric:
    def counts(targets, predictions):
        pairs = zip(targets, predictions, strict=True)
        return np.array([[compare(target, text)] for target, text in pairs])

    return Metric(False, counts, _mean)


@functools.lru_cache(maxsize=1 << 16)
def _normalised(text: str) -> tuple[str, ...]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return tuple(re.sub(r"\b(a|an|the)\b", " ", text).split())


# Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1, for this and F1.
def _equal(target: str, text: str) -> float:
    return float(_normalised(target) == _normalised(text))


def _f1(target: str, text: str) -> float:
    """F1 of the bags of words; where a text has none left, whether both have none."""
    gold, said = _normalised(target), _normalised(text)
    if not gold or not said:
        return float(gold == said)
    shared = sum((collections.Counter(gold) & collections.Counter(said)).values())
    # Equal to 2PR / (P + R) with P = shared / |said| and R = shared / |gold|.
    return 2 * shared / (len(gold) + len(said))


# A sweep compares the same few targets with much the same predictions, model after
# model; the library's table is quadratic in the length.
@functools.lru_cache(maxsize=1 << 16)
def _rouge(kind: str, target: str, text: str) -> float:
    return _rouge_scorer(kind).score(target, text)[kind].fmeasure


@functools.cache
def _rouge_scorer(kind: str):
    # Imports nltk, a second or more, so only when a summary is scored.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([kind])


@functools.cache
def _sacrebleu():
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _bleu_counts(targets, predictions) -> np.ndarray:
    """Return [N, 10]: matches and totals of n-grams for n = 1..4, and both lengths."""
    scores = (
        _sacrebleu().sentence_score(text, [target])
        for target, text in zip(targets, predictions, strict=True)
    )
    return np.array(
        [[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], np.float64
    )


def _bleu(sums: np.ndarray, examples: int) -> float:
    del examples
    counts = [round(float(count)) for count in sums]
    # What the library's corpus_bleu does by default.
    found = _sacrebleu().compute_bleu(
        counts[:4], counts[4:8], *counts[8:], smooth_method="exp"
    )
    return found.score / 100


METRICS: dict[str, Metric] = {
    # Share of examples whose likeliest choice is the right one.
    "accuracy": Metric(True, _right, _mean),
    # By log-likelihood per character: lm-evaluation-harness's acc_norm.
    "accuracy_norm": Metric(True, _right_per_character, _mean),
    # By log-likelihood per token: Brown et al. 2020, arXiv 2005.14165.
    "accuracy_per_token": Metric(True, _right_per_token, _mean),
    # By log p(choice | prompt) − log p(choice), the latter behind the opening token
    # alone: Brown et al. 2020, section 2.4; the harness's acc_mutual_info.
    "accuracy_unconditional": Metric(True, _right, _mean, unconditional=True),
    # Share of texts equal to their target after SQuAD's normalisation.
    "exact_match": _each(_equal),
    # Mean F1 of the bags of words after SQuAD's normalisation.
    "f1": _each(_f1),
    # Mean F-measures of shared words, of neighbouring pairs and of the longest common
    # subsequence, by the rouge-score library without a stemmer: Lin 2004, "ROUGE: a
    # package for automatic evaluation of summaries", sections 2 and 3.
    "rouge_1": _each(functools.partial(_rouge, "rouge1")),
    "rouge_2": _each(functools.partial(_rouge, "rouge2")),
    "rouge_l": _each(functools.partial(_rouge, "rougeL")),
    # Of the corpus, by the sacrebleu library with its defaults, over 100: Papineni et
    # al. 2002; Post 2018, arXiv 1804.08771.
    "bleu": Metric(False, _bleu_counts, _bleu),
}
