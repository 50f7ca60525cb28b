"""Where tokens stand and what they may look at: rotary tables and masks.

Rotary positions (arXiv 2104.09864) turn the two halves of a head against each other,
as Hugging Face's checkpoints expect; others interleave them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging.models.config import DecoderConfig, RopeScaling


class View(NamedTuple):
    """How one kind of layer sees the tokens of a call.

    ``sin`` and ``cos`` [B or 1, T, 1, head_dim / 2]; ``mask`` [B or 1, T, S], true
    where a query may look at a key.
    """

    sin: jax.Array
    cos: jax.Array
    mask: jax.Array


class Positions(NamedTuple):
    """Where the tokens of a call stand, shared by all layers.

    ``index`` [B or 1, T] absolute positions; ``view`` that of most layers; ``sliding``
    that of local layers, None if all layers see alike.
    """

    index: jax.Array
    view: View
    sliding: View | None

    def seen_by(self, local: jax.Array | None) -> View:
        """Return a layer's view, given whether it is local (None: all are alike)."""
        if self.sliding is None:
            return self.view
        return jax.tree.map(
            lambda near, far: jnp.where(local, near, far), self.sliding, self.view
        )


def positions(
    config: DecoderConfig,
    index: jax.Array,
    mask: jax.Array,
    keys: jax.Array | None = None,
) -> Positions:
    """Return the positions of tokens at ``index`` [B or 1, T].

    Args:
      config: the decoder.
      index: absolute positions.
      mask: [B or 1, T, S], true where a query may look at the key in slot s.
      keys: [B or 1, S], the positions of the keys; those of their slots if None.
    """
    view = _view(config, index, mask, config.rope_theta, config.rope_scaling)
    if not any(config.local_layers):
        return Positions(index, view, None)
    if keys is None:
        keys = jnp.arange(mask.shape[-1])[None]
    distance = index[:, :, None] - keys[:, None, :]
    mask = mask & (distance < config.window)
    if config.local_rope_theta is None:
        sliding = view._replace(mask=mask)
    else:
        sliding = _view(config, index, mask, config.local_rope_theta, None)
    if all(config.local_layers):
        return Positions(index, sliding, None)
    return Positions(index, sliding=sliding, view=view)


def causal(config: DecoderConfig, length: int) -> Positions:
    """Return the positions of a whole sequence: each sees itself and what precedes.

    Rows are padded on the right, so no real token ever sees padding.
    """
    index = jnp.arange(length)[None]
    return positions(config, index, index[:, :, None] >= index[:, None, :])


def packed(config: DecoderConfig, segments: jax.Array) -> Positions:
    """Return the positions of rows that hold several sequences side by side.

    Each token sees its own sequence up to itself, and stands where it would alone.

    Args:
      config: the decoder.
      segments: [B, T], which sequence of its row a token is of; neighbours alike.
    """
    slot = jnp.arange(segments.shape[1])[None]
    first = jax.lax.cummax(jnp.where(opening(segments), slot, 0), axis=1)
    same = segments[:, :, None] == segments[:, None, :]
    mask = same & (slot[:, :, None] >= slot[:, None, :])
    return positions(config, slot - first, mask, slot - first)


def opening(segments: jax.Array) -> jax.Array:
    """Return which tokens [B, T] are the first of their sequence."""
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
    return segments != before


def shared_prompt(
    config: DecoderConfig, length: int, prompts: jax.Array, segments: jax.Array
) -> Positions:
    """Return the positions of rows that hold one prompt and several continuations.

    A continuation's tokens stand where they would right after the prompt, and see the
    prompt and what precedes them in their own continuation.

    Args:
      config: the decoder.
      length: T, slots of a row: its prompt, then its continuations one by one.
      prompts: [B], tokens of the prompt.
      segments: [B, M], the continuation of the m-th token after the prompt; -1 for
        padding.
    """
    slot = jnp.arange(length)[None]
    after = slot - prompts[:, None]
    prompt, last = after < 0, segments.shape[1] - 1
    segment = jnp.take_along_axis(segments, jnp.clip(after, 0, last), axis=1)
    segment = jnp.where(prompt, -2, jnp.where(after > last, -1, segment))
    before = slot[:, :, None] >= slot[:, None, :]
    same = before & (segment[:, :, None] == segment[:, None, :])
    index = jnp.where(prompt, -1, prompts[:, None] - 1) + jnp.sum(same, axis=-1)
    mask = same | (before & prompt[:, None, :])
    return positions(config, index, mask, index)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotate the two halves of each head of x [B, T, heads, head_dim] (RoPE)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _view(config, index, mask, theta, scaling) -> View:
    half = config.head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency = _slowed(frequency, scaling)
    angle = (index[..., None] * frequency)[:, :, None, :]
    dtype = config.dtype
    return View(jnp.sin(angle).astype(dtype), jnp.cos(angle).astype(dtype), mask)


def _slowed(frequency: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Return radians per token [head_dim / 2] for sequences longer than trained on."""
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_length * frequency / (2 * math.pi)
    share = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return share * frequency + (1 - share) * slow
