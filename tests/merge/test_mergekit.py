"""mergekit's rules: which number a parameter is for which leaf, and what is refused."""

import re

import numpy as np
import pytest
from mergekit_models import (
    PARTS,
    SINGLE,
    layer_weights,
    layers,
    model,
    names,
    outside_weights,
)
from safetensors.numpy import save_file

from merging import UserError, methods
from merging.checkpoints import open_checkpoint
from merging.merge import mergekit

LEAVES = names()


def test_models_with_their_parameters(plan):
    merge = plan(
        "ties",
        models=[model("a", weight=1.0, density=0.2), model("b", weight=0.5, density=1)],
        parameters={"normalize": True, "lambda": 0.9, "int8_mask": True},
    )
    expected = methods.get(
        "ties@mergekit", density=(0.2, 1.0), weights=(1, 0.5), scale=0.9
    )
    assert set(merge.recipe) == set(LEAVES)
    assert set(merge.recipe.values()) == {expected}
    assert list(merge.inputs.experts) == ["a", "b"] and merge.layers is None


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        ("linear", {"normalize": True}),
        ("task_arithmetic", {"normalize": False, "scale": 1.0}),
        ("ties", {"normalize": True, "scale": 1.0, "density": 1.0}),
        ("dare_linear", {"normalize": False, "rescale": True, "density": 1.0}),
        ("dare_ties", {"normalize": False, "rescale": True, "density": 1.0}),
    ],
)
def test_defaults_are_mergekits(plan, method, defaults):
    merge = plan(method, models=[model("a", weight=1), model("b", weight=2)])
    if "density" in defaults:
        defaults = defaults | {"density": (1.0, 1.0)}
    expected = methods.get(f"{method}@mergekit", weights=(1, 2), **defaults)
    assert set(merge.recipe.values()) == {expected}


def test_a_gradient_goes_over_the_layers_and_begins_outside_of_them(plan):
    merge = plan(models=[model("a", weight=[0.1, 0.4, 1.0])])
    assert layer_weights(merge) == pytest.approx([0.1, 0.3, 0.6, 1.0])
    # mergekit 0.1.5 has embedding, final norm and head at the first value.
    assert outside_weights(merge) == [0.1, 0.1, 0.1]


def test_the_first_filter_that_is_in_a_leafs_name_counts(plan):
    by_name = [
        {"filter": "up_proj", "value": [0.0, 3.0]},
        {"filter": "mlp", "value": 5.0},
        {"filter": "layers.2.", "value": 6.0},
        {"filter": "*", "value": 7.0},
        {"filter": "lm_head", "value": 8.0},
    ]
    merge = plan(models=[model("a", weight=by_name)])
    assert layer_weights(merge, "mlp.up_proj") == [0, 1, 2, 3]
    assert layer_weights(merge, "mlp.down_proj") == [5, 5, 5, 5]
    assert layer_weights(merge, "self_attn.q_proj") == [7, 7, 6, 7]
    assert outside_weights(merge) == [7, 7, 7]


def test_filters_of_two_parameters_hold_together(plan):
    merge = plan(
        "ties",
        models=[
            model(
                "a",
                weight=[{"filter": "mlp", "value": 2}, {"value": 1}],
                density=[{"filter": "up_proj", "value": 0.3}, {"value": 0.6}],
            )
        ],
    )
    found = [
        (m.weights, m.transforms[0].density)
        for m in (merge.recipe[f"model.layers.0.{part}.weight"] for part in PARTS)
    ]
    assert found == [((1,), (0.6,)), ((2,), (0.3,)), ((2,), (0.6,))]


def test_a_filter_list_that_fits_nothing_asks_the_slice_and_then_the_file(plan):
    never = [{"filter": "nothing", "value": 9}]
    merge = plan(
        slices=[
            {
                "sources": [layers("a", 0, 4, weight=never), layers("base", 0, 4)],
                "parameters": {"weight": [{"filter": "mlp", "value": 2}]},
            }
        ],
        parameters={"weight": [{"filter": "nothing", "value": 9}, {"value": 3}]},
    )
    assert layer_weights(merge, "mlp.up_proj") == [2, 2, 2, 2]
    assert layer_weights(merge, "self_attn.q_proj") == [3, 3, 3, 3]
    assert outside_weights(merge) == [3, 3, 3]
    # Then the default, where there is one.
    merge = plan("ties", models=[model("a", weight=1, density=never)])
    densities = {m.transforms[0].density for m in merge.recipe.values()}
    assert densities == {(1.0,)}


