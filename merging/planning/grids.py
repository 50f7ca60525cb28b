"""Chip-hours of a whole grid: experts, merges, and the evaluation of all of them."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from merging import methods, models
from merging.methods import Method
from merging.models import DecoderConfig
from merging.planning import decoding, estimates, memory_merge
from merging.planning.compiling import Target
from merging.planning.estimates import CostEstimate
from merging.planning.settings import Grid, Settings
from merging.planning.sharding_layout import sharding_layout


class Cost(NamedTuple):
    """Chip-hours of one size of a grid.

    Attributes:
      size: of the family.
      merges: how many.
      training: of experts, instruction-tuned bases and multitask models.
      merging: of all merges, models read and the merged one kept in memory.
      evaluation: of every merge, expert, base and multitask model, and of trials of λ.
      limits: what bounds a training step, a merge and a scored batch.
    """

    size: str
    merges: int
    training: float
    merging: float
    evaluation: float
    limits: tuple[str, str, str]

    @property
    def total(self) -> float:
        """All three."""
        return self.training + self.merging + self.evaluation


def cost(config: Any, settings: Settings, target: Target, size: str) -> Cost | None:
    """Return what one size costs; None where the chip's figures are not known.

    Args:
      config: of the plan, with its family and vocabulary.
      settings: with a grid.
      target: the devices; nothing is compiled for them.
      size: of the family.

    Raises:
      UserError: a mesh that does not fit this size; an unknown size or method.
    """
    decoder = models.size(config.family, size, vocab_size=config.vocab_size)
    clock = _Clock(decoder, settings, target)
    if clock.step.seconds is None or clock.batch.seconds is None:
        return None
    grid = settings.grid
    merging, tried, limit = 0.0, 0, ""
    for name in grid.methods:
        method = methods.get(name)
        trials = grid.trials if method.needs_base else 1
        tried += trials
        for experts in grid.experts_merged:
            seconds, limit = clock.merge(method, experts, trials)
            merging += seconds * grid.bases * grid.seeds
    merges = grid.per_size
    each = merges // len(grid.methods)
    rows = (_scored(grid) + merges) * grid.evaluation_rows
    rows += each * tried * grid.validation_rows
    hours = target.topology.devices / 3600
    return Cost(
        size,
        merges,
        hours * (_steps(grid) * clock.step.seconds + _models(grid) * clock.load),
        hours * merging,
        hours * (rows / settings.scoring.batch * clock.batch.seconds),
        (clock.step.limit, limit, clock.batch.limit),
    )


def _experts(grid: Grid) -> int:
    return grid.bases * grid.seeds * grid.experts


def _steps(grid: Grid) -> int:
    """Return the steps of all trainings of a size; the first base is given."""
    return (
        _experts(grid) * grid.expert_steps
        + (grid.bases - 1) * grid.instruction_steps
        + grid.bases * grid.multitask_steps
    )


def _models(grid: Grid) -> int:
    """Return how many trainings there are, each of which reads a model."""
    return _experts(grid) + 2 * grid.bases - 1


def _scored(grid: Grid) -> int:
    """Return the models that are scored and are no merges."""
    return _experts(grid) + 2 * grid.bases


class _Timed(NamedTuple):
    seconds: float | None
    limit: str


class _Clock:
    """How long the steps of a grid take at one size."""

    def __init__(self, decoder: DecoderConfig, settings: Settings, target: Target):
        self._settings, self._target = settings, target
        self._leaves = sharding_layout(decoder, target.mesh)
        self.step = self._timed(decoding.train(decoder, settings.training, target))
        self.batch = self._timed(
            decoding.score(decoder, self._leaves, settings.scoring, target)
        )
        size = models.parameter_count(decoder) * jnp.dtype(decoder.param_dtype).itemsize
        hosts = target.topology.hosts
        self.load = size / hosts / (settings.storage.read * 1e9)

    def merge(self, method: Method, experts: int, trials: int) -> tuple[float, str]:
        """Return the seconds of one merge with its trials of λ, and what bounds it."""
        names = [f"expert{i}" for i in range(experts)]
        estimate = memory_merge.estimate(method, names, self._leaves, self._target)
        again = (
            (trials - 1)
            * (experts + 2)
            * sum(leaf.bytes for leaf in self._leaves.values())
        )
        work = estimate.work._replace(traffic=estimate.work.traffic + again, written=0)
        timed = self._timed(estimate._replace(work=work))
        return timed.seconds or 0.0, timed.limit

    def _timed(self, estimate: CostEstimate) -> _Timed:
        terms = estimates.times(estimate, self._target.topology, self._settings.storage)
        seconds = estimates.expected(terms, self._settings.efficiency)
        return _Timed(seconds, estimates.bottleneck(terms))


def assumptions(settings: Settings) -> list[str]:
    """Return what a grid's hours rest on, in words."""
    grid = settings.grid
    step = settings.training
    rows = f"{step.batch} x {step.length:,} tokens"
    counts = ", ".join(map(str, grid.experts_merged))
    return [
        f"{grid.cells} merges: {len(grid.sizes)} sizes x {grid.bases} bases x"
        f" {len(grid.methods)} methods x K of {counts} x {grid.seeds} seeds",
        f"for each size {_experts(grid)} experts of {grid.expert_steps:,} steps,"
        f" {grid.bases - 1} instruction-tuned base of {grid.instruction_steps:,}, and"
        f" {grid.bases} multitask models of {grid.multitask_steps:,}, a step being"
        f" {rows}; pretrained bases are given",
        f"{grid.evaluation_rows:,} rows of {settings.scoring.length:,} tokens scored"
        f" for each of {_scored(grid) + grid.per_size} models of a size, and"
        f" {grid.validation_rows:,} for each of {grid.trials} values of λ",
        f"chips reach {settings.efficiency:.0%} of what bounds them; storage gives a"
        f" host {settings.storage.read:g} GB/s; merged models are not written",
    ]
