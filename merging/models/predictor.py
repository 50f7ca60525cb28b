"""Scoring and greedy generation: jitted once for a decoder, reused for any weights."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from merging.models.config import DecoderConfig
from merging.models.decoder import Cache
from merging.models.functional import Params, bind
from merging.models.positions import causal, positions, shared_prompt
from merging.runtime.sharding import on, place_batch

LOGITS = 1 << 28  # most logits in memory at a time


class Predictor(NamedTuple):
    """Jitted functions of ``(params, prefixes, tokens, lengths, …)``.

    A row is what the model sees: ``prefixes`` [B], the token that comes first, then
    ``tokens`` [B, T], of which the first ``lengths`` [B] are the prompt.

    Attributes:
      score: ``(…, firsts [B, C], segments [B, M], targets [B, M]) -> [B, C]``: log p of
        each of a prompt's C continuations. ``firsts`` has their first tokens. A longer
        one's tokens but the last stand in ``tokens`` behind the prompt, one
        continuation after the other; for the m-th of these, ``segments`` has the number
        of its continuation (-1: padding) and ``targets`` the token that follows it.
      generate: ``(…, max_new_tokens, end_ids) -> [B, max_new_tokens]``: greedy
        continuation, 0 after the first of ``end_ids``; what stands behind the prompt is
        ignored.
      score_greedy: as ``score`` -> [B, 2 C]: the C log p, then for each continuation 1
        where greedy generation would give it, else 0.
    """

    score: Callable[..., jax.Array]
    generate: Callable[..., jax.Array]
    score_greedy: Callable[..., jax.Array]


@functools.lru_cache(maxsize=64)
def predictor(config: DecoderConfig, mesh: Mesh | None = None) -> Predictor:
    """Return the functions for a decoder; the same object for equal arguments.

    Args:
      config: the decoder.
      mesh: devices to split the rows over; the parameters stay where they are.
    """
    functions = Predictor(
        jax.jit(functools.partial(_score, config, False)),
        _to_generate(config),
        jax.jit(functools.partial(_score, config, True)),
    )
    if mesh is None:
        return functions

    def over_mesh(function):
        def placed(params, *arguments):
            rows = [place_batch(mesh, row) for row in arguments if hasattr(row, "ndim")]
            with on(mesh):
                return function(params, *rows, *arguments[len(rows) :])

        return placed

    return Predictor(*map(over_mesh, functions))


def _to_generate(config):
    made = jax.jit(functools.partial(_generate, config), static_argnums=4)

    def generate(params, prefixes, tokens, lengths, max_new_tokens, end_ids):
        ending = np.zeros(config.vocab_size, bool)  # one program for whatever ends
        ending[list(end_ids)] = True
        return made(params, prefixes, tokens, lengths, max_new_tokens, ending)

    return generate


def likelihoods(
    config: DecoderConfig,
    params: Params,
    prefixes: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    firsts: jax.Array,
    segments: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return log p [B, V] of what follows each prompt, and [B, C] of continuations.

    Rows are as `Predictor` has them.
    """
    rows = prefixes, tokens, lengths, firsts, segments, targets
    return _likelihoods(config, False, params, *rows)[:2]


def _score(config, greedy, params, *rows):
    _, scores, best = _likelihoods(config, greedy, params, *rows)
    if greedy:
        return jnp.concatenate([scores, best.astype(scores.dtype)], axis=1)
    return scores


