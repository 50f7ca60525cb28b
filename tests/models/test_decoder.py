"""The decoder against a NumPy float64 forward pass, and what its inputs may touch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import decoder_length, rounding

from merging import models
from merging.runtime.errors import UserError

SERIAL = models.DecoderConfig(
    vocab_size=32, d_model=16, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=24
)
PARALLEL = dataclasses.replace(
    SERIAL,
    kv_heads=1,
    parallel_block=True,
    activation="geglu",
    tied_embeddings=False,
    scaled_embeddings=False,
    rope_theta=100.0,
)


# Of rows of 16 tokens at most, relative to the largest number.
CLOSE = rounding(
    decoder_length(layers=2, width=16, inner=32, mlp=24, context=16, vocabulary=32)
)


def assert_close(found, expected, close=CLOSE):
    atol = close * float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


forward = jax.jit(models.forward, static_argnums=0)


def tokens_of(shape, seed=0):
    return np.random.default_rng(seed).integers(3, 32, shape).astype(np.int32)


def trained_like(config, seed=0):
    """Parameters whose norms' gains are not all one, so that a lost gain shows."""
    rng = np.random.default_rng(9)  # JAX's would compile for every shape

    def moved(leaf):
        return np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(moved, models.init(config, seed))


def reference(c, params, tokens):
    """Every operation written out, one row and one head at a time, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    half = c.head_dim // 2
    length = tokens.shape[1]
    angle = np.outer(np.arange(length), c.rope_theta ** (-np.arange(half) / half))

    def norm(x, gain):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * gain

    def rope(x):
        a, b = x[:, :half], x[:, half:]
        sin, cos = np.sin(angle), np.cos(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attend(h, w):
        heads = []
        for i in range(c.heads):
            j = i // (c.heads // c.kv_heads)
            mine = slice(i * c.head_dim, (i + 1) * c.head_dim)
            shared = slice(j * c.head_dim, (j + 1) * c.head_dim)
            q, k = rope(h @ w["query"][:, mine]), rope(h @ w["key"][:, shared])
            scores = q @ k.T / np.sqrt(c.head_dim)
            scores[np.triu_indices(length, 1)] = -np.inf
            e = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(e / e.sum(-1, keepdims=True) @ (h @ w["value"][:, shared]))
        return np.concatenate(heads, -1) @ w["output"]

    def mlp(h, w):
        gate = h @ w["gate"]
        gate = gate / (1 + np.exp(-gate)) if c.activation == "swiglu" else gelu(gate)
        return (gate * (h @ w["up"])) @ w["down"]

    rows = []
    for row in tokens:
        x = p["embed"][np.concatenate([[0], row[:-1]])]
        x = x * np.sqrt(c.d_model) if c.scaled_embeddings else x
        for i in range(c.layers):
            w = {name: leaf[i] for name, leaf in p["layers"].items()}
            h = norm(x, w["attention_norm"])
            if c.parallel_block:
                x = x + attend(h, w) + mlp(h, w)
            else:
                x = x + attend(h, w)
                x = x + mlp(norm(x, w["mlp_norm"]), w)
        table = p["embed"] if c.tied_embeddings else p["head"]
        rows.append(norm(x, p["final_norm"]) @ table.T)
    return np.stack(rows)


@pytest.mark.numeric
@pytest.mark.parametrize("config", [SERIAL, PARALLEL], ids=["serial", "parallel"])
def test_logits_equal_the_float64_reference(config):
    params, tokens = trained_like(config), tokens_of((2, 9))
    logits = forward(config, params, tokens)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference(config, params, tokens))


def test_a_logit_sees_bos_and_the_tokens_before_it_only():
    params, tokens = trained_like(SERIAL), tokens_of((2, 9))
    changed = tokens.copy()
    changed[0, 6] = 3 + (tokens[0, 6] - 2) % 29
    before, after = (forward(SERIAL, params, t) for t in (tokens, changed))
    moved = np.abs(np.asarray(before - after))[0].max(-1)
    assert (moved[:7] == 0).all() and (moved[7:] > 1e-4).all()


def test_padding_does_not_touch_real_tokens():
    params, tokens = trained_like(SERIAL), tokens_of((2, 9))
    padded = np.pad(tokens, ((0, 0), (0, 7)))
    short = forward(SERIAL, params, tokens)
    assert_close(forward(SERIAL, params, padded)[:, :9], short)


@pytest.mark.numeric
def test_how_layers_are_run_changes_no_loss_and_no_gradient():
    params, tokens = trained_like(SERIAL), tokens_of((2, 9))

    def value(config, params):
        return jnp.square(models.forward(config, params, tokens)).mean()

    run = jax.jit(jax.value_and_grad(value, 1), static_argnums=0)
    plain = run(SERIAL, params)
    for change in ({"unroll": 2}, {"remat": True}):
        other = run(dataclasses.replace(SERIAL, **change), params)
        # Backwards is as long as forwards.
        jax.tree.map(lambda a, b: assert_close(a, b, 2 * CLOSE), plain, other)


def test_bfloat16_activations_leave_parameters_alone_and_logits_close():
    params, tokens = trained_like(SERIAL), tokens_of((2, 9))
    half = dataclasses.replace(SERIAL, dtype="bfloat16")
    logits = forward(half, params, tokens)
    exact = forward(SERIAL, params, tokens)
    assert logits.dtype == jnp.float32
    error = float(jnp.abs(logits - exact).mean() / jnp.abs(exact).mean())
    assert 1e-4 < error < 0.05


def test_init_is_plain_stacked_and_decided_by_the_seed():
    params = models.init(SERIAL, 1)
    assert type(params) is dict and type(params["layers"]) is dict
    assert params["layers"]["query"].shape == (2, 16, 32)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    again, other = models.init(SERIAL, 1), models.init(SERIAL, 2)
    np.testing.assert_array_equal(params["embed"], again["embed"])
    assert not np.allclose(params["embed"], other["embed"])
    first, second = params["layers"]["up"]
    assert not np.allclose(first, second)


def test_the_first_loss_is_about_that_of_guessing():
    tokens = tokens_of((2, 9))
    logits = forward(SERIAL, models.init(SERIAL, 0), tokens)
    assert 0.5 < float(jnp.std(logits)) < 2


def test_parameter_count_agrees_with_the_leaves_and_a_tied_table_counts_once():
    for config in (SERIAL, PARALLEL):
        leaves = jax.tree.leaves(models.init(config, 0))
        assert models.parameter_count(config) == sum(leaf.size for leaf in leaves)
    untied = dataclasses.replace(SERIAL, tied_embeddings=False)
    extra = models.parameter_count(untied) - models.parameter_count(SERIAL)
    assert extra == 32 * 16


def test_impossible_sizes_are_refused_all_at_once():
    with pytest.raises(UserError) as error:
        dataclasses.replace(
            SERIAL, d_model=-4, kv_heads=3, head_dim=7, activation="relu", dtype="int8"
        )
    for name in ("d_model = -4", "kv_heads = 3", "head_dim = 7", "'relu'", "'int8'"):
        assert name in str(error.value)
