"""Scoring and training of a decoder on a mesh, compiled for it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import models
from merging.models import DecoderConfig
from merging.planning import compiling, cost_model
from merging.planning.compiling import Target, TooLarge
from merging.planning.estimates import COUNTED, CostEstimate, Memory
from merging.planning.settings import Scoring, Training
from merging.planning.sharding_layout import Leaf, sharding_layout
from merging.runtime import sharding, tree
from merging.runtime.errors import UserError
from merging.training import steps
from merging.training.batches import Batches
from merging.training.hyperparameters import Hyperparameters


def score(
    decoder: DecoderConfig, leaves: Mapping[str, Leaf], batch: Scoring, target: Target
) -> CostEstimate:
    """Return one batch of log-likelihoods (`models.predictor(...).score`).

    Raises:
      UserError: the mesh does not divide the batch.
    """
    _require_whole_rows("scoring", batch.batch, target)
    memory, exchanged = cost_model.scoring(
        decoder, leaves, batch, target.topology.domain
    )

    def lower() -> Any:
        rows = sharding.batch_sharding(target.mesh)
        inputs = [_abstract(s, jnp.int32, rows) for s in questions(batch)]
        return models.predictor(decoder).score.lower(_params(leaves), *inputs)

    text = f"{batch.batch} rows of {batch.length:,} tokens"
    work = cost_model.scoring_work(decoder, leaves, batch)
    return _estimate("scoring", text, memory, exchanged, work, target, lower)


def questions(batch: Scoring) -> list[tuple[int, ...]]:
    """Return the shapes of a batch for `models.Predictor.score`.

    A row is its prefix token, a prompt, and four continuations that take a quarter of
    it.
    """
    rows, tail = batch.batch, batch.length // cost_model.CONTINUED
    return [(rows,), (rows, batch.length - 1), (rows,), (rows, 4), *2 * [(rows, tail)]]


def train(decoder: DecoderConfig, step: Training, target: Target) -> CostEstimate:
    """Return one step of AdamW (`training.steps.train_functions(...).run`).

    Raises:
      UserError: the mesh does not divide the batch or the leaves.
    """
    _require_whole_rows("training", step.batch, target)
    decoder = dataclasses.replace(
        decoder, param_dtype=step.param_dtype, dtype=step.dtype
    )
    leaves = sharding_layout(decoder, target.mesh)
    memory, exchanged = cost_model.training(
        decoder, leaves, step, target.topology.domain
    )

    def lower() -> Any:
        program = steps.train_functions(decoder, step.dtype, target.mesh)
        numbers = steps.TracedHyperparameters.of(Hyperparameters(steps=1))
        state = jax.eval_shape(program.start, _params(leaves), numbers)
        state = jax.tree.map(
            lambda leaf, where: _abstract(leaf.shape, leaf.dtype, where),
            state,
            steps.state_shardings(decoder, target.mesh, state),
        )
        rows = sharding.batch_sharding(target.mesh, leading=1)
        shape = (1, step.batch, step.length)
        tokens = _abstract(shape, jnp.int32, rows)
        weights = _abstract(shape, jnp.float32, rows)
        batches = Batches(tokens, weights)
        return program.run.lower(state, batches, np.int32(1), numbers)

    text = f"{step.batch} rows of {step.length:,} tokens, {step.param_dtype} state"
    work = cost_model.training_work(decoder, leaves, step)
    return _estimate("training step", text, memory, exchanged, work, target, lower)


def _estimate(
    name: str,
    text: str,
    memory: Memory,
    exchanged: tuple,
    work: Any,
    target: Target,
    lower: Callable[[], Any],
) -> CostEstimate:
    """Return the estimate as the compiler sees it, or as counted if there is none."""
    if not target.compiler:
        return CostEstimate(name, text, memory, COUNTED, exchanged, work)
    try:
        found = compiling.compiled(target, lower)
    except TooLarge as error:
        lacking = error.needed - memory.arguments - memory.outputs
        memory = memory._replace(scratch=max(lacking, memory.scratch))
        source = f"{target.compiler}: too large"
        return CostEstimate(name, text, memory, source, exchanged, work)
    memory = Memory(found.arguments, found.outputs, found.scratch)
    return CostEstimate(name, text, memory, target.compiler, found.collectives, work)


def _params(leaves: Mapping[str, Leaf]) -> Any:
    return tree.unflatten({path: leaf.abstract for path, leaf in leaves.items()})


def _require_whole_rows(name: str, rows: int, target: Target) -> None:
    parts = sharding.batch_parts(target.mesh)
    if rows % parts:
        raise UserError(
            f"{name}.batch = {rows} rows do not divide over {parts} devices "
            f"(data x fsdp); give a multiple, or a larger tensor axis."
        )


def _abstract(shape: tuple[int, ...], dtype: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
