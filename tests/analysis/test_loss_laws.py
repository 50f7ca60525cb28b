"""Laws: the published table, numbers that are known, and tests on what was not seen."""

import numpy as np
import pytest

from merging.analysis import bootstrap_laws, laws
from merging.analysis.laws import Observation
from merging.runtime.errors import UserError

# arXiv 2509.24244, table 20: macro cross-entropy over 16 domains, by k.
TABLE_20 = dict(
    zip(
        (2, 4, 6, 8, 10, 12, 14, 16),
        (0.7774, 0.7331, 0.7051, 0.6874, 0.6685, 0.6603, 0.6509, 0.6437),
        strict=True,
    )
)


def table(counts=TABLE_20):
    return [Observation(1.5e9, k, TABLE_20[k]) for k in counts]


def test_the_published_table_follows_the_law_with_b_free():
    law = laws.fit(table())
    assert law.r_squared >= 0.999
    assert law.at_bound == ()
    assert 4 < law.parameters["b"] < 7
    plain = laws.fit(table(), weights="none")
    assert plain.r_squared >= 0.999


def test_the_published_table_is_predicted_from_small_k():
    sure, found = bootstrap_laws.held_out(
        table((2, 4, 8, 16)), lambda o: o.k <= 8, resamples=40
    )
    (one,) = found
    assert (one.k, one.observed) == (16, 0.6437)
    assert one.error <= 0.01
    assert sure.of == bootstrap_laws.RESIDUALS
    # Three points tell three numbers, and not how sure they are.
    assert np.isnan(one.low) and one.covered is None
    _, found = bootstrap_laws.held_out(table(), lambda o: o.k <= 10, resamples=40)
    assert [p.k for p in found] == [12, 14, 16]
    assert all(p.low < p.predicted < p.high for p in found)


SIZES = (1e5, 1e6, 1e7, 1e8)
TRUE = {"L": 1.2, "B": 40.0, "beta": 0.3, "A": 15.0, "gamma": 0.25, "b": 0.6}


def grid(
    noise=0.0, seeds=1, subsets=1, counts=(1, 2, 4, 8), sizes=(1e5, 1e6, 1e7, 1e8)
):
    rng = np.random.default_rng(0)
    law = laws.Law(laws.MERGING, TRUE, 1.0, 0.0, 0.0, "none", ())
    return [
        Observation(
            N,
            k,
            float(law.predict(N, k)) + noise * rng.standard_normal() / k**0.5,
            str(seed),
            str(subset),
        )
        for N in sizes
        for k in counts
        for seed in range(seeds)
        for subset in range(subsets)
    ]


def test_the_numbers_of_an_exact_law_come_back():
    law = laws.fit(grid())
    assert law.r_squared == pytest.approx(1, abs=1e-9)
    for name, value in TRUE.items():
        assert law.parameters[name] == pytest.approx(value, rel=1e-3), name
    assert law.predict(1e9, 16) == pytest.approx(
        1.2 + 40 * 1e9**-0.3 + 15 * 1e9**-0.25 / 16.6, rel=1e-5
    )


def test_an_interval_holds_the_truth_and_shrinks_with_seeds():
    widths = []
    for seeds in (4, 36):
        sure = bootstrap_laws.bootstrap(grid(0.01, seeds, 2), weights="k", resamples=30)
        assert sure.of == bootstrap_laws.SEEDS
        low, high = sure.around(1e6, 4)
        truth = 1.2 + 40 * 1e6**-0.3 + 15 * 1e6**-0.25 / 4.6
        assert low - 0.002 < truth < high + 0.002
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_a_resample_of_other_sizes_is_drawn_again():
    """A draw of the third seed alone has one size: another form, without L*."""
    observed = grid(0.01, 2, sizes=(1e3, 4e3, 1.6e4))
    observed += [one._replace(seed="2") for one in observed if one.N == 1.6e4]
    sure = bootstrap_laws.bootstrap(observed, resamples=30)
    assert sure.of == bootstrap_laws.SEEDS and len(sure.drawn) == 30
    assert all(set(law.parameters) == set(TRUE) for law in sure.drawn)
    low, high = sure.interval("L")
    assert low <= high


def test_seeds_whose_draws_never_tell_the_law_leave_its_residuals(monkeypatch):
    observed = grid(0.01, 3)
    fit = laws.fit

    def refused(of, form, weights, start=None):
        # A resample repeats a seed, or is everything.
        if start is not None and len({o.seed for o in of}) < 3:
            raise UserError("too few")
        return fit(of, form, weights, start)

    monkeypatch.setattr(bootstrap_laws, "_TRIES", 1)
    monkeypatch.setattr(laws, "fit", refused)
    sure = bootstrap_laws.bootstrap(observed, resamples=10)
    assert sure.of == bootstrap_laws.RESIDUALS and len(sure.drawn) == 10


