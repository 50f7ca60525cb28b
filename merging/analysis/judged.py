"""Models in memory, judged on a suite's datasets by the one evaluator."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging import evaluation, methods, models, tasks
from merging.evaluation import job
from merging.merge import memory as in_memory
from merging.methods import Method
from merging.runtime.errors import UserError

# What configs of the analyses that judge have, beside their own keys.
SUITE = {"datasets": (), "split": "test", "count": 0, "batch_size": 0, "dtype": ""}


def check(values: Mapping[str, Any]) -> None:
    """Raise a UserError if a config's `SUITE` has numbers that can't be used."""
    for key in ("count", "batch_size"):
        if values[key] < 0:
            raise UserError(f"{key} must be 0 or more, not {values[key]}.")


class Score(NamedTuple):
    """What a model scores on a dataset: its metric's value, and its loss.

    Attributes:
      value: of the dataset's own metric, in 0..1.
      loss: cross-entropy of the right answers, nats per token; None where they are not
        scored.
    """

    value: float
    loss: float | None


class Models(NamedTuple):
    """Models of one decoder, in memory.

    Attributes:
      decoder: theirs.
      base: θ₀.
      others: by name, in the order given.
      tokenizer: folder of the base's tokenizer; "" if there is none.
    """

    decoder: models.DecoderConfig
    base: models.Params
    others: dict[str, models.Params]
    tokenizer: str


def load(base: str, others: Mapping[str, str], dtype: str = "") -> Models:
    """Load checkpoints of known families, with their config.json.

    Args:
      base: folder of θ₀. others: folders by name.
      dtype: of parameters and arithmetic; as stored by default.

    Raises:
      UserError: one can't be read, or is of another decoder.
    """
    opened = {"": job.open_model(base)}
    opened |= {name: job.open_model(uri) for name, uri in others.items()}
    decoder, params = opened[""].load(dtype or None, None)
    found = {}
    for name, uri in others.items():
        theirs, found[name] = opened[name].load(dtype or None, None)
        if theirs != decoder:
            raise UserError(f"{uri} is not of the architecture of the base, {base}.")
    return Models(decoder, params, found, opened[""].tokenizer)


class Judge:
    """Scores models of one decoder on datasets of a suite.

    Args:
      decoder: the models'.
      suite: from `tasks.suite`, in the models' tokens.
      datasets: names; all of the suite's if there are none.
      split: "validation" or "test". count: the first examples of each; 0 takes all.
      batch_size: rows of a call; 0: as many as suit the datasets.
      cache_dir: where to keep the suite's rows.

    Raises:
      UserError: an unknown dataset or split.
    """

    def __init__(
        self,
        decoder: models.DecoderConfig,
        suite: tasks.Suite,
        datasets: Sequence[str] = (),
        split: str = "test",
        count: int = 0,
        batch_size: int = 0,
        cache_dir: Path | None = None,
    ):
        self._decoder, self._batch_size = decoder, batch_size
        self._requests = evaluation.requests(
            suite,
            split,
            datasets=datasets or None,
            count=count or None,
            references=True,
            context=decoder.max_length,
            vocab_size=decoder.vocab_size,
            cache_dir=cache_dir,
        )

    def scores(self, params: models.Params) -> dict[str, Score]:
        """Return {dataset: score}."""
        found = evaluation.evaluate(
            self._requests, self._bound(params), batch_size=self._batch_size
        )
        return {
            one.dataset: Score(
                one.value, None if one.log_p is None else -one.log_p / one.tokens
            )
            for one in found
        }

    def answers(self, params: models.Params) -> dict[str, list[Any]]:
        """Return {dataset: the model's answer to each example}: a choice, or a text."""
        batches = evaluation.prepare(self._requests, batch_size=self._batch_size)
        made = evaluation.predict(batches, self._bound(params))
        found: dict[str, list[Any]] = {}
        for one, prediction in zip(batches.sets, made, strict=True):
            if one.references:
                continue
            answers = found.setdefault(one.dataset.name, [])
            if one.eval_set.ranked:
                answers += _chosen(one.eval_set.targets, prediction.outputs)
            else:
                answers += prediction.outputs
        return found

    def _bound(self, params: models.Params) -> models.Predictor:
        calls = models.predictor(self._decoder)
        return models.Predictor(*(functools.partial(call, params) for call in calls))


def _chosen(targets: Sequence[Any], outputs: np.ndarray) -> list[int]:
    """Return the likeliest choice of each example, ties the first."""
    best: dict[int, tuple[float, int]] = {}
    for ((example, choice), *_), score in zip(targets, outputs.tolist(), strict=True):
        best[example] = max(best.get(example, (-np.inf, 0)), (score, -choice))
    return [-best[example][1] for example in sorted(best)]


def mixed(one: models.Params, other: models.Params, share: float) -> models.Params:
    """Return (1 − share) · one + share · other, in float32, rounded once."""
    weights = (1 - share, share)
    return in_memory.merge(None, [one, other], methods.average(weights=weights))


def added(
    base: models.Params, experts: Mapping[str, models.Params], scale: float
) -> models.Params:
    """Return θ₀ + scale · Σ Δᵢ."""
    return in_memory.merge(base, experts, methods.task_arithmetic(scale=scale))


def trimmed(base: models.Params, expert: models.Params, density: float) -> Any:
    """Return θ₀ + Δ, of which the exact global trim has kept so much."""
    return in_memory.merge(base, {"expert": expert}, trim(density))


def trim(density: float) -> Method:
    """Return the method that keeps the top of a task vector, over the whole model."""
    return methods.compose(
        "trimmed",
        methods.trim(density, "global", "keep_all"),
        combiner=methods.combiners.sum(),
        scale=1.0,
    )


def own_datasets(suite: tasks.Suite, experts: Sequence[str]) -> dict[str, list[str]]:
    """Return {expert: the datasets of its category}, by the experts' names.

    Raises:
      UserError: an expert is not named after a category; says how to name it.
    """
    found = {
        name: [of.name for of in suite.datasets if of.category == name]
        for name in experts
    }
    if wrong := [name for name, datasets in found.items() if not datasets]:
        known = sorted({of.category for of in suite.datasets})
        raise UserError(
            f"{', '.join(wrong)}: no category of the suite {suite.name} "
            f"({', '.join(known)}). Name each expert after the category that it was "
            "trained on: NAME=PATH."
        )
    return found


def suite_of(values: Mapping[str, Any], tokenizer: str) -> tasks.Suite:
    """Return a config's suite, in the models' own tokens if they have a tokenizer.

    Raises:
      UserError: as `tasks.suite`.
    """
    settings = dict(values)
    name = settings.pop("name", "")
    return tasks.suite(name, **settings | {"tokenizer": tokenizer})
