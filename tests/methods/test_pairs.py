"""arcee_fusion's importance, where differences are large and where they are small."""

import jax
import numpy as np
import pytest
import references
from tolerance import rounding

from merging import merge, methods
from merging.methods.pairs import _divergence

pytestmark = pytest.mark.numeric


def test_the_largest_element_is_kept_however_large():
    delta = np.linspace(0.1, 0.2, 16, dtype=np.float32)
    delta[3] = 100
    expert = {"w": delta}
    base = {"w": np.zeros_like(delta)}
    found = np.asarray(merge(base, [expert], methods.arcee_fusion())["w"])
    np.testing.assert_array_equal(found, np.where(delta == 100, delta, 0))


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1, 10, 60, 200, 1000])
def test_the_divergence_is_that_of_float64_at_any_scale(scale):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(5, 300)).astype(np.float32)
    delta = (scale * rng.normal(size=(5, 300))).astype(np.float32)
    expected = divergence(np.float64(base), np.float64(delta))
    found = np.asarray(jax.jit(_divergence)(base, delta))[:, 0]
    # Both of its terms are means of Δ: ten levels of additions, ten more of the shares'
    # sum; an exponential, a product, a division and a subtraction.
    off = rounding(24, np.abs(delta).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=off)
    assert (expected > 2 * off).all()


def divergence(base, delta):
    q, p = references._softmax(base), references._softmax(base + delta)
    log = np.log(np.where(p > 0, p, 1)) - np.log(q)
    return np.where(p > 0, p * log, 0).sum(axis=1)
