"""The metrics, plain Python, each in 0..1; seqio Tasks and our evaluation share them.

A metric takes the postprocessed targets and what the model made of them, and returns
``{name: value}``. seqio tells scoring from generating by the second parameter's name.
"""

import collections
import functools
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# ((example, choice), is it the right one, weight, tokens): the record that t5 uses.
RankTarget = tuple[tuple[int, int], bool, float, int]


def rank_target(
    text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """Postprocess for rank classification: a target becomes a ``RankTarget``."""
    if not is_target:
        return text
    index = tuple(int(i) for i in example["idx"])
    return index, bool(example["is_correct"]), 1.0, len(example["targets"])


def accuracy(targets: Sequence[RankTarget], scores: Sequence[float]) -> dict:
    """Share of examples whose likeliest choice is the right one.

    Ties go to the lowest choice. A NaN never wins: an example with nothing but NaN
    counts as wrong, so that a merge that broke the model scores 0 and not chance.
    """
    scores = np.asarray(scores, np.float64).tolist()
    best: dict[int, tuple[float, float, bool]] = {}
    for ((example, choice), correct, _, _), score in zip(targets, scores, strict=True):
        if math.isnan(score):
            entry = (-math.inf, -math.inf, False)
        else:
            entry = (score, -choice, correct)
        if example not in best or entry[:2] > best[example][:2]:
            best[example] = entry
    return {"accuracy": float(np.mean([correct for *_, correct in best.values()]))}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict:
    """Share of predictions equal to their target after SQuAD's normalisation.

    Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1.
    """
    return {"exact_match": _mean(_equal, targets, predictions)}


def f1(targets: Sequence[str], predictions: Sequence[str]) -> dict:
    """Mean F1 of the bags of words after SQuAD's normalisation.

    Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1. Two texts of which one has no
    words left score 1 if both have none, else 0.
    """
    return {"f1": _mean(_f1, targets, predictions)}


def rouge_l(targets: Sequence[str], predictions: Sequence[str]) -> dict:
    """Mean F-measure of the longest common subsequence, by the rouge-score library.

    Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 3.
    """
    return {"rouge_l": _mean(_rouge_l, targets, predictions)}


METRICS: dict[str, Callable[..., dict]] = {
    f.__name__: f for f in (accuracy, exact_match, f1, rouge_l)
}


def _mean(measure: Callable[[str, str], float], targets, predictions) -> float:
    pairs = zip(targets, predictions, strict=True)
    return float(np.mean([measure(target, text) for target, text in pairs]))


@functools.lru_cache(maxsize=1 << 16)
def _normalised(text: str) -> tuple[str, ...]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return tuple(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _equal(target: str, text: str) -> float:
    return float(_normalised(target) == _normalised(text))


def _f1(target: str, text: str) -> float:
    gold, said = _normalised(target), _normalised(text)
    if not gold or not said:
        return float(gold == said)
    shared = sum((collections.Counter(gold) & collections.Counter(said)).values())
    # Equal to 2PR / (P + R) with P = shared / |said| and R = shared / |gold|.
    return 2 * shared / (len(gold) + len(said))


# A sweep compares the same few targets with much the same predictions, model after
# model; the library's table is quadratic in the length.
@functools.lru_cache(maxsize=1 << 16)
def _rouge_l(target: str, text: str) -> float:
    return _rouge_scorer().score(target, text)["rougeL"].fmeasure


@functools.cache
def _rouge_scorer():
    # Imports nltk, a second or more, so only when a summary is scored.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"])
