"""The saturation fit finds what is there and says so when it is not."""

import math

import pytest

from merging.report import saturation
from merging.report.saturation import fit, gains
from merging.report.summaries import summarise


def curve(a, c, counts):
    return {K: a * (1 - math.exp(-K / c)) for K in counts}


@pytest.mark.parametrize(("a", "c"), [(0.3, 2.0), (0.01, 1.2), (0.8, 3.4)])
def test_an_exact_curve_is_recovered(a, c):
    found = fit(curve(a, c, (2, 4, 6, 8)))
    assert found.status == saturation.FITTED
    assert (found.asymptote, found.constant) == pytest.approx((a, c), rel=1e-4)
    assert found.saturation == pytest.approx(c * math.log(10), rel=1e-4)
    assert found.r_squared == pytest.approx(1)
    assert found.gain(found.saturation) == pytest.approx(0.9 * a, rel=1e-4)
    slope = (found.gain(3.001) - found.gain(2.999)) / 0.002
    assert found.marginal(3) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(
    ("gained", "status"),
    [
        (curve(0.3, 6, (2, 4, 8)), saturation.BEYOND),
        (curve(0.3, 0.5, (2, 4, 8)), saturation.EARLY),
        ({2: 0.1, 4: 0.2, 8: 0.4}, saturation.STRAIGHT),
        ({2: 0.1, 4: 0.2, 8: 0.1}, saturation.PEAKED),
        ({2: -0.1, 4: -0.2, 8: -0.3}, saturation.FALLING),
        ({2: 0.0, 4: 0.0, 8: 0.0}, saturation.FALLING),
        ({2: -0.3, 4: -0.2, 8: 0.1}, saturation.FALLING),
        ({2: 0.1, 8: 0.2}, saturation.FEW),
        ({}, saturation.FEW),
        ({2: -0.2, 3: 0.3, 4: -0.2, 8: 0.3}, saturation.POOR),
    ],
)
def test_status_says_what_the_points_allow(gained, status):
    found = fit(gained)
    assert found.status == status
    quoted = status in (saturation.FITTED, saturation.BEYOND)
    assert (found.saturation is not None) == quoted


def test_noise_moves_the_saturation_point_little():
    points = curve(0.3, 2.0, (2, 4, 6, 8))
    noisy = {K: v + e for (K, v), e in zip(points.items(), (1, -1, 1, -1), strict=True)}
    noisy = {K: points[K] + 0.004 * (v - points[K]) for K, v in noisy.items()}
    assert fit(noisy).saturation == pytest.approx(2 * math.log(10), rel=0.1)


@pytest.fixture
def rising(model):
    """Gains over a base of 0.2 on all held-in datasets, by (seed, K)."""

    def grid(values):
        rows = []
        for (seed, K), gain in values.items():
            subset = tuple(f"skill{i}" for i in range(K))
            rows += model(
                *("1x", "pt", "expert" if K == 1 else "ties", subset, seed),
                *(lambda d, g=gain: 0.2 + g, lambda d: 0.7, lambda d: 0.2),
            )
        return summarise(rows)

    return grid


def test_marginal_gains_are_per_expert_and_per_seed(rising):
    one, two = {(0, 2): 0.1, (0, 4): 0.14}, {(1, 2): 0.2, (1, 4): 0.2, (1, 8): 0.4}
    # Seed 2 has no K = 2 to be compared with.
    grid = rising(one | two | {(2, 4): 0.5})
    found = gains(grid, "1x", "pt", "ties", "gain")
    marginal = {step: dict(seeds) for step, seeds in found.marginal.items()}
    assert marginal[0, 2] == pytest.approx({0: 0.05, 1: 0.1})
    assert marginal[2, 4] == pytest.approx({0: 0.02, 1: 0.0})
    # Seed 0 never reached K = 8: its step must not be taken from seed 1's score.
    assert marginal[4, 8] == pytest.approx({1: 0.05})
    share = gains(grid, "1x", "pt", "ties", "normalised_gain_all")
    assert share.marginal[0, 2] == pytest.approx({0: 0.1, 1: 0.2})


def test_experts_evaluated_on_everything_are_the_point_at_one(rising):
    grid = rising({(0, 1): 0.06, (0, 2): 0.1})
    found = gains(grid, "1x", "pt", "ties", "gain")
    assert list(found.by_seed) == [1, 2]
    assert found.marginal[1, 2] == pytest.approx({0: 0.04})


def test_no_merges_no_gains(rising):
    assert gains(rising({(0, 1): 0.1}), "1x", "pt", "ties", "gain") is None
