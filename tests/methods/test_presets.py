"""The registry, its errors, and methods as values."""

import jax
import pytest

from merging import methods
from merging.runtime.errors import UserError


def test_defaults_are_those_of_the_methods_table():
    defaults = {e.name: e.parameters for e in methods.catalogue()}
    assert list(defaults) == methods.names()
    assert defaults["task_arithmetic"]["scale"] == 0.4
    assert (defaults["ties"]["density"], defaults["ties"]["scale"]) == (0.2, 1.0)
    assert (defaults["ties"]["scope"], defaults["ties"]["ties"]) == (
        "global",
        "keep_all",
    )
    assert defaults["dare"]["density"] == 0.1
    assert defaults["dare_ties"]["density"] == 0.1
    assert defaults["dare_ties"]["scale"] == 1.0
    assert defaults["dare_ties"]["trim_density"] is None
    assert (defaults["rht"]["density"], defaults["rht"]["scale"]) == (0.7, 1.0)


def test_every_entry_says_where_it_comes_from():
    for entry in methods.catalogue():
        assert "arXiv" in entry.paper or "mergekit" in entry.paper
        assert entry.definition and "\n" not in entry.definition


@pytest.mark.parametrize("name", methods.names())
def test_methods_are_hashable_and_equal_by_value(name):
    one, other = methods.get(name), methods.get(name)
    assert one == other and hash(one) == hash(other)
    entry = next(e for e in methods.catalogue() if e.name == name)
    key = next((k for k in ("weights", "scale", "factor") if k in entry.parameters), "")
    if key:
        whole, real = ([1, 2], (1.0, 2.0)) if key == "weights" else (2, 2.0)
        changed = methods.get(name, **{key: whole})
        assert changed == methods.get(name, **{key: real}) != one


def test_numbers_are_traced_and_words_are_not():
    def structure(method):
        return jax.tree.structure(method)

    assert structure(methods.ties(scale=0.3)) == structure(methods.ties(density=0.9))
    assert structure(methods.ties()) != structure(methods.ties(scope="tensor"))
    assert jax.tree.leaves(methods.ties(0.25, 0.5)) == [0.25, 0.5]


def test_the_granularity_is_the_coarsest_of_the_parts():
    assert methods.dare_ties(trim_density=0.5).granularity == "element"
    assert methods.ties(scope="row").granularity == "row"
    assert methods.task_arithmetic().granularity == "element"
    assert methods.model_stock().granularity == "row"
    assert methods.iso_c().granularity == "matrix"


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="unknown method 'tise': did you mean ties"):
        methods.get("tise")


def test_an_unknown_parameter_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="parameter of ties 'densty'.* density"):
        methods.get("ties", densty=0.2)


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, float("nan"), "0.2", None, True])
@pytest.mark.parametrize("name", ["ties", "dare_ties", "rht", "breadcrumbs", "sce"])
def test_a_density_out_of_range_is_refused(name, density):
    with pytest.raises(UserError, match="density must be"):
        methods.get(name, density=density)


def test_words_out_of_the_vocabulary_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="unknown scope 'globl': did you mean global"):
        methods.ties(scope="globl")
    with pytest.raises(UserError, match="unknown tie rule 'keep'"):
        methods.ties(ties="keep")
    with pytest.raises(UserError, match="unknown rule for a zero sum 'plus'"):
        methods.ties(zero="plus")


def test_weights_that_cannot_be_used_are_refused():
    with pytest.raises(UserError, match="must not sum to 0"):
        methods.average(weights=(1, -1))
    with pytest.raises(UserError, match="must not be negative"):
        methods.ties(weights=(1, -1))
    with pytest.raises(UserError, match="one per expert"):
        methods.dare(weights=())
    with pytest.raises(UserError, match="each weight must be a finite number"):
        methods.dare(weights=(1, float("inf")))
    with pytest.raises(UserError, match="scale must be a finite number"):
        methods.rht(scale=float("nan"))


@pytest.mark.parametrize(
    ("weights", "total"),
    [((1, -1 + 1e-9), "0"), ((1e-46, 1e-46), "0"), ((3e38, 3e38), "inf")],
)
def test_weights_whose_sum_float32_does_not_have_are_refused(weights, total):
    with pytest.raises(UserError, match=f"must not sum to {total} in float32"):
        methods.average(weights=weights)
    assert methods.average(weights=(1, 1e-46)).weights == (1, 1e-46)


def test_numbers_that_methods_cannot_use_are_refused():
    with pytest.raises(UserError, match="unknown vector 'rows': did you mean row"):
        methods.nuslerp(along="rows")
    with pytest.raises(UserError, match="max_iter must be a whole number"):
        methods.karcher(max_iter=2.5)
    with pytest.raises(UserError, match="weights of a mean must not sum to 0"):
        methods.multislerp(weights=(1, -1))
    with pytest.raises(UserError, match="t must be positive"):
        methods.nearswap(t=0)
    with pytest.raises(UserError, match="gamma must be in"):
        methods.breadcrumbs(gamma=1.5)
    with pytest.raises(UserError, match="density ± epsilon must be in"):
        methods.della(density=0.95, epsilon=0.1)
    with pytest.raises(UserError, match="as many values"):
        methods.della(density=(0.5, 0.6), epsilon=(0.1, 0.1, 0.1))
    with pytest.raises(UserError, match="epsilon must not be negative"):
        methods.ram(epsilon=-1)
    with pytest.raises(UserError, match="unknown scope 'global'"):
        methods.model_stock(scope="global")


def test_the_building_blocks_compose_into_new_methods():
    method = methods.compose(
        "majority vote",
        methods.drop(0.5),
        methods.trim(0.5, "row"),
        methods.rescale(0.5),
        combiner=methods.elect_sign(by="count", reduce="sum", weighted=True),
        scale=0.5,
    )
    assert [type(t).__name__ for t in method.transforms] == ["Drop", "Trim", "Rescale"]
    assert method.granularity == "row"
