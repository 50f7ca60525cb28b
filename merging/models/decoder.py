"""One decoder-only transformer in Flax nnx, configured into families.

RMSNorm, rotary positions (arXiv 2104.09864), grouped or multi-query attention (arXiv
2305.13245), gated MLPs (arXiv 2002.05202), serial or parallel blocks (arXiv
2204.02311). What sets families apart is in the config: biases, further norms, soft
caps, local layers. Outside this file a model is a config and a plain nested dict of
arrays.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from merging.models.config import DecoderConfig
from merging.models.positions import Positions, rotate
from merging.runtime.sharding import split_rows

# Queries of a long sequence that attend at a time: so many, or as many as make 8 parts.
QUERIES, PARTS = 128, 8
_ACTIVATION = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}


class Cache(NamedTuple):
    """Keys and values, [B, S, kv_heads, head_dim] each; stacked over layers outside."""

    keys: jax.Array
    values: jax.Array


class Block(nnx.Module):
    """One layer: attention and a gated MLP around a residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        d_model, hidden = config.d_model, config.d_ff
        queries = config.heads * config.head_dim
        keys = config.kv_heads * config.head_dim
        # Every layer adds two branches to the stream: keep its variance near one.
        branch = 1 / math.sqrt(2 * config.layers)
        matrix = functools.partial(_matrix, rngs, config.param_dtype)
        self.query, self.key = matrix(d_model, queries), matrix(d_model, keys)
        self.value, self.output = (
            matrix(d_model, keys),
            matrix(queries, d_model, branch),
        )
        self.gate, self.up = matrix(d_model, hidden), matrix(d_model, hidden)
        self.down = matrix(hidden, d_model, branch)
        self.attention_norm = _gain(d_model, config)
        if not config.parallel_block:
            self.mlp_norm = _gain(d_model, config)
        if config.post_norms:
            self.attention_post_norm = _gain(d_model, config)
            self.mlp_post_norm = _gain(d_model, config)
        if config.qk_norm:
            self.query_norm = _gain(config.head_dim, config)
            self.key_norm = _gain(config.head_dim, config)
        if config.attention_bias:
            self.query_bias = _constant(0, queries, config.param_dtype)
            self.key_bias = _constant(0, keys, config.param_dtype)
            self.value_bias = _constant(0, keys, config.param_dtype)

    def __call__(
        self,
        x: jax.Array,
        where: Positions,
        cache: Cache | None,
        local: jax.Array | None,
        seen: dict[str, jax.Array],
    ) -> tuple[jax.Array, Cache]:
        """Return the stream [B, T, d_model] after this layer, and its keys and values.

        Args:
          x: the stream before it.
          where: the tokens' positions.
          cache: keys and values of what came before them, or None.
          local: whether this is a local layer; None if all layers see alike.
          seen: is given the inputs of each linear map, by its leaf's name.
        """
        h = _norm(self.config, self.attention_norm, x)
        attended, cache = self._attend(h, where, cache, local, seen)
        if self.config.parallel_block:
            return x + attended + self._mlp(h, seen), cache
        if self.config.post_norms:
            attended = _norm(self.config, self.attention_post_norm, attended)
        x = x + attended
        out = self._mlp(_norm(self.config, self.mlp_norm, x), seen)
        if self.config.post_norms:
            out = _norm(self.config, self.mlp_post_norm, out)
        return x + out, cache

    def _attend(self, h, where, cache, local, seen):
        c, view = self.config, where.seen_by(local)
        seen |= dict.fromkeys(("query", "key", "value"), h)
        q, k, v = self._heads(h)
        q, k = (rotate(x, view.sin, view.cos) for x in (q, k))
        scale = (c.query_scalar or c.head_dim) ** -0.5
        if cache is None:
            attend, every = causal_attention, (k, v)
        else:
            both = zip(cache, (k, v), strict=True)
            attend, every = attention, (jnp.concatenate(pair, axis=1) for pair in both)
        out = attend(q * scale, *every, view.mask, softcap=c.attention_softcap)
        seen["output"] = out = out.reshape(*h.shape[:2], -1)
        return _apply(self.output, out), Cache(k, v)

    def _heads(self, h):
        """Return queries, keys and values, [B, T, heads, head_dim] each."""
        split = (*h.shape[:2], -1, self.config.head_dim)
        q, k, v = (_apply(w, h) for w in (self.query, self.key, self.value))
        if self.config.attention_bias:
            biases = (self.query_bias, self.key_bias, self.value_bias)
            q, k, v = (
                x + bias[...].astype(x.dtype)
                for x, bias in zip((q, k, v), biases, strict=True)
            )
        q, k, v = (x.reshape(split) for x in (q, k, v))
        if self.config.qk_norm:
            q = _norm(self.config, self.query_norm, q)
            k = _norm(self.config, self.key_norm, k)
        return q, k, v

    def _mlp(self, h, seen):
        gate = _ACTIVATION[self.config.activation](_apply(self.gate, h))
        hidden = gate * _apply(self.up, h)
        seen |= {"gate": h, "up": h, "down": hidden}
        return _apply(self.down, hidden)