@pytest.mark.parametrize("repeats", [1, 2, 4, 5])
def test_residuals_are_drawn_unless_two_seeds_share_most(repeats):
    counts = (1, 2, 3, 4, 6, 8, 12)
    truth = 1.5
    rng = np.random.default_rng(0)
    observed = [
        Observation(1e6, k, truth + 0.8 / (k + 0.5) + 0.02 * rng.standard_normal(), "0")
        for k in counts
    ]
    observed += [one._replace(seed="1") for one in observed[:repeats]]
    sure = bootstrap_laws.bootstrap(observed, resamples=60)
    most = repeats > len(counts) / 2
    assert sure.of == (bootstrap_laws.SEEDS if most else bootstrap_laws.RESIDUALS)
    if not most:
        low, high = sure.around(1e6, 4)
        assert high - low > 0.005
        assert low < truth + 0.8 / 4.5 < high


def test_a_larger_size_is_predicted_with_its_interval():
    observed = grid(0.003, 3)
    sure, found = bootstrap_laws.held_out(observed, lambda o: o.N < 1e8, resamples=30)
    assert [one.N for one in found] == [1e8] * 4
    assert max(one.error for one in found) < 0.05
    assert all(one.low <= one.predicted <= one.high for one in found)
    assert sum(one.covered for one in found) >= 3


def test_a_saturating_curve_comes_back():
    observed = [Observation(1e6, k, 0.4 * (1 - np.exp(-k / 3.0))) for k in (1, 2, 4, 8)]
    law = laws.fit(observed, laws.SATURATING, "none")
    assert law.parameters["a"] == pytest.approx(0.4, rel=1e-6)
    assert law.parameters["tau"] == pytest.approx(3.0, rel=1e-6)
    # Straight lines do not tell τ, and it says so.
    straight = [Observation(1e6, k, 0.01 * k) for k in (1, 2, 4, 8)]
    assert laws.fit(straight, laws.SATURATING, "none").at_bound == ("tau",)


def test_a_falling_gain_has_a_negative_asymptote():
    observed = [Observation(1e6, k, -0.1 * (1 - np.exp(-k))) for k in (1, 2, 4)]
    assert laws.fit(observed, laws.SATURATING).parameters["a"] < 0


def test_what_hangs_on_a_term_of_nothing_is_not_told_and_has_no_interval():
    def law(value):
        places = [(N, k) for N in SIZES for k in (2, 4, 8)]
        observed = [Observation(N, k, value(N, k)) for N, k in places]
        return bootstrap_laws.bootstrap(observed, weights="none", resamples=20)

    rising = law(lambda N, k: 1.2 + 40 * N**-0.3 + 0.001 * k)
    assert rising.law.parameters["A"] == 0
    assert {*rising.law.at_bound} == {"A", "gamma", "b"}
    assert {*rising.law.free} == {"gamma", "b"}
    assert np.isnan([rising.interval(name) for name in rising.law.free]).all()
    assert not np.isnan([rising.interval(name) for name in ("A", "beta")]).any()
    growing = law(lambda N, k: 1 + 0.01 * np.log(N) + 1 / k)
    assert growing.law.parameters["B"] == 0 and growing.law.free == ("beta",)
    assert {"B", "beta"} <= {*growing.law.at_bound}
    assert np.isnan(growing.interval("beta")).all()
    one = laws.fit([Observation(1e6, k, 1 + 0.1 * k) for k in (1, 2, 4, 8)])
    assert ({*one.at_bound}, one.free) == ({"tail", "b"}, ("b",))


def test_a_number_that_too_many_resamples_do_not_tell_has_no_interval():
    told = laws.Law(laws.MERGING, TRUE, 1.0, 0.0, 0.0, "none", ())
    untold = told._replace(at_bound=("A", "gamma", "b"), free=("gamma", "b"))
    for count, known in ((1, True), (2, False)):
        drawn = (*[told] * (40 - count), *[untold] * count)
        sure = bootstrap_laws.Sureness(told, drawn, bootstrap_laws.SEEDS, 0.95)
        assert np.isfinite(sure.interval("gamma")).all() == known
        assert np.isfinite(sure.interval("A")).all()


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="2 different .* 3 numbers"):
        laws.fit(table((2, 4)))
    with pytest.raises(UserError, match="4 different .* 6 numbers"):
        laws.fit(grid(counts=(1, 2), sizes=(1e5, 1e6)))
    with pytest.raises(UserError, match="two sizes do not tell"):
        laws.fit(grid(sizes=(1e5, 1e6)))
    with pytest.raises(UserError, match="of one N"):
        laws.fit(grid(), laws.SATURATING)
    with pytest.raises(UserError, match="nothing to predict"):
        bootstrap_laws.held_out(table(), lambda o: True)
