"""Rules: which method merges which leaf, and numbers that change over the depth."""

import pytest

from merging import UserError, methods
from merging.merge import rules

LEAVES = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    *(f"model.layers.{i}.mlp.weight" for i in range(5)),
    *(f"model.layers.{i}.norm.weight" for i in range(5)),
]


def test_the_first_rule_that_is_found_decides():
    found = rules.recipe(
        LEAVES,
        "ties(density=0.3)",
        ["norm => base", r"layers\.[01]\. => average", "layers => task_arithmetic()"],
    )
    assert found["model.layers.0.norm.weight"] is None
    assert found["model.layers.1.mlp.weight"] == methods.average()
    assert found["model.layers.2.mlp.weight"] == methods.task_arithmetic()
    assert found["model.embed_tokens.weight"] == methods.ties(density=0.3)


def test_each_rule_ranks_its_own_leaves_whatever_its_numbers():
    """A density that another rule has, too, must not join the two rankings."""
    for density in (0.5, 0.50001):
        found = rules.recipe(LEAVES, "ties(density=0.5)", [f"mlp => ties({density=})"])
        methods_ = {found["lm_head.weight"], found["model.layers.0.mlp.weight"]}
        assert len(methods_) == 2
        assert len(set(found.values())) == 2
    found = rules.recipe(LEAVES, "average", ["mlp => average()"])
    assert len(set(found.values())) == 1  # an average has nothing to find


def test_numbers_go_over_the_depth_in_straight_lines():
    text = "task_arithmetic(scale=by_layer(0, 1, 0.5), weights=(1, by_layer(2, 4)))"
    found = rules.recipe(LEAVES, text)
    scales = [found[f"model.layers.{i}.mlp.weight"].scale for i in range(5)]
    weights = [found[f"model.layers.{i}.mlp.weight"].weights for i in range(5)]
    assert scales == [0, 0.5, 1, 0.75, 0.5]
    assert weights == [(1, 2), (1, 2.5), (1, 3), (1, 3.5), (1, 4)]
    assert found["model.embed_tokens.weight"].scale == 0
    assert found["lm_head.weight"].scale == 0.5


@pytest.mark.parametrize(
    "path",
    ["layers/3/attn/wq", "transformer.h.3.attn.weight", "blocks_3/w", "x/layer.3.w"],
)
def test_a_layer_is_a_number_after_its_word(path):
    assert rules.layer_depths([path, path.replace("3", "6")])[path] == 0.5


def test_a_path_is_known_around_its_layers_number():
    leaf = rules.layer_leaf("encoder.block.3.layer.0.weight")
    assert leaf == ("encoder.block.", 3, ".layer.0.weight")
    assert leaf.path(12) == "encoder.block.12.layer.0.weight"
    assert rules.layer_leaf("model.norm.weight") is None
    # A number that no model has layers for is a name.
    assert rules.layer_leaf(f"layers.{'9' * 5000}.weight") is None


def test_an_embedding_is_before_the_layers_and_a_head_behind_them():
    names = ("model.embed_tokens.weight", "transformer.wte.weight", "embed_out.weight")
    assert [*map(rules.is_embedding, names)] == [True, True, False]
    assert rules.layer_depths(names)["embed_out.weight"] == 1


def test_values_are_read_and_never_run():
    spec = rules.parse("ties( density = (0.2, 0.5), scope='tensor', weights=None )")
    assert spec.method(0.0) == methods.ties(density=(0.2, 0.5), scope="tensor")
    for text in (
        "ties(density=__import__('os'))",
        "ties(density=open('x'))",
        "ties(0.2)",
        "ties(**{})",
        "ties(density=0.2) or 1",
        "ties(density=",
        "ties().x",
        "ties(density=by_layer(1))",
        "ties(" * 3000,
        f"ties(density={'9' * 400})",
        f"ties(density=by_layer(0.1, {'9' * 400}))",
        f"ties(density={'9' * 5000})",
        "ties(density=by_layer(0.1, 1e400))",
        "ties(scale=-1e400)",
        "ties(density={[]})",
        "ties(density=1j)",
        "ties(density=0.1, density=0.2)",
    ):
        with pytest.raises(UserError, match="is no method") as caught:
            rules.parse(text)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("mlp", "is no rule; write"),
        ("( => base", r"'\(': the pattern is malformed: it leaves a group"),
        ("[b-a] => base", "the pattern is malformed: bad character range"),
        ("a{99999999999999999999} => base", "has '{99999.*', which is not taken"),
        ("(" * 3000 + " => base", "is no line of at most 1000 characters"),
        ("(a|a)" * 38 + "q => base", "may fit in too many ways"),
        ("mlq => base", "match no leaf: mlq"),
        ("mlp => tise()", "unknown method 'tise'.*ties"),
        ("mlp => ties(densty=1)", "densty.*density"),
        ("mlp => ties(density=2)", r"density must be in \(0, 1\]"),
    ],
)
def test_a_wrong_rule_is_named(rule, words):
    with pytest.raises(UserError, match=words):
        rules.recipe(LEAVES, "average", [rule])


def test_a_ranking_of_the_whole_model_does_not_change_by_layer():
    with pytest.raises(UserError, match='scope="tensor"'):
        rules.recipe(LEAVES, "ties(density=by_layer(0.1, 0.5))")
    split = rules.recipe(LEAVES, "ties(density=by_layer(0.1, 0.5), scope='tensor')")
    assert len(set(split.values())) == 5


def test_numbers_per_expert_follow_the_experts_order():
    method = methods.rht(density=(0.2, 0.5, 1.0), weights=(1, 2, 3))
    turned = method.reordered((2, 0, 1))
    assert turned == methods.rht(density=(1.0, 0.2, 0.5), weights=(3, 1, 2))
    assert turned.of(1) == methods.rht(density=0.2).transforms
    with pytest.raises(UserError, match="3 weights for 2 experts, 3 values of density"):
        method.reordered((0, 1))
