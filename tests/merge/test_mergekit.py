"""mergekit's YAML: read under mergekit's rules, or refused with everything listed."""

import pytest

from merging import UserError, methods
from merging.merge import mergekit, rules

LEAVES = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(4) for part in ("mlp", "attn")),
]
TIES = """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 1.0, density: 0.2}}
  - {model: b, parameters: {weight: 0.5, density: 0.3}}
parameters: {normalize: true, lambda: 0.9, int8_mask: true}
dtype: float32
out_dtype: bfloat16
"""


def read(tmp_path, text):
    (tmp_path / "m.yml").write_text(text)
    return mergekit.read(tmp_path / "m.yml")


def treated(merge):
    return rules.recipe(LEAVES, merge.method, merge.leaf_rules)


def test_models_with_their_parameters(tmp_path):
    merge = read(tmp_path, TIES)
    assert (merge.base, merge.experts, merge.dtype) == ("base", ("a", "b"), "bfloat16")
    expected = methods.get(
        "ties@mergekit", density=(0.2, 0.3), weights=(1, 0.5), scale=0.9
    )
    assert set(treated(merge).values()) == {expected}


def test_defaults_are_mergekits(tmp_path):
    for name, preset in (
        ("linear", methods.get("linear@mergekit", weights=(1, 2))),
        ("task_arithmetic", methods.get("task_arithmetic@mergekit", weights=(1, 2))),
    ):
        merge = read(
            tmp_path,
            f"merge_method: {name}\nbase_model: base\nmodels:\n"
            "  - {model: a, parameters: {weight: 1}}\n"
            "  - {model: b, parameters: {weight: 2}}\n",
        )
        assert set(treated(merge).values()) == {preset}


def test_gradients_and_filters(tmp_path):
    merge = read(
        tmp_path,
        """
merge_method: task_arithmetic
base_model: base
models:
  - model: base
  - model: a
    parameters:
      weight:
        - {filter: mlp, value: [0, 1, 0.5, 0]}
        - {filter: embed, value: 7}
        - {value: 2}
""",
    )
    found = treated(merge)
    assert merge.experts == ("a",)
    scales = [found[f"model.layers.{i}.mlp.weight"].weights for i in range(4)]
    assert scales == [(0,), (1,), (0.5,), (0,)]
    assert found["model.layers.2.attn.weight"].weights == (2,)
    assert found["model.embed_tokens.weight"].weights == (7,)
    assert found["lm_head.weight"].weights == (2,)


def test_slices_of_equal_ranges(tmp_path):
    merge = read(
        tmp_path,
        """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 1], parameters: {weight: 1}}
      - {model: b, layer_range: [0, 1], parameters: {weight: 2}}
  - sources:
      - {model: a, layer_range: [1, 4], parameters: {weight: 3}}
      - {model: b, layer_range: [1, 4], parameters: {weight: 4}}
""",
    )
    found = treated(merge)
    assert found["model.layers.0.mlp.weight"].weights == (1, 2)
    assert found["model.layers.1.mlp.weight"].weights == (3, 4)
    assert found["model.layers.3.attn.weight"].weights == (3, 4)
    assert found["model.embed_tokens.weight"].weights == (1, 2)
    assert found["lm_head.weight"].weights == (3, 4)


def test_everything_that_is_not_supported_is_listed_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        read(
            tmp_path,
            """
merge_method: dare_ties
models:
  - {model: a+lora, parameters: 3}
tokenizer: {source: union}
dtype: int8
""",
        )
    for words in (
        "tokenizer: leave it out",
        "a+lora: merge the LoRA",
        "a+lora: parameters must be keys",
        "dare_ties needs base_model",
        "dtype 'int8'",
    ):
        assert words in str(caught.value)


def test_parameters_that_are_not_supported_are_listed_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        read(
            tmp_path,
            """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: heavy, gamma: 1}}
parameters: {rescale: true, normalize: [0, 1]}
""",
        )
    for words in (
        "weight: 'heavy' is no number",
        "a: parameter gamma",
        "rescale: true with ties",
        "normalize: true or false",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(("said", "expected"), [("", True), ("rescale: false", False)])
def test_dare_rescales_unless_told_not_to(tmp_path, said, expected):
    merge = read(
        tmp_path,
        f"""
merge_method: dare_ties
base_model: base
parameters: {{{said}}}
models:
  - {{model: a, parameters: {{weight: 1.0, density: 0.5}}}}
  - {{model: b, parameters: {{weight: 1.0, density: 0.4}}}}
""",
    )
    asked = methods.get(
        "dare_ties@mergekit", density=(0.5, 0.4), weights=(1, 1), rescale=expected
    )
    assert set(treated(merge).values()) == {asked}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: [ties]", "is not supported; linear"),
        ("merge_method: slerp", "'slerp' is not supported; linear"),
        ("- 1", "holds no keys"),
        ("a: [", "is no YAML"),
        ("a: &x [1]\nb: *x", "anchors and aliases are not read"),
        ("a: !!python/object/apply:os.system [ls]", "is no YAML"),
        ("merge_method: linear", "exactly one of models and slices"),
        ("merge_method: linear\nmodels: 3", "a list of at least one model"),
        (
            "merge_method: linear\nslices:\n"
            "  - sources: [{model: a, layer_range: [2, 4]}]",
            "repeated, left out or reordered",
        ),
    ],
)
def test_what_is_no_merge_is_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, text)
