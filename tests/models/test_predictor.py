"""Scores and generation against plain forward passes of the same model."""

import dataclasses

import jax
import numpy as np
import pytest

from merging import models, sharding

CONFIG = models.DecoderConfig(
    vocab_size=24, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=24
)
PARAMS = jax.tree.map(lambda x: 2 * x, models.init(CONFIG, 3))
LENGTHS = np.array([5, 12, 1, 9])
TOKENS = np.where(
    np.arange(12) < LENGTHS[:, None],
    np.random.default_rng(0).integers(3, 24, (4, 12)),
    0,
).astype(np.int32)


forward = jax.jit(models.forward, static_argnums=0)


def log_p(tokens, config=CONFIG):
    logits = forward(config, PARAMS, tokens)
    return np.asarray(jax.nn.log_softmax(logits))


def test_score_sums_the_continuation_only():
    prompts = np.array([2, 7, 0, 9])
    scores = models.predictor(CONFIG).score(PARAMS, TOKENS, prompts, LENGTHS)
    table = log_p(TOKENS)
    expected = [
        sum(table[i, t, TOKENS[i, t]] for t in range(prompts[i], LENGTHS[i]))
        for i in range(4)
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert scores[3] == 0


def test_choices_in_one_forward_score_as_each_on_its_own():
    predictor = models.predictor(CONFIG)
    choices = np.random.default_rng(1).integers(3, 24, (4, 3))
    got = predictor.score_choices(PARAMS, TOKENS, LENGTHS, choices)
    for c in range(3):
        longer = np.pad(TOKENS, ((0, 0), (0, 1)))
        longer[np.arange(4), LENGTHS] = choices[:, c]
        alone = predictor.score(PARAMS, longer, LENGTHS, LENGTHS + 1)
        np.testing.assert_allclose(got[:, c], alone, atol=1e-5)


def repeated_forward(prompt, count, eos, config):
    """Greedy continuation by a whole forward pass per token."""
    sequence, out = list(prompt), []
    while len(out) < count and eos not in out:
        row = np.array([sequence + [0] * (20 - len(sequence))], np.int32)
        out.append(int(log_p(row, config)[0, len(sequence)].argmax()))
        sequence.append(out[-1])
    return out + [0] * (count - len(out))


@pytest.mark.parametrize("unroll", [1, 2])
def test_generation_equals_repeated_forward_for_rows_of_any_length(unroll):
    config = dataclasses.replace(CONFIG, unroll=unroll)
    free = [
        repeated_forward(TOKENS[i, :n], 8, -1, config) for i, n in enumerate(LENGTHS)
    ]
    eos = free[0][3]  # so that one row ends early and others may not
    expected = [
        repeated_forward(TOKENS[i, :n], 8, eos, config) for i, n in enumerate(LENGTHS)
    ]
    assert len({tuple(row) for row in free}) == 4  # the rows are worth comparing
    got = models.predictor(config).generate(PARAMS, TOKENS, LENGTHS, 8, eos)
    np.testing.assert_array_equal(got, expected)
    assert not np.asarray(got)[0, 4:].any()


def test_other_weights_reuse_the_compiled_functions():
    predictor = models.predictor(dataclasses.replace(CONFIG))
    assert predictor is models.predictor(CONFIG)
    other = models.init(CONFIG, 4)
    prompts = np.zeros(4, int)
    predictor.score(PARAMS, TOKENS, prompts, LENGTHS)
    size = predictor.score._cache_size()
    scores = predictor.score(other, TOKENS, prompts, LENGTHS)
    assert predictor.score._cache_size() == size
    assert not np.allclose(scores, predictor.score(PARAMS, TOKENS, prompts, LENGTHS))


def test_a_mesh_changes_no_score_and_no_generation():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shardings = sharding.shardings(PARAMS, models.rules(CONFIG), mesh)
    params = jax.device_put(PARAMS, shardings)
    one, many = models.predictor(CONFIG), models.predictor(CONFIG, mesh)
    arguments = (TOKENS, np.zeros(4, int), LENGTHS)
    scores = many.score(params, *arguments)
    assert len(scores.sharding.device_set) == 8
    np.testing.assert_allclose(scores, one.score(PARAMS, *arguments), rtol=1e-5)
    np.testing.assert_array_equal(
        many.generate(params, TOKENS, LENGTHS, 4, 1),
        one.generate(PARAMS, TOKENS, LENGTHS, 4, 1),
    )


def test_rows_stay_split_where_the_weights_are_split_as_well():
    """Else every device computes all rows, and the scratch is that of one device."""
    config = dataclasses.replace(CONFIG, vocab_size=512)
    mesh = sharding.make_mesh({"fsdp": 8})
    params = models.abstract(config)
    places = sharding.shardings(params, models.rules(config), mesh)
    params, tokens = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        (params, jax.ShapeDtypeStruct((32, 64), np.int32)),
        (places, sharding.batch_sharding(mesh)),
    )
    score = jax.jit(lambda p, x: models.forward(config, p, x).max(axis=(1, 2)))
    with sharding.on(mesh):
        used = score.lower(params, tokens).compile().memory_analysis()
    logits = 32 * 64 * 512 * 4
    assert used.temp_size_in_bytes < logits / 2
