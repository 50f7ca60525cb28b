"""Pretrain, instruction-tune, fine-tune an expert, train a multitask model.

They differ by their examples and recipe only. The batch of a step is a pure function
of (seed, step), and every number that may differ between two runs of one model is
traced, so that a resumed run repeats the lost steps to the bit and a new learning
rate does not recompile.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from merging import models
from merging.errors import UserError
from merging.models.decoder import causal

Params = dict[str, Any]


class Examples(NamedTuple):
    """Sequences to learn from.

    Attributes:
      tokens: ids [N, T], without BOS, rows padded on the right with 0.
      loss_weights: [N, T], the weight of predicting each token; 0 on padding.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray


class Recipe(NamedTuple):
    """How to train: AdamW under linear warm-up and cosine decay, with clipping.

    Attributes:
      steps: optimizer steps, all told.
      batch_size: sequences a step.
      learning_rate: at the end of the warm-up.
      warmup_steps: steps from 0 to the full rate.
      final_learning_rate_fraction: what the cosine ends at.
      b1: decay of AdamW's first moment.
      b2: decay of its second moment.
      weight_decay: decoupled; matrices only, never norms.
      clip_norm: bound of the gradient's global norm.
      dtype: of the forward and backward pass; parameters keep theirs.
      checkpoint_every: steps between checkpoints; 0 for none before the end.
      log_every: steps between reports; also the steps of one jitted call.
      seed: of the order of the examples.
      validate_every: steps between validations; 0 for none.
      patience: validations without improvement before stopping; 0 for never.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_learning_rate_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    dtype: str = "float32"
    checkpoint_every: int = 0
    log_every: int = 50
    seed: int = 0
    validate_every: int = 0
    patience: int = 0


class Trained(NamedTuple):
    """What training returns.

    Attributes:
      params: the last parameters, or the best ones where training may stop early.
      losses: float32 [steps], each step's training loss.
      steps: optimizer steps taken.
      stopped_early: validation stopped improving.
      best_step: the step of the lowest validation loss; ``steps`` without validation.
    """

    params: Params
    losses: np.ndarray
    steps: int
    stopped_early: bool
    best_step: int


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; says at which step, and what is still good."""


def train(
    model_config: models.DecoderConfig,
    params: Params,
    examples: Examples,
    recipe: Recipe,
    *,
    workdir=None,
    validation: Examples | None = None,
    mesh=None,
    report=None,
) -> Trained:
    """Train and return the parameters; ``params`` itself is left untouched.

    Args:
      model_config: the decoder.
      params: where to start.
      examples: what to learn.
      recipe: how.
      workdir: where checkpoints go.
      validation: held-back examples for early stopping.
      mesh: devices to train on.
      report: called as ``report(step, loss)`` after every jitted call.
    """
    tokens, weights = trim(examples)
    run = _run(model_config, recipe.dtype)
    state = (jax.tree.map(jnp.copy, params), _optimizer(_numbers(recipe)).init(params))
    losses = []
    for start in range(0, recipe.steps, recipe.log_every):
        stop = min(start + recipe.log_every, recipe.steps)
        rows = batch_rows(len(tokens), recipe, start, stop)
        state, chunk = run(
            state, tokens[rows], weights[rows], np.int32(start), _numbers(recipe)
        )
        chunk = np.asarray(chunk)
        losses.append(chunk)
        if not np.isfinite(chunk).all():
            step = start + int(np.argmin(np.isfinite(chunk)))
            raise TrainingDiverged(f"loss is {chunk[step - start]} at step {step}.")
        if report:
            report(stop, float(chunk[-1]))
    return Trained(state[0], np.concatenate(losses), recipe.steps, False, recipe.steps)