class Decoder(nnx.Module):
    """Embedding, stacked blocks under scan, final norm, output projection."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        stack = nnx.vmap(lambda rngs: Block(config, rngs))
        self.layers = nnx.split_rngs(splits=config.layers)(stack)(rngs)
        # The last stream is normalised, so logits start at variance one.
        deviation = config.d_model**-0.5
        table = functools.partial(_normal, rngs, config.param_dtype, deviation)
        self.embed = table(config.vocab_size, config.d_model)
        self.final_norm = _gain(config.d_model, config)
        if not config.tied_embeddings:
            self.head = table(config.vocab_size, config.d_model)

    def __call__(
        self, inputs: jax.Array, where: Positions, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache]:
        """Return the normalised last stream [B, T, d_model], and the keys and values.

        Args:
          inputs: token ids [B, T], BOS included.
          where: their positions. Without a cache, none sees what stands behind it.
          cache: leaves [layers, B, S, kv_heads, head_dim] of what is seen beside, in
            the mask before these tokens; they are not among those returned.
        """
        hidden, cache, _ = self._run(inputs, where, cache, None)
        return hidden, cache

    def inputs_of_linear_maps(
        self,
        inputs: jax.Array,
        where: Positions,
        reduce: Callable[[jax.Array], jax.Array],
    ) -> dict[str, jax.Array]:
        """Return something of each linear map's inputs, by the path of its leaf.

        Args:
          inputs: token ids [B, T], BOS included.
          where: their positions.
          reduce: of inputs [B, T, n]; stacked over the layers.
        """
        hidden, _, seen = self._run(inputs, where, None, reduce)
        found = {f"layers/{name}": value for name, value in seen.items()}
        return (
            found if self.config.tied_embeddings else found | {"head": reduce(hidden)}
        )

    def _run(
        self,
        inputs: jax.Array,
        where: Positions,
        cache: Cache | None,
        reduce: Callable[[jax.Array], jax.Array] | None,
    ) -> tuple[jax.Array, Cache, dict[str, Any]]:
        """Return the last stream, keys and values, and the inputs that were asked."""
        c = self.config
        x = self.embed[...].astype(c.dtype)[inputs]
        if c.scaled_embeddings:
            x = x * math.sqrt(c.d_model)
        block, weights = nnx.split(self.layers)

        def layer(x, leaves):
            weights, cache, local = leaves
            seen: dict[str, jax.Array] = {}
            x = split_rows(x)
            x, cache = nnx.merge(block, weights)(x, where, cache, local, seen)
            kept = {} if reduce is None else {n: reduce(h) for n, h in seen.items()}
            return split_rows(x), (cache, kept)

        if c.remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        local = None if where.sliding is None else jnp.array(c.local_layers)
        x, (cache, kept) = self._through(layer, x, (weights, cache, local))
        return _norm(c, self.final_norm, x), cache, kept

    def _through(self, layer, x, leaves):
        """Scan the layers; few small ones run faster written out (see `unroll`)."""
        layers = self.config.layers
        if self.config.unroll < layers:
            return jax.lax.scan(layer, x, leaves, unroll=self.config.unroll)
        left = []
        for i in range(layers):
            x, one = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], leaves))
            left.append(one)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *left)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return float32 logits [..., vocab_size] of hidden [..., d_model]."""
        table = self.embed if self.config.tied_embeddings else self.head
        return output_logits(self.config, table[...], hidden)


