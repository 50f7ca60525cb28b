"""Scores and generation against plain forward passes of the same model."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from tolerance import decoder_length, rounding

from merging import models
from merging.runtime import sharding

CONFIG = models.DecoderConfig(
    vocab_size=24, d_model=16, layers=2, heads=2, kv_heads=1, head_dim=8, d_ff=24
)
PARAMS = jax.tree.map(lambda x: 2 * x, models.init(CONFIG, 3))
LENGTHS = np.array([5, 12, 1, 9])
TOKENS = np.where(
    np.arange(12) < LENGTHS[:, None],
    np.random.default_rng(0).integers(3, 24, (4, 12)),
    0,
).astype(np.int32)


# What a log-probability may be off by, relative to the largest: 53 positions at most.
CLOSE = rounding(
    decoder_length(layers=2, width=16, inner=16, mlp=24, context=53, vocabulary=24)
)


def assert_close(found, expected):
    atol = CLOSE * float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


logits = jax.jit(models.logits, static_argnums=0)


def log_p(tokens, config=CONFIG, prefix=0):
    """Return log p of what comes at each of a row's tokens, [T, V]."""
    opened = np.insert(tokens, 0, prefix)[None, :-1]
    return np.asarray(jax.nn.log_softmax(logits(config, PARAMS, opened)))[0]


# Continuations of one to four tokens of the four rows, which differ in number.
RNG, ROOM = np.random.default_rng(1), 6
CONTINUATIONS = [
    [RNG.integers(3, 24, n).tolist() for n in sizes]
    for sizes in ([1, 3, 2], [4, 4, 1], [2], [1, 1, 1, 1])
]
BOS = np.zeros(4, np.int32)
PREFIXES = np.array([0, 0, 7, 3], np.int32)


predictor_module = sys.modules["merging.models.predictor"]
decoder_module = sys.modules["merging.models.decoder"]


def questions(continuations, d_model=None):
    """Lay prompts and continuations out as `Predictor.score` takes them."""
    tails = [
        [
            (c, token, following)
            for c, one in enumerate(ways)
            for token, following in zip(one, one[1:], strict=False)
        ]
        for ways in continuations
    ]
    room = ROOM if max(map(len, tails)) else 0
    firsts = np.zeros((4, 4), np.int32)
    segments, targets = np.full((4, room), -1, np.int32), np.zeros((4, room), np.int32)
    tokens = np.zeros((4, d_model or 12 + room), np.int32)
    for row, (ways, tail) in enumerate(zip(continuations, tails, strict=True)):
        firsts[row, : len(ways)] = [one[0] for one in ways]
        sequence = [*TOKENS[row, : LENGTHS[row]], *(token for _, token, _ in tail)]
        tokens[row, : len(sequence)] = sequence
        for m, (segment, _, following) in enumerate(tail):
            segments[row, m], targets[row, m] = segment, following
    return PREFIXES, tokens, LENGTHS, firsts, segments, targets


def whole_row(row, continuation, config):
    """Score one continuation by a plain forward over prompt and continuation."""
    start = LENGTHS[row]
    sequence = [*TOKENS[row, :start], *continuation]
    tokens = np.array(sequence + [0] * (20 - len(sequence)), np.int32)
    table = log_p(tokens, config, int(PREFIXES[row]))
    return sum(table[start + i, token] for i, token in enumerate(continuation))


VARIANTS = {
    "plain": {},
    "local layers": dict(
        window=2, local_layers=(True, False), local_rope_theta=100.0, unroll=2
    ),
}


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_continuations_behind_one_prompt_score_as_each_on_its_own(variant):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    got = models.predictor(config).score(PARAMS, *questions(CONTINUATIONS))
    for row, ways in enumerate(CONTINUATIONS):
        expected = [whole_row(row, one, config) for one in ways]
        assert_close(got[row, : len(ways)], expected)