def trim(examples: Examples) -> Examples:
    """Cut the columns no row uses, down to a multiple of 16.

    Raises:
      UserError: no examples, shapes that differ, or nothing to learn.
    """
    tokens = np.asarray(examples.tokens, np.int32)
    weights = np.asarray(examples.loss_weights, np.float32)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape != weights.shape:
        raise UserError(
            f"examples need tokens and loss_weights of one shape [N, T] with N > 0, "
            f"got {tokens.shape} and {weights.shape}."
        )
    if not weights.any():
        raise UserError("every loss weight is 0: there is nothing to learn.")
    longest = 1 + int(np.flatnonzero(weights.any(axis=0))[-1])
    length = min(-(-longest // 16) * 16, tokens.shape[1])
    return Examples(tokens[:, :length], weights[:, :length])


def batch_rows(count: int, recipe: Recipe, start: int, stop: int) -> np.ndarray:
    """Return the examples [stop - start, batch_size] of steps start … stop - 1.

    Every epoch is a fresh permutation drawn from (seed, epoch); steps run through the
    epochs end to end, so each example is seen equally often whatever the batch size.
    """
    first, last = start * recipe.batch_size, stop * recipe.batch_size
    epochs = range(first // count, (last - 1) // count + 1)
    order = np.concatenate([_permutation(recipe.seed, e, count) for e in epochs])
    offset = epochs.start * count
    return order[first - offset : last - offset].reshape(-1, recipe.batch_size)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class _Numbers(NamedTuple):
    """The recipe's traced part."""

    steps: Any
    learning_rate: Any
    warmup_steps: Any
    final_fraction: Any
    b1: Any
    b2: Any
    weight_decay: Any
    clip_norm: Any


def _numbers(recipe: Recipe) -> _Numbers:
    values = (
        recipe.steps,
        recipe.learning_rate,
        recipe.warmup_steps,
        recipe.final_learning_rate_fraction,
        recipe.b1,
        recipe.b2,
        recipe.weight_decay,
        recipe.clip_norm,
    )
    return _Numbers(*map(np.float32, values))


@functools.lru_cache(maxsize=64)
def _run(config: models.DecoderConfig, dtype: str):
    config = dataclasses.replace(config, dtype=dtype)

    def run(state, tokens, weights, start, numbers):
        optimizer = _optimizer(numbers)

        def step(state, batch):
            params, moments = state
            value, gradients = jax.value_and_grad(loss, 1)(config, params, *batch)
            updates, moments = optimizer.update(gradients, moments, params)
            return (optax.apply_updates(params, updates), moments), value

        return jax.lax.scan(step, state, (tokens, weights))

    return jax.jit(run, donate_argnums=0)


def _optimizer(n: _Numbers) -> optax.GradientTransformation:
    def rate(count):
        warm = (count + 1) / jnp.maximum(n.warmup_steps, 1)
        span = jnp.maximum(n.steps - n.warmup_steps, 1)
        progress = jnp.clip((count - n.warmup_steps) / span, 0, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        decay = n.final_fraction + (1 - n.final_fraction) * cosine
        return n.learning_rate * jnp.minimum(warm, decay)

    return optax.chain(
        optax.clip_by_global_norm(n.clip_norm),
        optax.adamw(
            rate, b1=n.b1, b2=n.b2, weight_decay=n.weight_decay, mask=_matrices
        ),
    )


def _matrices(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "norm" not in str(path[-1]), params
    )


def loss(
    config: models.DecoderConfig, params: Params, tokens: jax.Array, weights: jax.Array
) -> jax.Array:
    """Return the weighted mean cross entropy of tokens [B, T], in nats a token."""
    model = models.bind(config, params)
    length = tokens.shape[1]
    hidden, _ = model(models.shift_right(tokens), causal(config, length))
    logits = model.logits(hidden)
    # A comparison, not a gather: no scatter in the gradient, no gather of a vocabulary
    # that is split over devices.
    target = jnp.arange(logits.shape[-1]) == tokens[..., None]
    chosen = jnp.sum(logits, axis=-1, where=target)
    surprise = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(surprise * weights) / jnp.maximum(jnp.sum(weights), 1e-6)
