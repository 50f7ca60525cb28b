"""The jitted part: the loss, AdamW, and many steps in one call."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging import models
from merging.models.decoder import output_logits
from merging.models.positions import causal, opening, packed
from merging.runtime import sharding, tree
from merging.training import cross_entropy
from merging.training.batches import Batches
from merging.training.hyperparameters import Hyperparameters

Params = dict[str, Any]
_LARGE = 50e6  # parameters


class State(NamedTuple):
    """What a step changes: the parameters and optax's own state."""

    params: Params
    optimizer: Any


class TracedHyperparameters(NamedTuple):
    """The hyperparameters' numbers that are traced, as float32 scalars."""

    steps: Any
    learning_rate: Any
    warmup_steps: Any
    final_learning_rate_fraction: Any
    b1: Any
    b2: Any
    weight_decay: Any
    clip_norm: Any

    @classmethod
    def of(cls, hparams: Hyperparameters) -> "TracedHyperparameters":
        """Return those of hyperparameters."""
        return cls(*(np.float32(getattr(hparams, name)) for name in cls._fields))


class TrainFunctions(NamedTuple):
    """The jitted functions of one model on one mesh.

    Attributes:
      start: ``(params, numbers) -> State``, on copies.
      run: ``(state, batches, n, numbers) -> (state, losses [K])``: the first n of K
        steps; the state's buffers are reused.
      total: ``(params, tokens [B, T], weights) -> (sum of losses, sum of weights)``.
      finite: ``(params) -> bool``.
      copy: ``(params) -> params``, in buffers of their own.
    """

    start: Callable[..., State]
    run: Callable[..., tuple[State, jax.Array]]
    total: Callable[..., tuple[jax.Array, jax.Array]]
    finite: Callable[..., jax.Array]
    copy: Callable[..., Params]


def loss(
    config: models.DecoderConfig,
    params: Params,
    tokens: jax.Array,
    weights: jax.Array,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Return the weighted mean cross entropy in nats a token.

    Args:
      config: the decoder.
      params: its parameters.
      tokens: ids [B, T] without BOS, right-padded with 0.
      weights: [B, T], the weight of predicting each token.
      segments: [B, T], which of a row's sequences each token is of; None if it has one.
    """
    total, weight = total_loss(config, params, tokens, weights, segments)
    return total / jnp.maximum(weight, 1e-6)


@functools.lru_cache(maxsize=64)
def train_functions(
    config: models.DecoderConfig, dtype: str, mesh: Mesh | None
) -> TrainFunctions:
    """Return the jitted functions, the same ones for an equal model and mesh."""
    config = dataclasses.replace(config, dtype=dtype)

    # Numbers that every process reads.
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def copy(params):
        return jax.tree.map(jnp.copy, params)

    def start(params, numbers):
        params = copy(params)
        return _placed(config, mesh, State(params, _adamw(numbers).init(params)))

    def run(state, batches: Batches, n, numbers):
        optimizer = _adamw(numbers)

        def step(i, carry):
            (params, moments), losses = carry
            value, gradients = jax.value_and_grad(loss, 1)(
                config, params, *jax.tree.map(lambda x: x[i], batches)
            )
            updates, moments = optimizer.update(gradients, moments, params)
            state = State(optax.apply_updates(params, updates), moments)
            return _placed(config, mesh, state), losses.at[i].set(value)

        # n is traced: a last, shorter call is the same program, so the same bits.
        return jax.lax.fori_loop(0, n, step, (state, jnp.zeros(len(batches.tokens))))

    def finite(params):
        return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()

    return TrainFunctions(
        jax.jit(start),
        jax.jit(
            run,
            donate_argnums=0,
            out_shardings=(None, everywhere),
            compiler_options=_compiler_options(config, mesh),
        ),
        jax.jit(functools.partial(total_loss, config), out_shardings=everywhere),
        jax.jit(finite, out_shardings=everywhere),
        jax.jit(copy),
    )


def _compiler_options(config: models.DecoderConfig, mesh: Mesh | None) -> dict | None:
    """Leave a small model's loops on CPUs to XLA; YNNPACK's take longer there."""
    if mesh is None:
        platform = jax.default_backend()
    else:
        platform = mesh.devices.flat[0].platform
    if platform != "cpu" or models.parameter_count(config) >= _LARGE:
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": ""}


def state_shardings(config: models.DecoderConfig, mesh: Mesh, state: Any) -> Any:
    """Return the tree of shardings; AdamW's moments lie where their parameters do."""
    rules = models.partition_rules(config)
    of = tree.flatten(sharding.shardings(models.abstract(config), rules, mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path, _):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return of.get("/".join(keys), everywhere)

    return jax.tree_util.tree_map_with_path(place, state)


def _placed(config, mesh, state):
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(config, mesh, state))


def shifted(
    config: models.DecoderConfig,
    tokens: jax.Array,
    weights: jax.Array,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what the model sees, and the tokens it is to predict with their weights.

    [B, T] each; a token less where no BOS opens a text.
    """
    opens = None if segments is None else opening(segments)
    if config.bos_id is None:
        if opens is not None:  # nothing says what a sequence begins with
            weights = jnp.where(opens, 0, weights)
        return tokens[:, :-1], tokens[:, 1:], weights[:, 1:]
    inputs = models.shift_right(tokens, config.bos_id)
    if opens is not None:
        inputs = jnp.where(opens, config.bos_id, inputs)
    return inputs, tokens, weights


def total_loss(
    config: models.DecoderConfig,
    params: Params,
    tokens: jax.Array,
    weights: jax.Array,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of cross entropies in nats, and of weights; as `loss`."""
    model = models.bind(config, params)
    inputs, tokens, weights = shifted(config, tokens, weights, segments)
    length = inputs.shape[1]
    if segments is None:
        where = causal(config, length)
    else:
        where = packed(config, segments[:, :length])
    hidden, _ = model(inputs, where)
    table = params["embed" if config.tied_embeddings else "head"]
    logits = functools.partial(output_logits, config)
    total = cross_entropy.total(logits, table, hidden, tokens, weights)
    return total, jnp.sum(weights)


def _adamw(n: TracedHyperparameters) -> optax.GradientTransformation:
    def rate(count):
        warm = (count + 1) / jnp.maximum(n.warmup_steps, 1)
        span = jnp.maximum(n.steps - n.warmup_steps, 1)
        progress = jnp.clip((count - n.warmup_steps) / span, 0, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        last = n.final_learning_rate_fraction
        return n.learning_rate * jnp.minimum(warm, last + (1 - last) * cosine)

    return optax.chain(
        optax.clip_by_global_norm(n.clip_norm),
        optax.adamw(rate, n.b1, n.b2, weight_decay=n.weight_decay, mask=_matrices),
    )


def _matrices(params: Params) -> Params:
    plain = ("norm", "bias")
    return tree.map_named(lambda path, _: not path.endswith(plain), params)