def _likelihoods(
    config, greedy, params, prefixes, tokens, lengths, firsts, segments, targets
):
    """One forward pass: a prompt's keys and values serve all its continuations.

    The third is which continuations are the most likely, if asked for `greedy`.
    """
    model = bind(config, params)
    inputs, room = _prefixed(prefixes, tokens), segments.shape[1]
    if room:
        where = shared_prompt(config, inputs.shape[1], lengths + 1, segments)
    else:
        where = causal(config, inputs.shape[1])
    hidden, _ = model(inputs, where)
    log_p = jax.nn.log_softmax(model.logits(_at(hidden, lengths)))
    scores = jnp.take_along_axis(log_p, firsts, axis=-1)
    following = log_p
    best = _is_best(log_p[:, None], firsts) if greedy else None
    if room:
        last = inputs.shape[1] - 1
        slots = jnp.minimum(lengths[:, None] + 1 + jnp.arange(room), last)
        tail = jnp.take_along_axis(hidden, slots[..., None], axis=1)
        log_p, also = _log_p(model, tail, targets, greedy)
        own = segments[..., None] == jnp.arange(firsts.shape[1])
        scores += jnp.sum(jnp.where(own, log_p[..., None], 0), axis=1)
        if greedy:
            best &= jnp.all(~own | also[..., None], axis=1)
    return following, scores, best


def _log_p(model, hidden, targets, greedy):
    """Return log p [B, M] of the token after each hidden [B, M, d_model].

    And, if asked for `greedy`, whether it is the most likely one; else None.
    """

    def after(hidden, targets):
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
        return log_p, _is_best(logits, targets) if greedy else None

    rows, room = targets.shape
    at_once = max(1, LOGITS // (rows * model.config.vocab_size))
    if at_once >= room:
        return after(hidden, targets)
    columns = (hidden.swapaxes(0, 1), targets.swapaxes(0, 1))
    found = jax.lax.map(lambda pair: after(*pair), columns, batch_size=at_once)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), found)


def _is_best(logits, targets):
    """Return [B, M] whether argmax of logits [B, M or 1, V] is the target.

    Of equal ones argmax takes the first. Comparisons are one vectorised pass, where
    XLA's argmax on a CPU is none.
    """
    own = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < targets[..., None]
    return ~jnp.any((logits > own) | ((logits == own) & earlier), axis=-1)


def _generate(config, params, prefixes, tokens, lengths, max_new_tokens, ending):
    """Compute the prompts' keys and values in one call, then add a token at a time.

    Those of new tokens stand behind the longest prompt: a row's padding is never seen.
    """
    model = bind(config, params)
    rows, length = tokens.shape
    hidden, prompt = model(_prefixed(prefixes, tokens), causal(config, length + 1))
    room = ((0, 0), (0, 0), (0, max_new_tokens), (0, 0), (0, 0))
    cache = Cache(*(jnp.pad(leaf, room) for leaf in prompt))
    first = jnp.argmax(model.logits(_at(hidden, lengths)), axis=-1)
    # Of each slot its place behind the longest prompt; the last is the token's own.
    new = jnp.arange(max_new_tokens + length + 2)[None] - (length + 1)
    places = jnp.where(new < 0, new + length + 1, lengths[:, None] + 1 + new)
    of_prompt = (new < 0) & (places <= lengths[:, None])

    def unfinished(state):
        step, _, _, done, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def extend(state):
        step, token, cache, done, out = state
        out = out.at[:, step].set(jnp.where(done, 0, token))
        done = done | ending[token]
        index = (lengths + 1 + step)[:, None]
        own = new == max_new_tokens
        seen = of_prompt | (new >= 0) & (new < step) | own
        keys = jnp.where(own, index, places)
        where = positions(config, index, seen[:, None], keys)
        hidden, made = model(token[:, None], where, cache)
        cache = jax.tree.map(
            lambda leaf, one: jax.lax.dynamic_update_slice_in_dim(
                leaf, one, length + 1 + step, axis=2
            ),
            *(cache, made),
        )
        token = jnp.argmax(model.logits(hidden[:, 0]), axis=-1)
        return step + 1, token, cache, done, out

    out = jnp.zeros((rows, max_new_tokens), first.dtype)
    state = (0, first, cache, jnp.zeros(rows, bool), out)
    return jax.lax.while_loop(unfinished, extend, state)[-1]


def _prefixed(prefixes: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.concatenate([prefixes[:, None], tokens], axis=1)


def _at(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, lengths[:, None, None], axis=1)[:, 0]
