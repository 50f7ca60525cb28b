"""Widths against values that are known, and the kinematic threshold."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from merging.analysis import kinematics, saturation, widths
from merging.analysis.judged import Score


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
    assert kinematics.threshold([300] * 8, 1000) == 4
    # Three subspaces of 300 dimensions fill 900, and meet in 0 alone.
    assert kinematics.threshold([300] * 8, 900) == 4
    assert kinematics.threshold([300] * 8, 899) == 3
    assert kinematics.threshold([600, 100, 100, 300], 1000) == 4


def geometry(names, elements):
    """Return a geometry of orthogonal task vectors, as far as K* asks for it."""
    model = SimpleNamespace(
        elements=elements, gram=np.eye(len(names)), energy_squared=len(names) ** 2 / 500
    )
    return SimpleNamespace(experts=names, model=model)


def thresholds(critical, elements=1000):
    made = list(
        saturation.dimension_rows(geometry(tuple(critical), elements), critical)
    )
    known = {r.of: r for r in made if r.quantity == "threshold"}
    return known.get(("parameters",)), made


def test_the_threshold_has_the_ends_of_the_brackets():
    critical = {name: (1.0, 0.5) for name in "abcdefgh"}
    found, _ = thresholds(critical)
    # 1000 of 1000 each, or 500: one or two fit.
    assert (found.value, found.low, found.high, found.at) == (2, 2, 3, 8)
    found, _ = thresholds({"a": (0.5, 0.3), "b": (0.3, 0.2)})
    # 500 + 300 + 400 (their mean); 300 + 200 + 2 · 250, and one more.
    assert (found.low, found.high) == (3, 5)


def test_where_no_density_loses_anything_the_threshold_has_no_upper_end():
    found, _ = thresholds({"a": (0.005, 0.0), "b": (0.005, 0.0)})
    assert (found.value, found.low, found.high) == (201, 201, None)
    found, _ = thresholds({"a": (0.005, 0.0), "b": (1.0, 0.5)})
    # (5 + 1000) of 1000; 0, 500, then 250 each: only the fifth exceeds it.
    assert (found.low, found.high) == (2, 5)


def test_an_expert_that_learned_nothing_is_left_out_of_the_threshold():
    found, made = thresholds({"a": (0.5, 0.3), "b": None, "c": (0.6, 0.5)})
    assert (found.value, found.high, found.at) == (2, 3, 2)
    values = {(r.quantity, r.of): r.value for r in made}
    assert values["critical_density", ("b",)] is None
    assert ("statistical_dimension", ("b",)) not in values
    found, made = thresholds({"a": None})
    assert found is None and [r.quantity for r in made].count("space") == 2


def test_more_than_the_base_has_been_learned():
    own = {"a": Score(0.5, None), "b": Score(0.4, None)}
    assert saturation.learned(own, {"a": Score(0.6, None), "b": Score(0.2, None)})
    assert not saturation.learned(own, own)
    assert not saturation.learned(own, {"a": Score(0.9, None), "b": Score(0.2, None)})


def test_too_few_experts_are_extrapolated():
    assert kinematics.threshold([100, 200], 1500) == 2 + 8 + 1
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