def test_an_empty_list_is_no_value(plan):
    merge = plan(models=[model("a", weight=[])], parameters={"weight": 0.5})
    assert layer_weights(merge) == [0.5] * 4


def test_a_weight_that_is_missing_is_refused(plan):
    with pytest.raises(UserError) as caught:
        plan(models=[model("a"), model("b", weight=[{"filter": "mlp", "value": 1}])])
    text = str(caught.value)
    assert re.search("a has no weight, which is required, for .* and 14 more", text)
    assert re.search("b has no weight, which is required, for .* and 6 more", text)


def test_switches_and_lambda_are_a_leafs_own_too(plan):
    merge = plan(
        models=[model("a", weight=1), model("b", weight=2)],
        parameters={
            "normalize": [{"filter": "mlp", "value": "yes"}, {"value": [False, True]}],
            "lambda": [{"filter": "layers.3", "value": 0.5}, {"value": "2e-1"}],
        },
    )

    def expected(normalize, scale):
        name = "task_arithmetic@mergekit"
        return methods.get(name, weights=(1, 2), normalize=normalize, scale=scale)

    assert merge.recipe[f"model.layers.0.{PARTS[0]}.weight"] == expected(False, 0.2)
    assert merge.recipe[f"model.layers.0.{PARTS[1]}.weight"] == expected(True, 0.2)
    # A switch has no value in between: the earlier one counts, but at the last layer.
    assert merge.recipe[f"model.layers.2.{PARTS[0]}.weight"] == expected(False, 0.2)
    assert merge.recipe[f"model.layers.3.{PARTS[0]}.weight"] == expected(True, 0.5)


def test_the_base_is_no_expert_but_of_linear(plan):
    both = [model("base", weight=9, density=0.1), model("a", weight=1)]
    assert layer_weights(plan(models=both)) == [1] * 4
    assert layer_weights(plan("linear", models=both)) == [(1, 9)] * 4  # a, base
    # linear merges a base that it is given, which then needs a weight.
    with pytest.raises(UserError, match="base has no weight"):
        plan("linear", base_model="base", models=[model("a", weight=1)])


def test_inputs_are_cast_to_dtype(plan):
    merge = plan(dtype=np.dtype(np.float16), models=[model("a", weight=1)])
    dtypes = {leaf.dtype for of in merge.inputs.abstracts for leaf in of.values()}
    assert dtypes == {np.dtype(np.float16)}


def test_densities_outside_of_0_to_1_are_all_or_nothing(plan):
    merge = plan("ties", models=[model("a", weight=1, density=-1)])
    assert {m.transforms[0].density for m in merge.recipe.values()} == {(0.0,)}
    merge = plan("dare_linear", models=[model("a", weight=1, density=1.5)])
    assert {m.transforms[0].density for m in merge.recipe.values()} == {(1.0,)}
    with pytest.raises(UserError, match="density is below 0"):
        plan("dare_linear", models=[model("a", weight=1, density=-1)])


def test_a_mean_of_weights_that_sum_to_0_is_refused_for_linear_only(plan):
    models = [model("a", weight=1), model("b", weight=-1)]
    with pytest.raises(UserError, match="lm_head.weight: .* must not sum to 0"):
        plan("linear", models=models)
    # There mergekit has infinities; here it divides by nothing.
    merge = plan(models=models, parameters={"normalize": True})
    plain = methods.get("task_arithmetic@mergekit", weights=(1, -1))
    assert set(merge.recipe.values()) == {plain}


