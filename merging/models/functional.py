"""A decoder as pure functions of a config and a plain nested dict of arrays."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from merging.models.config import DecoderConfig
from merging.models.decoder import Decoder
from merging.models.partition_rules import partition_rules
from merging.models.positions import causal
from merging.runtime import sharding

Params = dict[str, Any]
BOS = 0  # the padding id opens every sequence, as in seqio's feature converters


def init(config: DecoderConfig, seed: int, mesh: Mesh | None = None) -> Params:
    """Return fresh parameters: a nested dict of arrays, the same for the same seed.

    Args:
      config: the decoder.
      seed: of the random numbers.
      mesh: devices to make them on, split by `partition_rules`; one device makes all
        if None.

    >>> import merging
    >>> decoder = merging.models.size("tiny", "1x", vocab_size=400)
    >>> params = merging.models.init(decoder, seed=0)
    >>> params["embed"].shape
    (400, 16)
    """
    return _init(config, mesh)(seed)


def abstract(config: DecoderConfig, mesh: Mesh | None = None) -> Params:
    """Return the parameters' shapes and dtypes as a dict of ShapeDtypeStruct.

    Args:
      config: the decoder.
      mesh: devices, to have their shardings over it as well.
    """
    found = jax.eval_shape(_init(config, None), 0)
    if mesh is None:
        return found
    where = sharding.shardings(found, partition_rules(config), mesh)
    return jax.tree.map(lambda leaf, s: leaf.update(sharding=s), found, where)


@functools.lru_cache(maxsize=64)
def parameter_count(config: DecoderConfig) -> int:
    """Return the number of parameters; a tied table counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))


def forward(config: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Return logits [B, T, vocab_size] float32; ``[:, t]`` predicts ``tokens[:, t]``.

    Args:
      config: the decoder, which has a BOS.
      params: its parameters.
      tokens: ids [B, T] without BOS, rows padded on the right with 0. Position t sees
        BOS and ``tokens[:, :t]``, so padding never influences a real token.
    """
    return logits(config, params, shift_right(tokens, config.bos_id))


def logits(config: DecoderConfig, params: Params, inputs: jax.Array) -> jax.Array:
    """Return logits [B, T, vocab_size] float32; ``[:, t]`` is for what follows t.

    Args:
      config: the decoder.
      params: its parameters.
      inputs: ids [B, T] as the model is to see them, BOS included; rows padded on the
        right with anything.
    """
    model = bind(config, params)
    hidden, _ = model(inputs, causal(config, inputs.shape[1]))
    return model.logits(hidden)


def input_grams(
    config: DecoderConfig,
    params: Params,
    inputs: jax.Array,
    counted: jax.Array,
    place: Callable[[jax.Array], jax.Array] = lambda gram: gram,
) -> dict[str, jax.Array]:
    """Return Σ x xᵀ over tokens, of the inputs x of each linear map.

    Args:
      config: the decoder.
      params: its parameters.
      inputs: ids [B, T] as the model is to see them, BOS included.
      counted: bool [B, T], which tokens to add up.
      place: lays one map's [n, n] out over devices, before there are all of them.

    Returns:
      {path of the map's leaf: float32 [layers, n, n]}, and of the head [n, n] where it
      is not tied to the embedding.
    """

    def gram(x: jax.Array) -> jax.Array:
        x = jnp.where(counted[..., None], x, 0).astype(jnp.float32)
        x = x.reshape(-1, x.shape[-1])
        return place(jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST))

    where = causal(config, inputs.shape[1])
    return bind(config, params).inputs_of_linear_maps(inputs, where, gram)


def shift_right(tokens: jax.Array, bos: int = BOS) -> jax.Array:
    """Return tokens [B, T] moved right by one, opened by BOS: the model's input."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=bos)


def bind(config: DecoderConfig, params: Params) -> Decoder:
    """Return the nnx module that holds these parameters; cheap, traceable."""
    graph, state = _skeleton(config)
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


@functools.lru_cache(maxsize=64)
def _init(config: DecoderConfig, mesh: Mesh | None):
    def make(seed):
        model = Decoder(config, nnx.Rngs(jax.random.key(seed)))
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    if mesh is None:
        return jax.jit(make)
    where = sharding.shardings(abstract(config), partition_rules(config), mesh)
    return jax.jit(make, out_shardings=where)


@functools.lru_cache(maxsize=64)
def _skeleton(config: DecoderConfig):
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    return nnx.split(model)
