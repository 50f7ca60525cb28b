"""The loss of a language model without all of its logits.

Of a batch of prompts and answers few tokens are learned, and logits are many: one for
each token and word of the vocabulary, once more for their gradient. Here they are made
for the learned tokens only, some at a time, and their gradient with them, so that none
is kept for the backward pass.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Tokens that get their logits together: so many, or as many as make 8 parts. The
# table's gradient is read and written once for each part.
TOKENS, PARTS = 512, 8
FEW = 1 << 24  # logits of a batch that are made at once, all of them

Logits = Callable[[jax.Array, jax.Array], jax.Array]


def total(
    logits: Logits,
    table: jax.Array,
    hidden: jax.Array,
    tokens: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Return Σ w (log Σⱼ exp lⱼ − l_token), a weighted sum of cross entropies in nats.

    On a mesh of several devices, and where logits are `FEW`, all are made at once: the
    sum of the table's gradient over devices would be one for each part. The weights
    have no gradient.

    Args:
      logits: ``(table, hidden [..., d_model]) -> float32 [..., vocab_size]``.
      table: the output table [vocab_size, d_model].
      hidden: the last stream [B, T, d_model].
      tokens: what each is to predict [B, T].
      weights: [B, T], finite.
    """
    rows, length = tokens.shape
    devices = math.prod(jax.sharding.get_abstract_mesh().shape.values())
    step = positions(rows, length, len(table), devices)
    if step == length:
        return _whole(logits, table, hidden, tokens, weights)
    return _in_parts(logits, step, table, hidden, tokens, weights)


def positions(rows: int, length: int, vocab_size: int, devices: int) -> int:
    """Return how many tokens of each row of a batch get their logits together."""
    if devices > 1 or rows * length * vocab_size <= FEW:
        return length
    return min(max(TOKENS // rows, -(-length // PARTS), 1), length)


def _whole(logits, table, hidden, tokens, weights):
    found = logits(table, hidden)
    # A comparison, not a gather: no scatter in the gradient, and no gather of a
    # vocabulary that is split over devices.
    target = jnp.arange(found.shape[-1]) == tokens[..., None]
    chosen = jnp.sum(found, axis=-1, where=target)
    surprise = jax.nn.logsumexp(found, axis=-1) - chosen
    return jnp.sum(surprise * weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_parts(logits, step, table, hidden, tokens, weights):
    rows = _learned_first(step, hidden, tokens, weights)

    def add(i, total):
        return total + _whole(logits, table, *_part(rows, i, step))

    return jax.lax.fori_loop(0, _parts(weights, step), add, jnp.float32(0))


def _forward(logits, step, table, hidden, tokens, weights):
    """Return the sum, and its gradients for the table and for hidden."""
    rows = _learned_first(step, hidden, tokens, weights)

    def add(i, carry):
        total, of_table, of_hidden = carry
        part = _part(rows, i, step)
        value, (more, here) = jax.value_and_grad(
            lambda table, hidden: _whole(logits, table, hidden, *part[1:]), (0, 1)
        )(table, part[0])
        of_hidden = jax.lax.dynamic_update_slice_in_dim(of_hidden, here, i * step, 1)
        return total + value, of_table + more.astype(jnp.float32), of_hidden

    nothing = jnp.zeros(table.shape, jnp.float32), jnp.zeros_like(rows[0])
    start = (jnp.float32(0), *nothing)
    parts = _parts(weights, step)
    value, of_table, of_hidden = jax.lax.fori_loop(0, parts, add, start)
    back = jnp.argsort(_order(weights), axis=1)
    of_hidden = jnp.take_along_axis(of_hidden, back[..., None], axis=1)
    return value, (of_table.astype(table.dtype), of_hidden)


def _backward(logits, step, gradients, cotangent):
    # The cotangent in float32: rounded to 16 bits, it would misscale all gradients.
    scaled = [(g.astype(jnp.float32) * cotangent).astype(g.dtype) for g in gradients]
    return *scaled, None, None


_in_parts.defvjp(_forward, _backward)


def _order(weights):
    """Return an order of each row's tokens that has the learned ones first."""
    return jnp.argsort(weights == 0, axis=1, stable=True)


def _parts(weights, step):
    """Return how many parts hold every learned token."""
    return -(-jnp.max(jnp.sum(weights != 0, axis=1)) // step)


def _learned_first(step, hidden, tokens, weights):
    """Return all three in that order, each row padded to whole parts."""
    order = _order(weights)
    more = -order.shape[1] % step

    def ordered(x):
        where = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        x = jnp.take_along_axis(x, where, axis=1)
        return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))

    return ordered(hidden), ordered(tokens), ordered(weights)


def _part(rows, i, step):
    return tuple(jax.lax.dynamic_slice_in_dim(x, i * step, step, 1) for x in rows)