def output_logits(
    config: DecoderConfig, table: jax.Array, hidden: jax.Array
) -> jax.Array:
    """Return float32 logits [..., V] of hidden [..., d_model]; table [V, d_model]."""
    flat = jnp.matmul(
        hidden.reshape(-1, hidden.shape[-1]),
        table.astype(hidden.dtype).T,
        preferred_element_type=jnp.float32,
    )
    if config.logit_softcap is not None:
        flat = _softcapped(flat, config.logit_softcap)
    return flat.reshape(*hidden.shape[:-1], -1)


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """Scale the last axis to mean square one, in float32 (arXiv 1910.07467)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * gain).astype(x.dtype)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Grouped-query attention; softmax in float32.

    Args:
      q: [B, T, heads, head_dim], scaled.
      k: [B, S, kv_heads, head_dim].
      v: [B, S, kv_heads, head_dim].
      mask: [B or 1, T, S].
      softcap: scores s become softcap · tanh(s / softcap).

    Returns:
      [B, T, heads, head_dim].
    """
    rows, length, heads, size = q.shape
    kv_heads = k.shape[2]
    # All queries of a key head as one matrix: half the time of the five-axis einsum.
    stacked = q.reshape(rows, length, kv_heads, -1, size)
    stacked = stacked.transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, size)
    scores = jnp.einsum(
        "bkmd,bskd->bkms", stacked, k, preferred_element_type=jnp.float32
    )
    scores = scores.reshape(rows, kv_heads, heads // kv_heads, length, -1)
    if softcap is not None:
        scores = _softcapped(scores, softcap)
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(rows, kv_heads, -1, weights.shape[-1])
    out = jnp.einsum("bkms,bskd->bkmd", weights, v)
    out = out.reshape(rows, heads, length, size).transpose(0, 2, 1, 3)
    return out


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    softcap: float | None = None,
) -> jax.Array:
    """`attention` of whole sequences [S = T], where no query looks at a later key.

    Some queries at a time, and the keys up to the last of them: nearly half of the
    scores are not made, and the others need little memory at once.
    """
    length = q.shape[1]
    step = max(QUERIES, -(-length // PARTS))
    parts = []
    for start in range(0, length, step):
        queries, keys = slice(start, start + step), slice(start + step)
        seen = k[:, keys], v[:, keys], mask[:, queries, keys]
        parts.append(attention(q[:, queries], *seen, softcap=softcap))
    return jnp.concatenate(parts, axis=1)


def _apply(weight: nnx.Param, x: jax.Array) -> jax.Array:
    # Two axes, not three: XLA's gradient for the weight is then one plain product,
    # worth a third of a training step on a CPU.
    flat = x.reshape(-1, x.shape[-1]) @ weight[...].astype(x.dtype)
    return flat.reshape(*x.shape[:-1], -1)


def _normal(rngs, dtype, scale, *shape) -> nnx.Param:
    return nnx.Param((jax.random.normal(rngs(), shape) * scale).astype(dtype))


def _matrix(rngs, dtype, fan_in, fan_out, gain=1.0) -> nnx.Param:
    return _normal(rngs, dtype, gain * fan_in**-0.5, fan_in, fan_out)


def _norm(config: DecoderConfig, gain: nnx.Param, x: jax.Array) -> jax.Array:
    scale = gain[...]
    if config.unit_offset:
        scale = 1 + scale.astype(jnp.float32)
    return rms_norm(x, scale, config.norm_eps)


def _softcapped(x: jax.Array, most: float) -> jax.Array:
    return most * jnp.tanh(x / most)


def _gain(size: int, config: DecoderConfig) -> nnx.Param:
    return _constant(0 if config.unit_offset else 1, size, config.param_dtype)


def _constant(value: float, size: int, dtype) -> nnx.Param:
    return nnx.Param(jnp.full(size, value, dtype))
