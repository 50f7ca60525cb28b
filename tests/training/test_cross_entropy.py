"""The loss in parts is the loss of all logits, and so are its gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import rounding

from merging import models
from merging.models.decoder import output_logits
from merging.training import cross_entropy

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 21, 8, 40
CONFIG = models.DecoderConfig(
    vocab_size=VOCABULARY,
    d_model=WIDTH,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=8,
    d_ff=8,
)


@pytest.fixture(autouse=True)
def four_tokens_of_a_row_together(monkeypatch):
    monkeypatch.setattr(cross_entropy, "FEW", 0)
    monkeypatch.setattr(cross_entropy, "TOKENS", 4 * ROWS)


def batch(learned, seed=0):
    """A table, hidden, tokens and weights; of row i learned[i] tokens have weight."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    weights = np.zeros((ROWS, LENGTH), np.float32)
    for row, count in zip(weights, learned, strict=True):
        chosen = rng.choice(LENGTH, count, replace=False)
        row[chosen] = rng.uniform(0.5, 2, count)
    return table, hidden, tokens, weights


def in_float64(table, hidden, tokens, weights, softcap=None):
    """Return Σ w (log Σ exp l − l_token), and its gradients, by the formula."""
    table, hidden = table.astype(np.float64), hidden.astype(np.float64)
    raw = hidden @ table.T
    logits = raw if softcap is None else softcap * np.tanh(raw / softcap)
    own = np.eye(VOCABULARY)[tokens]
    power = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share = power / power.sum(axis=-1, keepdims=True)
    value = -np.sum(weights * np.log(np.sum(share * own, axis=-1)))
    slope = 1 if softcap is None else 1 - (logits / softcap) ** 2
    back = weights[..., None] * (share - own) * slope
    return value, (np.einsum("btv,btd->vd", back, hidden), back @ table)


@pytest.mark.numeric
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(
    "learned", [(5, 0, 2), (21, 21, 21), (4, 4, 4), (0, 0, 0), (1, 20, 9)]
)
def test_sum_and_gradients_are_the_formulas(learned, softcap):
    config = dataclasses.replace(CONFIG, logit_softcap=softcap)
    logits = functools.partial(output_logits, config)
    given = batch(learned)
    function = functools.partial(cross_entropy.total, logits)
    assert cross_entropy.positions(ROWS, LENGTH, VOCABULARY, 1) == 4
    got, gradients = jax.jit(jax.value_and_grad(function, (0, 1)))(*given)
    value, expected = in_float64(*given, softcap=softcap)
    # A sum over the width, one over the vocabulary, one over the tokens learned.
    close = rounding(WIDTH + VOCABULARY + 2 * ROWS * LENGTH)
    np.testing.assert_allclose(got, value, rtol=close, atol=close)
    np.testing.assert_allclose(jax.jit(function)(*given), value, rtol=close, atol=close)
    for ours, theirs in zip(gradients, expected, strict=True):
        most = np.abs(theirs).max() + 1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=close * most)


@pytest.mark.numeric
def test_gradients_in_16_bits_are_scaled_by_an_exact_number():
    given = batch((5, 3, 21))
    logits = functools.partial(output_logits, CONFIG)

    def loss(table, hidden, tokens, weights):
        return cross_entropy.total(logits, table, hidden, tokens, weights) / 300.0

    hidden = jnp.asarray(given[1], jnp.bfloat16)
    ours = jax.grad(loss, 1)(given[0], hidden, *given[2:])
    exact = np.asarray(hidden.astype(jnp.float32))
    _, (_, theirs) = in_float64(given[0], exact, *given[2:])
    # What is deterministic: each element's own roundings average out.
    scale = np.sum(ours.astype(np.float64) * theirs) / np.sum(theirs**2) * 300
    assert abs(scale - 1) < 1e-3


def test_what_is_not_learned_is_not_looked_at():
    table, hidden, tokens, weights = batch((4, 4, 4))
    hidden[weights == 0] = np.nan
    logits = functools.partial(output_logits, CONFIG)
    function = functools.partial(cross_entropy.total, logits)
    found = jax.value_and_grad(function, 1)(table, hidden, tokens, weights)
    assert np.isfinite(found[0])


def test_the_gradient_of_hidden_goes_to_its_own_place():
    given = batch((1, 1, 1))
    logits = functools.partial(output_logits, CONFIG)
    function = functools.partial(cross_entropy.total, logits)
    gradient = jax.grad(function, 1)(*given)
    moved = np.any(np.asarray(gradient) != 0, axis=-1)
    np.testing.assert_array_equal(moved, given[3] != 0)


def test_several_devices_and_few_logits_make_all_at_once(monkeypatch):
    assert cross_entropy.positions(16, 512, 49152, 1) == 64
    assert cross_entropy.positions(16, 512, 49152, 2) == 512
    monkeypatch.setattr(cross_entropy, "FEW", 16 * 512 * 49152)
    assert cross_entropy.positions(16, 512, 49152, 1) == 512


def test_a_mesh_makes_all_at_once():
    given = batch((5, 0, 2))
    logits = functools.partial(output_logits, CONFIG)
    function = functools.partial(cross_entropy.total, logits)
    with jax.set_mesh(jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])):
        assert "while" not in str(jax.make_jaxpr(function)(*given))
    assert "while" in str(jax.make_jaxpr(function)(*given))


def test_examples_can_be_mapped_over():
    """As the Fisher information does: a gradient for each example."""
    table, *rest = batch((5, 0, 21))
    logits = functools.partial(output_logits, CONFIG)

    def one(table, *row):
        return cross_entropy.total(logits, table, *(x[None] for x in row))

    each = jax.vmap(jax.grad(one), (None, 0, 0, 0))(table, *rest)
    rows = zip(*rest, strict=True)
    expected = np.stack([jax.grad(one)(table, *row) for row in rows])
    close = rounding(WIDTH + VOCABULARY + LENGTH) * np.abs(expected).max()
    np.testing.assert_allclose(each, expected, rtol=0, atol=close)
