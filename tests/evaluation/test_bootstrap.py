"""Intervals against SciPy's bootstrap, and what is drawn together."""

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from tolerance import rounding

from merging.evaluation import bootstrap
from merging.tasks.metrics import METRICS

MEAN = METRICS["accuracy"].value
SUM = rounding(2 * 120, dtype=np.float64)  # of two means of 120, below 1
SCORES = np.random.default_rng(0).beta(2, 3, 120)[:, None]


def drawn(tables, name="copa", **options):
    how = bootstrap.Options(**options)
    return bootstrap.resampled(tables, MEAN, name=name, how=how)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    ours = bootstrap.interval(drawn([SCORES], resamples=20_000))
    theirs = scipy.stats.bootstrap(
        (SCORES[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=1
    )
    expected = theirs.confidence_interval
    # Two independent samples of 20,000: apart by a few percent of the width.
    width = expected.high - expected.low
    assert ours.low == pytest.approx(expected.low, abs=0.05 * width)
    assert ours.high == pytest.approx(expected.high, abs=0.05 * width)
    assert ours.deviation == pytest.approx(theirs.standard_error, rel=0.05)


def test_the_level_sets_the_width():
    values = drawn([SCORES])
    narrow, wide = (bootstrap.interval(values, level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < np.mean(SCORES) < narrow.high < wide.high


def test_draws_depend_on_seed_name_and_number_of_examples_only():
    np.testing.assert_array_equal(drawn([SCORES]), drawn([SCORES]))
    np.testing.assert_array_equal(drawn([2 * SCORES]), 2 * drawn([SCORES]))
    assert (drawn([SCORES], seed=1) != drawn([SCORES])).mean() > 0.9
    others = drawn([SCORES], name="rte")
    assert abs(np.corrcoef(others, drawn([SCORES]))[0, 1]) < 0.15


def test_blocks_of_draws_change_nothing(monkeypatch):
    expected = drawn([SCORES], resamples=50)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 500)
    np.testing.assert_array_equal(drawn([SCORES], resamples=50), expected)


def test_a_difference_on_the_same_examples_is_paired():
    """Two models that differ on few examples differ surely, however hard those are."""
    better = SCORES + 0.01
    difference = drawn([better]) - drawn([SCORES])
    np.testing.assert_allclose(difference, 0.01, rtol=0, atol=SUM)
    expected = scipy.stats.bootstrap(
        (SCORES[:, 0], np.roll(SCORES[:, 0], 1)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    rolled = np.roll(SCORES, 1, axis=0)
    values = drawn([SCORES], resamples=20_000) - drawn([rolled], resamples=20_000)
    ours = bootstrap.interval(values)
    width = expected.high - expected.low
    assert ours.low == pytest.approx(expected.low, abs=0.05 * width)
    assert ours.high == pytest.approx(expected.high, abs=0.05 * width)


def test_prompt_templates_of_a_dataset_are_drawn_together_and_averaged():
    both = drawn([SCORES, 1 - SCORES])
    np.testing.assert_allclose(both, 0.5, rtol=0, atol=SUM)
    mean = drawn([SCORES, SCORES + 0.2])
    np.testing.assert_allclose(mean, drawn([SCORES]) + 0.1, rtol=0, atol=SUM)


def test_bleu_is_found_anew_on_every_resample():
    targets = ["the cat sat on the mat", "a dog ran home", "it is true", "no"]
    said = ["the cat sat on a mat", "a dog walked home today", "it is true", "yes no"]
    measure = METRICS["bleu"]
    counts = measure.counts(targets, said)
    how = bootstrap.Options(resamples=20)
    values = bootstrap.resampled([counts], measure.value, name="x", how=how)
    draw = np.random.default_rng([0, bootstrap.zlib.crc32(b"x"), 4])
    rows = draw.integers(4, size=(20, 4))
    expected = [
        sacrebleu.corpus_bleu([said[i] for i in r], [[targets[i] for i in r]]).score
        for r in rows
    ]
    np.testing.assert_allclose(values, np.array(expected) / 100, rtol=1e-9)
    assert np.std(values) > 0.05