def test_logits_that_are_made_a_few_at_a_time_give_the_same_scores(monkeypatch):
    whole = models.predictor(CONFIG).score(PARAMS, *questions(CONTINUATIONS))
    monkeypatch.setattr(predictor_module, "LOGITS", 200)
    few = models.predictor.__wrapped__(CONFIG)
    assert_close(few.score(PARAMS, *questions(CONTINUATIONS)), whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_that_attend_some_at_a_time_give_the_same_scores(variant, monkeypatch):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    whole = models.predictor(config).score(PARAMS, *questions(CONTINUATIONS))
    monkeypatch.setattr(decoder_module, "QUERIES", 3)
    some = models.predictor.__wrapped__(config)
    assert_close(some.score(PARAMS, *questions(CONTINUATIONS)), whole)


def test_continuations_of_one_token_need_nothing_behind_the_prompt():
    ways = [[[token] for token in (5, 9, 11)] for _ in range(4)]
    arguments = questions(ways)
    assert arguments[4].shape == (4, 0)
    got = models.predictor(CONFIG).score(PARAMS, *arguments)
    expected = [[whole_row(i, one, CONFIG) for one in ways[i]] for i in range(4)]
    assert_close(got[:, :3], expected)


def test_a_continuation_is_greedy_where_generation_gives_it():
    predictor = models.predictor(CONFIG)
    made = predictor.generate(PARAMS, PREFIXES, TOKENS, LENGTHS, 8, ())
    made = np.asarray(made)[:, :3].tolist()
    other = [[*row[:2], (row[2] + 1) % 24] for row in made]
    ways = [[m, o, m[:1], o[2:]] for m, o in zip(made, other, strict=True)]
    found = predictor.score_greedy(PARAMS, *questions(ways))
    assert_close(found[:, :4], predictor.score(PARAMS, *questions(ways)))
    expected = [[1, 0, 1, o[2] == m[0]] for m, o in zip(made, other, strict=True)]
    assert found[:, 4:].tolist() == expected


def test_of_equal_logits_the_first_is_the_greedy_one():
    logits = np.array([[[1.0, 3.0, 3.0, 0.0]]])
    best = [predictor_module._is_best(logits, np.array([[i]])) for i in range(4)]
    assert np.ravel(best).tolist() == [False, True, False, False]


def test_padding_behind_a_row_changes_no_score():
    narrow = models.predictor(CONFIG).score(PARAMS, *questions(CONTINUATIONS))
    wide = models.predictor(CONFIG).score(PARAMS, *questions(CONTINUATIONS, 40))
    assert_close(narrow, wide)


def repeated_forward(prompt, count, ends=(), config=CONFIG):
    """Greedy continuation by a whole forward pass per token."""
    sequence, out = list(prompt), []
    while len(out) < count and not set(ends) & set(out):
        row = np.array(sequence + [0] * (20 - len(sequence)), np.int32)
        out.append(int(log_p(row, config)[len(sequence)].argmax()))
        sequence.append(out[-1])
    return out + [0] * (count - len(out))


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_equals_repeated_forward_up_to_the_first_end_mark(variant):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    rows = [TOKENS[i, :n] for i, n in enumerate(LENGTHS)]
    free = [repeated_forward(row, 8, config=config) for row in rows]
    ends = (free[0][5], free[1][2])  # one row ends by each, and others may not
    expected = [repeated_forward(row, 8, ends, config) for row in rows]
    assert expected[:2] != free[:2]
    assert len({tuple(row) for row in free}) == 4  # the rows are worth comparing
    got = models.predictor(config).generate(PARAMS, BOS, TOKENS, LENGTHS, 8, ends)
    np.testing.assert_array_equal(got, expected)
    assert not np.asarray(got)[0, 6:].any() and not np.asarray(got)[1, 3:].any()


def test_other_weights_reuse_the_compiled_functions():
    predictor = models.predictor(dataclasses.replace(CONFIG))
    assert predictor is models.predictor(CONFIG)
    other = models.init(CONFIG, 4)
    arguments = questions(CONTINUATIONS)
    ours = predictor.score(PARAMS, *arguments)
    size = predictor.score._cache_size()
    scores = predictor.score(other, *arguments)
    assert predictor.score._cache_size() == size
    assert not np.allclose(scores, ours)


def test_a_mesh_changes_no_score_and_no_generation():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shardings = sharding.shardings(PARAMS, models.partition_rules(CONFIG), mesh)
    params = jax.device_put(PARAMS, shardings)
    one, many = models.predictor(CONFIG), models.predictor(CONFIG, mesh)
    arguments = questions(CONTINUATIONS)
    scores = many.score(params, *arguments)
    assert len(scores.sharding.device_set) == 8
    assert_close(scores, one.score(PARAMS, *arguments))
    np.testing.assert_array_equal(
        many.generate(params, BOS, TOKENS, LENGTHS, 8, ()),
        one.generate(PARAMS, BOS, TOKENS, LENGTHS, 8, ()),
    )


def test_rows_stay_split_where_the_weights_are_split_as_well():
    """Else every device computes all rows, and the scratch is that of one device."""
    config = dataclasses.replace(CONFIG, vocab_size=512)
    mesh = sharding.make_mesh({"fsdp": 8})
    params = models.abstract(config)
    places = sharding.shardings(params, models.partition_rules(config), mesh)
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
