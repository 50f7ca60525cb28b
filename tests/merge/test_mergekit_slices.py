"""mergekit's slices: which layers of which models, with what numbers."""

import numpy as np
import pytest
from mergekit_models import PARTS, layer_weights, layers, model, names, outside_weights

from merging import UserError, methods

LEAVES = names()


def test_each_slice_has_its_own_depth_and_parameters(plan):
    merge = plan(
        "linear",
        slices=[
            {"sources": [layers("a", 0, 3, weight=[1, 3]), layers("b", 0, 3)]},
            {
                "sources": [layers("a", 3, 4, weight=[5, 7]), layers("b", 3, 4)],
                "parameters": {"weight": 4},
            },
        ],
        parameters={"weight": 9},
    )
    # A slice of one layer has the last value; embeddings go with the first slice, what
    # follows the layers with the last, at their first values.
    assert layer_weights(merge) == [(1, 9), (2, 9), (3, 9), (7, 4)]
    assert outside_weights(merge) == [(1, 9), (5, 4), (5, 4)]


def origins(merge, name):
    """Return {leaf of the output: (model, its leaf)} of a view."""
    view = merge.inputs.base if name == "base" else merge.inputs.experts[name]
    found = {}
    for path in merge.inputs.abstracts[0]:
        out = np.empty(12, np.float32)
        view.read_into(path, 0, out)
        found[path] = out
    return found


def stored(source, path):
    out = np.empty(12, np.float32)
    source.read_into(path, 0, out)
    return out


def layer(number, part=PARTS[0]):
    return f"model.layers.{number}.{part}.weight"


def test_layers_are_left_out_repeated_and_turned_around(plan, sources):
    ranges = ((3, 4), (0, 2), (1, 3))
    merge = plan(
        slices=[
            {"sources": [layers("a", *r, weight=1), layers("base", *r)]} for r in ranges
        ]
    )
    assert merge.layers == (3, 0, 1, 1, 2)
    assert set(merge.recipe) == set(names(5))
    for name in ("base", "a"):
        found = origins(merge, name)
        for here, there in enumerate(merge.layers):
            expected = stored(sources[name], layer(there))
            assert np.array_equal(found[layer(here)], expected)


def test_filters_see_a_models_own_layer_numbers(plan):
    by_layer = [{"filter": "layers.3.", "value": 3}, {"value": 1}]
    merge = plan(
        slices=[
            {
                "sources": [
                    layers("a", 0, 2, weight=by_layer),
                    layers("b", 2, 4, weight=by_layer),
                    layers("base", 1, 3),
                ]
            }
        ]
    )
    assert layer_weights(merge, count=2) == [(1, 1), (1, 3)]


def test_a_slice_may_have_a_base_of_its_own(plan, sources):
    merge = plan(
        slices=[
            {"sources": [layers("a", 0, 2, weight=1), layers("base", 0, 2)]},
            {
                "sources": [layers("base", 2, 4, weight=2), layers("b", 2, 4)],
                "base_model": "b",
            },
        ]
    )
    base = origins(merge, "base")
    assert np.array_equal(base[layer(1)], stored(sources["base"], layer(1)))
    assert np.array_equal(base[layer(2)], stored(sources["b"], layer(2)))
    # With the last slice, whose base is b, goes what follows the layers.
    assert np.array_equal(base[LEAVES[-1]], stored(sources["b"], LEAVES[-1]))
    assert layer_weights(merge) == [1, 1, 2, 2]


def test_slices_may_merge_other_models_and_another_number_of_them(plan, sources):
    merge = plan(
        "linear",
        slices=[
            {"sources": [layers("a", 0, 2, weight=1), layers("b", 0, 2, weight=2)]},
            {"sources": [layers("c", 2, 4, weight=3)]},
        ],
    )
    first, second = merge.inputs.experts
    assert layer_weights(merge)[0] in [(1, 2), (2, 1)]
    # Where there is one model only, the other place weighs nothing.
    assert sorted(layer_weights(merge)[2]) == [0, 3]
    place = layer_weights(merge)[2].index(3)
    found = origins(merge, (first, second)[place])
    assert np.array_equal(found[layer(2)], stored(sources["c"], layer(2)))
    assert np.array_equal(found[layer(0)], stored(sources["a"], layer(0)))


def test_passthrough_puts_layers_on_one_another(plan, sources):
    scale = [{"filter": "mlp", "value": [0.2, 0.6]}]
    merge = plan(
        "passthrough",
        slices=[
            {"sources": [layers("a", 0, 3)]},
            {"sources": [layers("b", 1, 4, scale=scale)]},
        ],
    )
    assert merge.layers == (0, 1, 2, 1, 2, 3)
    assert layer_weights(merge, count=6) == pytest.approx([1, 1, 1, 0.2, 0.4, 0.6])
    assert not {m.combiner for m in merge.recipe.values()} - {
        methods.passthrough().combiner
    }
    (name,) = merge.inputs.experts
    found = origins(merge, name)
    assert np.array_equal(found[layer(3)], stored(sources["b"], layer(1)))
    assert np.array_equal(found[LEAVES[0]], stored(sources["a"], LEAVES[0]))
    with pytest.raises(UserError, match="passthrough takes one model, not 2"):
        plan("passthrough", base_model=None, models=[model("a"), model("b")])


def test_models_in_another_order_are_the_same_experts(plan):
    merge = plan(
        "linear",
        slices=[
            {"sources": [layers("a", 0, 2, weight=1), layers("b", 0, 2, weight=2)]},
            {"sources": [layers("b", 2, 4, weight=4), layers("a", 2, 4, weight=3)]},
        ],
    )
    assert list(merge.inputs.experts) == ["a", "b"]
    assert layer_weights(merge) == [(1, 2), (1, 2), (3, 4), (3, 4)]


def test_models_of_other_depths_give_layers_to_one_slice(plan, sources):
    merge = plan(
        "linear",
        slices=[
            {
                "sources": [
                    layers("short", 0, 2, weight=1),
                    layers("a", 2, 4, weight=1),
                ]
            }
        ],
    )
    assert merge.layers == (0, 1)
    assert np.array_equal(origins(merge, "a")[layer(1)], stored(sources["a"], layer(3)))
    with pytest.raises(UserError, match="do not have the same leaves"):
        plan(
            "linear",
            models=[model("short", weight=1), model("a", weight=1)],
        )


def test_the_final_norm_takes_no_more_sources_than_the_first_slice_has(plan):
    one = {"sources": [layers("b", 0, 2, weight=1), layers("base", 0, 2)]}
    more = [layers("base", 2, 4), layers("a", 2, 4, weight=2)]
    more += [layers("b", 2, 4, weight=3)]
    merge = plan(slices=[one, {"sources": more}])
    assert sorted(layer_weights(merge)[2]) == [2, 3]
    assert sorted(outside_weights(merge)[2]) == [0, 2]
    with pytest.raises(UserError, match="name it first"):
        plan(slices=[one, {"sources": more[1:] + more[:1]}])


def test_layers_that_a_model_does_not_have_are_refused(plan):
    sources = [layers("a", 3, 6, weight=1), layers("short", 0, 3, weight=1)]
    with pytest.raises(UserError) as caught:
        plan("linear", slices=[{"sources": sources}])
    assert "a has 4 layers, and layer_range is [3, 6]" in str(caught.value)
    assert "short has 2 layers, and layer_range is [0, 3]" in str(caught.value)
