"""The one evaluator: requests and a model → a score for each dataset."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from merging.evaluation.batches import prepare
from merging.evaluation.predictions import Prediction, Predictor, predict
from merging.evaluation.requests import Requests, TemplateRequests
from merging.tasks.metrics import METRICS


@dataclasses.dataclass(frozen=True, eq=False)
class TemplateScore:
    """A model's score on N examples of a dataset under one prompt template.

    Attributes:
      examples: N.
      truncated: those whose prompt lost its beginning to the context.
      answers: a hash of the right answers: scores with equal ones compare.
      values: {metric: value in 0..1}, the dataset's own metric first.
      counts: {metric: float32 [N, k]}, what each example adds (see
        `tasks.metrics.METRICS`).
      log_p: sum of the right answers' log-likelihoods, in nats; None where texts are
        generated and their references were not asked for (`requests.requests`).
      tokens: of these answers.
      outputs: what the model made of each row of the evaluation set: float32 [M], log p
        of each choice, in nats, or M texts; None where a score is made without.
    """

    examples: int
    truncated: int
    answers: str
    values: Mapping[str, float]
    counts: Mapping[str, np.ndarray]
    log_p: float | None = None
    tokens: int | None = None
    outputs: np.ndarray | Sequence[str] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetScore:
    """A model's score on a dataset.

    Attributes:
      dataset, category, split, metric, chance: the dataset's facts.
      value: of its metric, in 0..1: the mean over the prompt templates.
      examples: under each prompt template, at most.
      truncated: prompts that lost their beginning to the context, under all templates.
      templates: {name of the prompt template: its score}.
      padding: share of the slots without a token, in the batches of its rows.
      log_p, tokens: sums over the prompt templates, as of a `TemplateScore`.
    """

    dataset: str
    category: str
    split: str
    metric: str
    chance: float
    value: float
    examples: int
    truncated: int = 0
    templates: Mapping[str, TemplateScore] = dataclasses.field(default_factory=dict)
    padding: float = 0.0
    log_p: float | None = None
    tokens: int | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were found, the dataset's own first."""
        return tuple(next(iter(self.templates.values())).values)

    @property
    def asked(self) -> dict[str, tuple]:
        """What identifies the examples under each template, and the metric.

        Scores with equal ones compare.
        """
        return {
            name: (self.metric, one.examples, one.answers)
            for name, one in self.templates.items()
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A dataset's score, the seconds that it took, and the code that found it."""

    score: DatasetScore
    seconds: float
    git_revision: str


def evaluate(
    requests: Requests,
    predictor: Predictor,
    *,
    datasets: Iterable[str] | None = None,
    batch_size: int = 0,
    sharding: Any = None,
    compile_cost: float | None = None,
    tick: Callable[[float], None] | None = None,
) -> list[DatasetScore]:
    """Return a model's scores, dataset by dataset.

    Rank classification takes the choice of the highest summed log-likelihood, ties
    the first; generation is greedy. The values depend neither on the batch size nor
    on the order or company of the datasets.

    Args:
      requests: what to ask.
      predictor: the model.
      datasets, batch_size, sharding, compile_cost: what to batch, and how: see
        `prepare`.
      tick: called after every batch with its tokens; what it raises ends the work.

    Raises:
      UserError: as `prepare`.
    """
    batches = prepare(
        requests,
        datasets=datasets,
        batch_size=batch_size,
        sharding=sharding,
        compile_cost=compile_cost,
    )
    predictions = predict(batches, predictor, tick)
    found = []
    for of, group in itertools.groupby(
        zip(batches.sets, predictions, strict=True), key=lambda pair: pair[0].dataset
    ):
        templates = _scores(group)
        each = templates.values()
        scored = all(score.log_p is not None for score in each)
        score = DatasetScore(
            *(of.name, of.category, of.split, of.metric, of.chance),
            value=statistics.fmean(score.values[of.metric] for score in each),
            examples=max(score.examples for score in each),
            truncated=sum(score.truncated for score in each),
            templates=templates,
            padding=batches.padding,
            log_p=sum(score.log_p for score in each) if scored else None,
            tokens=sum(score.tokens for score in each) if scored else None,
        )
        found.append(score)
    return found


def _scores(
    predicted: Iterable[tuple[TemplateRequests, Prediction]],
) -> dict[str, TemplateScore]:
    """Return a dataset's scores by prompt template."""
    found = {}
    for one, prediction in predicted:
        name = one.eval_set.prompt
        if one.references:  # they follow the texts that they are references of
            likely = dict(
                zip(("log_p", "tokens"), _right_answers(one, prediction), strict=True)
            )
            found[name] = dataclasses.replace(found[name], **likely)
        else:
            found[name] = _score(one, prediction)
    return found


def _score(one: TemplateRequests, prediction: Prediction) -> TemplateScore:
    counts, values = {}, {}
    for metric in one.metrics:
        how, outputs = METRICS[metric], prediction.outputs
        if how.unconditional:
            outputs = outputs - prediction.unconditional
        table = how.counts(one.eval_set.targets, outputs)
        values[metric] = how.value(table.sum(axis=0), len(table))
        counts[metric] = table.astype(np.float32)
    return TemplateScore(
        *(one.eval_set.examples, one.truncated, one.answers_digest, values, counts),
        *_right_answers(one, prediction),
        _plain(prediction.outputs),
    )


def _plain(outputs: Any) -> np.ndarray | tuple[str, ...]:
    is_text = not isinstance(outputs, np.ndarray)
    return tuple(map(str, outputs)) if is_text else outputs


def _right_answers(
    one: TemplateRequests, prediction: Prediction
) -> tuple[float, int] | tuple[None, None]:
    """Return the sum of log p over the right answers, and their tokens."""
    if one.answers is None:
        return None, None
    log_p = np.asarray(prediction.outputs, np.float64)
    if one.references:
        lengths = one.eval_set.continuation_lengths
        tokens = np.minimum(lengths, one.eval_set.max_new_tokens).sum()
    else:
        log_p = log_p[[bool(target[1]) for target in one.eval_set.targets]]
        tokens = sum(target[3] for target in one.eval_set.targets if target[1])
    total = float(log_p.sum())
    # A broken model's NaN is no number to keep.
    return (total, int(tokens)) if math.isfinite(total) else (None, None)
