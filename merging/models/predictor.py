"""Scoring and greedy generation: jitted once for a decoder, reused for any weights."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from merging.models.config import DecoderConfig
from merging.models.decoder import Cache
from merging.models.functional import bind, shift_right
from merging.models.positions import causal, positions
from merging.sharding import on, place_batch


class Predictor(NamedTuple):
    """Jitted functions of ``(params, tokens, …)``.

    Tokens are ids [B, T] without BOS, padded on the right with 0; ``lengths`` [B]
    counts the real ones.

    Attributes:
      score: ``(params, tokens, prompt_lengths [B], lengths [B]) -> [B]``: the sum of
        log p of ``tokens[prompt_length:length]``.
      score_choices: ``(params, tokens, lengths, choices [B, C]) -> [B, C]``: log p of
        each choice as the one token after the prompt; one forward for all choices.
      generate: ``(params, tokens, lengths, max_new_tokens, eos_id) -> [B,
        max_new_tokens]``: greedy continuation, 0 after ``eos_id``.
    """

    score: Callable[..., jax.Array]
    score_choices: Callable[..., jax.Array]
    generate: Callable[..., jax.Array]


@functools.lru_cache(maxsize=64)
def predictor(config: DecoderConfig, mesh: Mesh | None = None) -> Predictor:
    """Return the functions for a decoder; the same object for equal arguments.

    Args:
      config: the decoder.
      mesh: devices to split the rows over; the parameters stay where they are.
    """
    score = jax.jit(functools.partial(_score, config))
    choose = jax.jit(functools.partial(_score_choices, config))
    generate = jax.jit(functools.partial(_generate, config), static_argnums=3)
    if mesh is None:
        return Predictor(score, choose, generate)

    def over_mesh(function):
        def placed(params, *arguments):
            rows = [place_batch(mesh, argument) for argument in arguments]
            with on(mesh):
                return function(params, *rows)

        return placed

    return Predictor(over_mesh(score), over_mesh(choose), over_mesh(generate))


def _score(config, params, tokens, prompt_lengths, lengths):
    model = bind(config, params)
    length = tokens.shape[1]
    hidden, _ = model(shift_right(tokens, config.bos_id), causal(config, length))
    logits = model.logits(hidden)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
    index = jnp.arange(length)
    target = (index >= prompt_lengths[:, None]) & (index < lengths[:, None])
    return jnp.sum(log_p, axis=-1, where=target)


def _score_choices(config, params, tokens, lengths, choices):
    model = bind(config, params)
    hidden, _ = model(_open(config, tokens), causal(config, tokens.shape[1] + 1))
    log_p = jax.nn.log_softmax(model.logits(_at(hidden, lengths)))
    return jnp.take_along_axis(log_p, choices, axis=-1)


def _generate(config, params, tokens, lengths, max_new_tokens, eos_id):
    """Fill the cache with the prompts in one call, then add a token at a time.

    Keys of a row's padding stay in the cache but are never seen: a query at position
    p sees keys up to p, and those past the prompt have been overwritten by then.
    """
    model = bind(config, params)
    rows, length = tokens.shape
    hidden, prompt = model(_open(config, tokens), causal(config, length + 1))
    room = ((0, 0), (0, 0), (0, max_new_tokens), (0, 0), (0, 0))
    cache = Cache(*(jnp.pad(leaf, room) for leaf in prompt))
    first = jnp.argmax(model.logits(_at(hidden, lengths)), axis=-1)
    slots = jnp.arange(length + 1 + max_new_tokens)[None, None]

    def unfinished(state):
        step, _, _, done, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def extend(state):
        step, token, cache, done, out = state
        out = out.at[:, step].set(jnp.where(done, 0, token))
        done = done | (token == eos_id)
        index = (lengths + 1 + step)[:, None]
        where = positions(config, index, slots <= index[..., None])
        hidden, cache = model(token[:, None], where, cache)
        token = jnp.argmax(model.logits(hidden[:, 0]), axis=-1)
        return step + 1, token, cache, done, out

    out = jnp.zeros((rows, max_new_tokens), first.dtype)
    state = (0, first, cache, jnp.zeros(rows, bool), out)
    return jax.lax.while_loop(unfinished, extend, state)[-1]


def _open(config: DecoderConfig, tokens: jax.Array) -> jax.Array:
    return jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=config.bos_id)


def _at(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, lengths[:, None, None], axis=1)[:, 0]
