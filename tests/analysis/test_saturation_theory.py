"""Widths against values that are known, and the kinematic threshold."""

import math

import numpy as np
import pytest

from merging.analysis import kinematics, widths


def simplex(count):
    """Return the Gram matrix of a regular simplex of unit vectors around 0."""
    found = np.full((count, count), -1 / (count - 1))
    np.fill_diagonal(found, 1)
    return found


def sure(estimate, truth):
    """Whether the truth is within five standard errors (the interval is 1.96)."""
    return abs(estimate.value - truth) <= 5 * (estimate.high - estimate.value) / 1.959


def test_orthonormal_points_have_the_known_widths():
    found = widths.widths(np.eye(6), draws=2**15)
    for k in range(1, 7):
        assert sure(found.hull[k - 1], widths.orthonormal_hull(k))
        assert sure(found.ellipsoid[k - 1], widths.orthonormal_ellipsoid(k))
    assert widths.orthonormal_hull(1) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert widths.orthonormal_ellipsoid(1) == pytest.approx(math.sqrt(2 / math.pi))
    assert widths.orthonormal_ellipsoid(2) == pytest.approx(math.sqrt(math.pi / 2))


def test_a_simplex_has_the_known_width():
    # zᵢ = √(K / (K − 1)) (xᵢ − x̄), so E max zᵢ is that of K independent ones, scaled;
    # of three, E max = 3 / (2 √π).
    (*_, last) = widths.widths(simplex(3), draws=2**15).hull
    assert sure(last, math.sqrt(3 / 2) * 3 / (2 * math.sqrt(math.pi)))
    (*_, last) = widths.widths(simplex(2), draws=2**15).hull
    assert sure(last, math.sqrt(2 / math.pi))


def test_equal_points_add_nothing():
    found = widths.widths(np.ones((4, 4)), draws=2**12)
    assert [m.value for m in found.marginal[1:]] == pytest.approx([0, 0, 0], abs=1e-12)


def test_marginal_widths_add_up_and_fall():
    found = widths.widths(np.eye(8), draws=2**15)
    sums = np.cumsum([m.value for m in found.marginal])
    np.testing.assert_allclose(sums, [h.value for h in found.hull], rtol=1e-12)
    marginal = [m.value for m in found.marginal]
    assert marginal == sorted(marginal, reverse=True)


def test_orders_do_not_depend_on_how_experts_are_listed():
    # Three alike and one apart: the first order has no gain until the last.
    gram = np.ones((4, 4))
    gram[3, :3] = gram[:3, 3] = 0
    as_given = widths.widths(gram, draws=2**13).marginal
    mean = widths.widths(gram, draws=2**15, orders=64).marginal
    assert as_given[1].value == pytest.approx(0, abs=1e-12)
    # The second is unlike the first in half of all orders.
    both = widths.orthonormal_hull(2) - widths.orthonormal_hull(1)
    assert abs(mean[1].value - both / 2) < 0.05


def test_the_same_seed_gives_the_same_widths():
    assert widths.widths(simplex(5), draws=2**12) == widths.widths(
        simplex(5), draws=2**12
    )


def test_the_threshold_is_where_the_sum_exceeds_the_space():
    found = kinematics.threshold([300] * 8, 1000, eta=0.05)
    assert found.sums[:4] == (300, 600, 900, 1200)
    width = math.sqrt(8 * math.log(80)) * math.sqrt(1000)  # 187
    assert (found.experts, found.extrapolated) == (4, False)
    assert found.low == math.floor((1000 - width) / 300) + 1 == 3
    assert found.high == math.floor((1000 + width) / 300) + 1 == 4


def test_too_few_experts_are_extrapolated():
    found = kinematics.threshold([100, 200], 1500)
    assert found.extrapolated and found.experts == 2 + 8 + 1
    assert kinematics.threshold([0, 0], 10) is None


def test_the_l1_cone_is_amelunxen_and_others():
    # Their figure 4 crosses (0.193, 0.5): half of all measurements recover that share.
    assert kinematics.l1_descent_cone(0.193) == pytest.approx(0.5, abs=2e-3)
    assert kinematics.l1_descent_cone(0.0) == 0
    assert kinematics.l1_descent_cone(1.0) == 1
    # Numerically, from the definition.
    tau = np.linspace(0, 6, 601)
    u = np.linspace(0, 12, 12001)
    step = u[1] - u[0]
    tails = [
        np.sum(np.maximum(u - t, 0) ** 2 * np.exp(-(u**2) / 2)) * step for t in tau
    ]
    expected = min(
        0.05 * (1 + tau**2) + 0.95 * math.sqrt(2 / math.pi) * np.array(tails)
    )
    assert kinematics.l1_descent_cone(0.05) == pytest.approx(expected, rel=1e-3)
