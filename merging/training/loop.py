"""The training loop, from start or checkpoint to the last step or the best one."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from merging import models
from merging.runtime import preemption, processes, sharding
from merging.runtime.errors import Preempted, UserError
from merging.training import batches, run_state
from merging.training.batches import Examples, Loader, Source
from merging.training.hyperparameters import Hyperparameters, Trained, TrainingDiverged
from merging.training.run_state import RunState
from merging.training.steps import (
    TracedHyperparameters,
    TrainFunctions,
    state_shardings,
    train_functions,
)


def train(
    model_config: models.DecoderConfig,
    params: models.Params,
    examples: Examples | Source,
    hyperparameters: Hyperparameters,
    *,
    workdir: str | os.PathLike | None = None,
    validation: Examples | Source | None = None,
    mesh: Mesh | None = None,
    report: Callable[[RunState], object] | None = None,
    note: Callable[[str], object] | None = None,
) -> Trained:
    """Train, or go on where a killed run of the same hyperparameters left off.

    Of several processes each calls this with the same arguments: they share a mesh over
    all their devices, read their own rows of each batch, and return the same numbers.

    Args:
      model_config: the decoder.
      params: where to start; left untouched.
      examples: what to learn.
      hyperparameters: how.
      workdir: where checkpoints go, and are looked for; None for neither.
      validation: held-back examples, for ``validate_every`` and early stopping.
      mesh: devices to train on, split by `models.partition_rules`.
      report: called with the progress after every ``log_every`` steps.
      note: told which batch of a validation comes, as that may take longer than steps.

    Raises:
      UserError: impossible examples or batch; a workdir that holds another training.
      TrainingDiverged: the loss or the parameters are no longer finite.
      Preempted: the job was asked to stop; the step is saved in the workdir.
    """
    hparams = hyperparameters
    if hparams.validate_every and validation is None:
        raise UserError("validate_every needs validation examples.")
    source = batches.opened(examples, model_config.vocab_size)
    loader = Loader(source, hparams.batch_size, hparams.seed, mesh, hparams.steps)
    held_back = None
    if validation is not None:
        opened = batches.opened(validation, model_config.vocab_size)
        held_back = Loader(opened, hparams.batch_size, hparams.seed, mesh)
    run = train_functions(model_config, hparams.dtype, mesh)
    numbers = TracedHyperparameters.of(hparams)
    if mesh is None:
        params = sharding.settled(params)
    else:
        where = state_shardings(model_config, mesh, params)
        params = jax.tree.map(sharding.place, params, where)
    state = run.start(params, numbers)
    now = RunState(
        state, state.params, np.zeros(0, np.float32), np.zeros((0, 2), np.float32)
    )
    good, identity = (
        None,
        run_state.fingerprint((model_config, hparams), source),
    )
    if workdir is not None and (found := run_state.restore(workdir, state, identity)):
        now, good = found

    with loader:
        while now.step < hparams.steps and not _stalled(now, hparams):
            now = _advance(run, now, loader, hparams, numbers, mesh, good)
            if _due(now.step, hparams.validate_every, hparams.steps):
                now = _validate(run, now, held_back, mesh, note)
            if report is not None:
                report(now)
            preempted = processes.preempted()
            due = preempted or _due(now.step, hparams.checkpoint_every)
            if workdir is not None and due:
                if not run.finite(now.state.params):
                    raise TrainingDiverged(now.step, "parameters are not finite", good)
                good = run_state.save(workdir, now, identity)
            if preempted and now.step < hparams.steps:
                raise Preempted(
                    f"{preemption.reason()} at step {now.step} of {hparams.steps}"
                )
    return _result(now, hparams)


def _advance(run: TrainFunctions, now, loader: Loader, hparams, numbers, mesh, good):
    """Take the steps until something else is due, in one call of fixed shape."""
    stop = _next_stop(now.step, hparams)
    batches = loader.batches(now.step, stop, hparams.log_every)
    loader.prepare(stop, _next_stop(stop, hparams))
    n = stop - now.step
    with sharding.on(mesh):
        state, losses = run.run(now.state, batches, np.int32(n), numbers)
    losses = np.asarray(losses)[:n]
    if not np.isfinite(losses).all():
        first = int(np.argmin(np.isfinite(losses)))
        raise TrainingDiverged(now.step + first, f"loss is {losses[first]}", good)
    # The call above has reused the old state's buffers.
    best = state.params if now.best is now.state.params else now.best
    losses = np.concatenate([now.losses, losses])
    return RunState(state, best, losses, now.validations)


def _validate(run: TrainFunctions, now, loader: Loader, mesh, note):
    total = weight = 0.0
    for number, (tokens, weights) in enumerate(loader.in_order(), 1):
        if note is not None:
            note(f"validating, batch {number} of {loader.whole}")
        with sharding.on(mesh):
            sums = run.total(now.state.params, tokens, weights)
        total, weight = total + float(sums[0]), weight + float(sums[1])
    value = np.float32(total / weight)
    better = not len(now.validations) or value < now.validations[:, 1].min()
    best = run.copy(now.state.params) if better else now.best
    entry = np.array([[now.step, value]], np.float32)
    validations = np.concatenate([now.validations, entry])
    return now._replace(best=best, validations=validations)


def _stalled(now: RunState, hparams: Hyperparameters) -> bool:
    if not (hparams.patience and len(now.validations)):
        return False
    since_best = len(now.validations) - 1 - int(np.argmin(now.validations[:, 1]))
    return since_best >= hparams.patience


def _next_stop(step: int, hparams: Hyperparameters) -> int:
    """Return the next step at which something other than training is due."""
    periods = (
        hparams.log_every,
        hparams.checkpoint_every,
        hparams.validate_every,
    )
    return min(hparams.steps, *((step // p + 1) * p for p in periods if p))


def _due(step: int, period: int, last: int | None = None) -> bool:
    return period > 0 and (step % period == 0 or step == last)


def _result(now: RunState, hparams: Hyperparameters) -> Trained:
    stopped = now.step < hparams.steps
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
