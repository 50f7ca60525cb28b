"""Methods on the sphere where directions cancel, to nothing or to rounding."""

import numpy as np
import pytest
from tolerance import rounding

from merging import merge, methods
from merging.methods.spherical import _CANCELLED

pytestmark = pytest.mark.numeric
# A product of float32 and the ten additions of a piece of 1,024, over the square of the
# shortest sum whose length is taken; of the length itself half of that.
OFF = rounding(11) / _CANCELLED**2 / 2


def merged(models, method):
    """Merge leaves by the names "0", "1", …, without a base."""
    experts = {str(i): {"w": model} for i, model in enumerate(models)}
    return np.asarray(merge(None, experts, method)["w"], np.float64)


@pytest.fixture(scope="module")
def directions():
    return np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32)


NEAR = (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1)


@pytest.mark.parametrize("share", NEAR)
def test_opposite_models_keep_the_mean_of_their_lengths_under_karcher(
    directions, share
):
    one, noise = directions
    models = [one, -3 * (one + np.float32(share) * noise)]
    found = np.linalg.norm(merged(models, methods.karcher()))
    lengths = [np.linalg.norm(np.float64(model)) for model in models]
    assert found == pytest.approx(np.mean(lengths), rel=OFF)


def test_what_is_opposite_does_not_pull_the_first_direction(directions):
    one, _ = directions
    found = merged([one, -3 * one], methods.karcher())
    np.testing.assert_allclose(found, 2 * np.float64(one), rtol=rounding(11))


@pytest.mark.parametrize("share", NEAR)
def test_opposite_models_are_added_straight_or_keep_their_lengths_under_multislerp(
    directions, share
):
    one, noise = directions
    models = [one, -3 * (one + np.float32(share) * noise)]
    found = merged(models, methods.multislerp())
    if share <= 0.01:
        straight = np.mean(np.float64(models), axis=0)
        largest = np.abs(models).max()
        np.testing.assert_allclose(found, straight, rtol=0, atol=rounding(2, largest))
    else:
        lengths = [np.linalg.norm(np.float64(model)) for model in models]
        assert np.linalg.norm(found) == pytest.approx(np.mean(lengths), rel=OFF)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weights", [(1, -1, 1), (0.1, 0.2, -0.3, 1), (0, 0, 1)])
def test_weights_that_cancel_among_models_with_a_direction_add_straight(
    directions, weights
):
    some = [directions[0], directions[1], directions[0] - directions[1]]
    models = [*some[: len(weights) - 1], 0 * directions[0]]
    found = merged(models, methods.karcher(weights=weights))
    straight = sum(w * np.float64(m) for w, m in zip(weights, models, strict=True))
    largest = np.abs(models).max()
    off = rounding(2 * len(weights), largest)
    np.testing.assert_allclose(found, straight, rtol=0, atol=off)


@pytest.mark.parametrize("along", ["tensor", "row"])
@pytest.mark.parametrize("share", NEAR)
def test_opposite_models_are_interpolated_straight_or_along_the_arc_by_nuslerp(
    directions, share, along
):
    one, noise = directions
    models = [one, -(one + np.float32(share) * noise)]
    found = merged(models, methods.nuslerp(along=along))
    if share <= 1e-3:
        straight = np.mean(np.float64(models), axis=0)
        off = rounding(2, np.abs(models).max())
        np.testing.assert_allclose(found, straight, rtol=0, atol=off)
    elif share >= 0.03:
        # Halfway between two of equal length: of that length, on any arc.
        lengths = [np.linalg.norm(np.float64(model)) for model in models]
        assert np.linalg.norm(found) == pytest.approx(np.mean(lengths), rel=0.01)
