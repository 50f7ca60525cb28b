"""The training loop, from start or checkpoint to the last step or the best one."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from merging import distributed, models, sharding
from merging.errors import Preempted, UserError
from merging.training import batches, progress
from merging.training.batches import Examples
from merging.training.progress import Progress
from merging.training.recipe import Recipe, Trained, TrainingDiverged
from merging.training.steps import Numbers, Program, program, state_shardings


def train(
    model_config: models.DecoderConfig,
    params: models.Params,
    examples: Examples,
    recipe: Recipe,
    *,
    workdir: str | os.PathLike | None = None,
    validation: Examples | None = None,
    mesh: Mesh | None = None,
    report: Callable[[int, float], object] | None = None,
) -> Trained:
    """Train, or go on where a killed run of the same recipe left off.

    Args:
      model_config: the decoder.
      params: where to start; left untouched.
      examples: what to learn.
      recipe: how.
      workdir: where checkpoints go, and are looked for; None for neither.
      validation: held-back examples, for ``validate_every`` and early stopping.
      mesh: devices to train on, split by `models.rules`.
      report: called as ``report(step, loss)`` after every ``log_every`` steps.

    Raises:
      UserError: impossible examples or batch; a workdir that holds another training.
      TrainingDiverged: the loss or the parameters are no longer finite.
      Preempted: the job was asked to stop; the step is saved in the workdir.
    """
    examples = batches.trim(examples, model_config.vocab_size)
    if recipe.validate_every and validation is None:
        raise UserError("validate_every needs validation examples.")
    if validation is not None:
        validation = batches.trim(validation, model_config.vocab_size)
    run = program(model_config, recipe.dtype, mesh)
    numbers = Numbers.of(recipe)
    if mesh is not None:
        params = jax.device_put(params, state_shardings(model_config, mesh, params))
    state = run.start(params, numbers)
    now = Progress(
        state, state.params, np.zeros(0, np.float32), np.zeros((0, 2), np.float32)
    )
    good, identity = None, progress.fingerprint((model_config, recipe), examples)
    if workdir is not None and (found := progress.restore(workdir, state, identity)):
        now, good = found

    while now.step < recipe.steps and not _stalled(now, recipe):
        stop = _next_stop(now.step, recipe)
        rows = batches.rows_of(
            len(examples.tokens), recipe.batch_size, recipe.seed, now.step, stop
        )
        now = _advance(run, now, examples, rows, recipe, numbers, mesh, good)
        if report is not None:
            report(now.step, float(now.losses[-1]))
        if _due(now.step, recipe.validate_every, recipe.steps):
            now = _validate(run, now, validation, recipe, mesh)
        preempted = distributed.preempted()
        due = preempted or _due(now.step, recipe.checkpoint_every)
        if workdir is not None and due:
            if not run.finite(now.state.params):
                raise TrainingDiverged(now.step, "parameters are not finite", good)
            good = progress.save(workdir, now, identity)
        if preempted and now.step < recipe.steps:
            raise Preempted(f"stopped by SIGTERM at step {now.step} of {recipe.steps}")
    return _result(now, recipe)


def _advance(run: Program, now, examples, rows, recipe, numbers, mesh, good):
    """Take the steps of ``rows`` [n, batch_size], in one call of fixed shape."""
    n = len(rows)
    rows = np.pad(rows, ((0, recipe.log_every - n), (0, 0)))
    tokens, weights = (
        sharding.place_batch(mesh, array[rows], leading=1) for array in examples
    )
    with sharding.on(mesh):
        state, losses = run.run(now.state, tokens, weights, np.int32(n), numbers)
    losses = np.asarray(losses)[:n]
    if not np.isfinite(losses).all():
        first = int(np.argmin(np.isfinite(losses)))
        raise TrainingDiverged(now.step + first, f"loss is {losses[first]}", good)
    # The call above has reused the old state's buffers.
    best = state.params if now.best is now.state.params else now.best
    losses = np.concatenate([now.losses, losses])
    return Progress(state, best, losses, now.validations)


def _validate(run: Program, now, validation, recipe, mesh):
    total = weight = 0.0
    for batch in batches.in_order(validation, recipe.batch_size):
        placed = (sharding.place_batch(mesh, array) for array in batch)
        with sharding.on(mesh):
            sums = run.total(now.state.params, *placed)
        total, weight = total + float(sums[0]), weight + float(sums[1])
    value = np.float32(total / weight)
    better = not len(now.validations) or value < now.validations[:, 1].min()
    best = now.best
    if better:
        best = jax.tree.map(lambda leaf: leaf.copy(), now.state.params)
    entry = np.array([[now.step, value]], np.float32)
    validations = np.concatenate([now.validations, entry])
    return now._replace(best=best, validations=validations)


def _stalled(now: Progress, recipe: Recipe) -> bool:
    if not (recipe.patience and len(now.validations)):
        return False
    since_best = len(now.validations) - 1 - int(np.argmin(now.validations[:, 1]))
    return since_best >= recipe.patience


def _next_stop(step: int, recipe: Recipe) -> int:
    """Return the next step at which something other than training is due."""
    periods = (recipe.log_every, recipe.checkpoint_every, recipe.validate_every)
    return min(recipe.steps, *((step // p + 1) * p for p in periods if p))


def _due(step: int, period: int, last: int | None = None) -> bool:
    return period > 0 and (step % period == 0 or step == last)


def _result(now: Progress, recipe: Recipe) -> Trained:
    stopped = now.step < recipe.steps
    best = now.step
    if len(now.validations):
        best = int(now.validations[np.argmin(now.validations[:, 1]), 0])
    return Trained(
        params=now.state.params,
        best=now.best if len(now.validations) else now.state.params,
        losses=now.losses,
        steps=now.step,
        stopped_early=stopped,
        best_step=best,
        validation_losses={int(step): float(v) for step, v in now.validations},
    )