# {method: (parameters of "a", of "b", of all, ours)}; the base is "base".
BOTH = {"weight": 0.5, "density": 0.3}
OURS = {
    "nuslerp": ({"weight": 1}, {"weight": 3}, {}, ("nuslerp", (1, 3), "tensor", 1.0)),
    "multislerp": (
        {"weight": 1},
        {"weight": 3},
        {"normalize_weights": False, "eps": 1e-6},
        ("multislerp", (1, 3), False, 1e-6, 1.0),
    ),
    "karcher": ({}, {}, {"max_iter": 3}, ("karcher", None, 3)),
    "model_stock": ({}, {}, {"filter_wise": True}, ("model_stock@mergekit", True)),
    "ties": (BOTH, BOTH, {"rescale": True},
             ("ties@mergekit", (0.3,) * 2, 1.0, (0.5,) * 2, True, True)),
    "breadcrumbs": (BOTH | {"gamma": 0.1}, BOTH, {"lambda": 2},
                    ("breadcrumbs@mergekit", (0.3,) * 2, (0.1, 0.01), 2.0, (0.5,) * 2)),
    "breadcrumbs_ties": (BOTH, BOTH, {"normalize": True},
                         ("breadcrumbs_ties@mergekit", (0.3,) * 2, (0.01,) * 2, 1.0,
                          (0.5,) * 2, True)),
    "della": (BOTH, BOTH | {"epsilon": 0.1}, {},
              ("della@mergekit", (0.3,) * 2, (0.15, 0.1), 1.0, (0.5,) * 2)),
    "della_linear": (BOTH, BOTH, {"rescale": False},
                     ("della_linear@mergekit", (0.3,) * 2, (0.15,) * 2, 1.0,
                      (0.5,) * 2, False, False)),
    "sce": ({}, {}, {"select_topk": 0.2}, ("sce@mergekit", 0.2)),
    "ram": ({}, {}, {"epsilon": 0.01}, ("ram", 0.01)),
    "ramplus_tl": ({}, {}, {"r": 0.3, "alpha": 1}, ("ramplus_tl", 0.3, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("method", OURS)
def test_a_method_of_mergekits_is_ours_with_its_numbers(plan, method):
    one, two, shared, (name, *values) = OURS[method]
    models = [model("a", **one), model("b", **two)]
    merge = plan(method, models=models, parameters=shared)
    known = methods.parameters(name)
    expected = methods.get(name, **dict(zip(known, values, strict=False)))
    assert set(merge.recipe.values()) == {expected}
    merges_base = method == "karcher"
    assert (merge.inputs.base is None) == merges_base
    assert len(merge.inputs.experts) == 2 + merges_base


@pytest.mark.parametrize(
    ("method", "expected"),
    [("nearswap", methods.nearswap(0.3)), ("arcee_fusion", methods.arcee_fusion())],
)
def test_methods_of_a_base_and_a_model(plan, method, expected):
    merge = plan(method, models=[model("a")], parameters={"t": 0.3} if method[0] == "n"
                 else {})  # fmt: skip
    assert set(merge.recipe.values()) == {expected}
    with pytest.raises(UserError, match=f"{method} takes 2 models, not 3"):
        plan(method, models=[model("a"), model("b")])


def test_slerp_goes_from_the_base_to_the_other_wherever_they_stand(plan):
    shared = {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.25}]}
    merge = plan("slerp", models=[model("a"), model("base")], parameters=shared)
    assert merge.inputs.base is None and list(merge.inputs.experts) == ["a", "base"]
    assert merge.recipe[LEAVES[0]].weights == (0.25, 0.75)
    assert merge.recipe["model.layers.3.mlp.up_proj.weight"].weights == (1, 0)
    with pytest.raises(UserError, match="the file has no t, which is required"):
        plan("slerp", models=[model("a")])
    with pytest.raises(UserError, match="slerp needs base_model"):
        plan("slerp", base_model=None, models=[model("a"), model("b")])


@pytest.mark.parametrize(
    ("flatten", "row_wise", "along"),
    [(True, True, "tensor"), (False, False, "row"), (False, True, "column")],
)
def test_nuslerp_takes_rows_for_columns_as_mergekit_does(
    plan, flatten, row_wise, along
):
    shared = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise, "weight": 1}
    models = [model("a"), model("b")]
    for base, scale in (("base", 1.0), (None, None)):
        merge = plan("nuslerp", base_model=base, models=models, parameters=shared)
        expected = methods.nuslerp((1, 1), along, scale)
        assert set(merge.recipe.values()) == {expected}


def test_what_a_method_cannot_take_is_refused_by_name(plan):
    with pytest.raises(UserError, match="model_stock takes 3 models at least, not 2"):
        plan("model_stock", models=[model("a")])
    with pytest.raises(UserError, match="density 0.9 ± epsilon 0.15 is not in"):
        plan("della", models=[model("a", weight=1, density=0.9)])
    slices = [
        {"sources": [layers("base", 0, 2), layers("a", 0, 2)]},
        {"sources": [layers(name, 2, 4) for name in ("base", "a", "b")]},
    ]
    with pytest.raises(UserError, match="ram has no weights, so that all slices must"):
        plan("ram", slices=slices)


def test_layers_without_numbers_have_no_depth(tmp_path):
    save_file({"layers.up": np.ones((4, 3), np.float32)}, tmp_path / SINGLE)
    uri = str(tmp_path)
    text = f"merge_method: linear\nmodels: [{{model: {uri}, parameters: %s}}]"
    source = {uri: open_checkpoint(uri)}
    document = mergekit.parse(text % "{weight: [0, 1]}")
    with pytest.raises(UserError, match="values over the depth need layers"):
        mergekit.plan(document, source, None)
    mergekit.plan(mergekit.parse(text % "{weight: 1}"), source, None)
