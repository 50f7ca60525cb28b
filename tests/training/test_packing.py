"""Sequences that share rows teach what they teach in rows of their own."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import decoder_length, rounding

from merging import models, training
from merging.runtime import sharding
from merging.training import batches, packing, steps

CONFIG = models.DecoderConfig(
    vocab_size=24, d_model=16, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=16
)
LENGTH = 16
TERMS = decoder_length(
    layers=2, width=16, inner=32, mlp=16, context=LENGTH, vocabulary=24
)
FAMILIES = {
    "opened by BOS": {},
    "without BOS": {"bos_id": None},
    "with local layers": {"local_layers": (True, False), "window": 3},
}
SIZES = (1, 2, 3, 5, 5, 7, 9, 16)


def sequences(sizes, length=LENGTH, seed=0):
    """Random sequences, of which the last two tokens are learned, if there are two."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((len(sizes), length), np.int32)
    weights = np.zeros((len(sizes), length), np.float32)
    for row, size in enumerate(sizes):
        tokens[row, :size] = rng.integers(3, 24, size)
        weights[row, max(size - 2, 0) : size] = rng.uniform(0.5, 2)
    return training.Examples(tokens, weights)


@given(st.lists(st.integers(0, LENGTH), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_sequence_lies_over_another_or_past_its_rows_end(sizes):
    places = packing.placed(np.array(sizes), LENGTH)
    taken = np.zeros((len(sizes), LENGTH), int)
    for size, (row, begin) in zip(sizes, places, strict=True):
        assert begin + size <= LENGTH
        taken[row, begin : begin + size] += 1
    assert taken.max() <= 1 and taken.sum() == sum(sizes)
    used = 1 + places[:, 0].max()
    assert set(places[:, 0]) == set(range(used))
    # No two rows fit into one: or the second's sequences had gone into the first.
    filled = sorted(taken.sum(axis=1)[:used])
    assert used == 1 or filled[0] + filled[1] > LENGTH
    assert packing.rows_needed(np.array([sizes, sizes]), LENGTH) == used


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_each_sequence_alone(family):
    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    params, examples = models.init(config, 0), sequences(SIZES)
    batch = packed(examples, len(SIZES))
    assert batch.tokens.shape == (1, 3, LENGTH)  # 48 tokens

    def total(params, *of):
        return steps.total_loss(config, params, *of)[0]

    found = jax.jit(jax.value_and_grad(total))
    value, gradient = found(params, *(array[0] for array in batch))
    alone = [found(params, t[None], w[None]) for t, w in zip(*examples, strict=True)]
    parts = [float(part) for part, _ in alone]
    assert float(value) == pytest.approx(
        sum(parts), abs=rounding(TERMS + len(SIZES), sum(map(abs, parts)))
    )
    gradients = [jax.tree.leaves(part) for _, part in alone]
    for ours, *theirs in zip(jax.tree.leaves(gradient), *gradients, strict=True):
        size = sum(float(np.abs(part).max()) for part in theirs)
        bound = rounding(2 * TERMS + len(SIZES), size)
        np.testing.assert_allclose(ours, sum(theirs), rtol=0, atol=bound)


def packed(examples, size, steps_=1, mesh=None):
    """Return the batches of the first steps, every example in each."""
    with batches.Loader(batches.opened(examples, 24), size, 0, mesh, steps_) as loader:
        return loader.batches(0, steps_, steps_)


def contents(batch, step):
    """Return each sequence of a step: its tokens and their weights, sorted."""
    found = []
    for tokens, weights, segments in zip(*(x[step] for x in batch), strict=True):
        for segment in set(segments[segments >= 0]):
            mine = segments == segment
            found.append((tokens[mine].tolist(), weights[mine].tolist()))
    return sorted(found)


def test_a_step_holds_each_of_its_sequences_once_whatever_the_calls(monkeypatch):
    examples = sequences(SIZES * 3)
    with batches.Loader(batches.opened(examples, 24), 8, 0, None, 6) as loader:
        whole, later = loader.batches(0, 6, 6), loader.batches(4, 6, 6)
    assert whole.tokens.shape[1] < 8
    seen = sum((contents(whole, step) for step in range(3)), [])
    given_ = [
        (tokens[:size].tolist(), weights[:size].tolist())
        for tokens, weights, size in zip(*examples, SIZES * 3, strict=True)
    ]
    assert sorted(seen) == sorted(given_)  # an epoch
    for one, other in zip(whole, later, strict=True):
        np.testing.assert_array_equal(one[4:6], other[:2])
    monkeypatch.setattr(batches, "TOGETHER", 16)  # two steps
    assert packed(examples, 8, 6).tokens.shape == whole.tokens.shape


def test_rows_divide_over_the_devices_and_short_batches_stay_as_they_are():
    mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
    batch = packed(sequences(SIZES), len(SIZES), mesh=mesh)
    assert batch.tokens.shape == (1, 4, LENGTH)
    assert contents([np.asarray(x) for x in batch], 0) == contents(
        packed(sequences(SIZES), len(SIZES)), 0
    )
    full = packed(sequences([16, 9, 12, 10]), 4)
    assert full.segments is None and full.tokens.shape == (1, 4, LENGTH)


def test_training_on_shared_rows_ends_where_it_would_without(monkeypatch):
    examples = sequences(SIZES * 4)
    hyperparameters = training.Hyperparameters(
        steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=1, log_every=2
    )

    def losses():
        params = models.init(CONFIG, 0)
        return training.train(CONFIG, params, examples, hyperparameters).losses

    ours = losses()
    monkeypatch.setattr(packing, "rows_needed", lambda lengths, length: 8)
    # Relative; earlier steps reach a loss by the gradient times the learning rate.
    np.testing.assert_allclose(ours, losses(), rtol=rounding(TERMS + 32))
