"""A mergekit YAML of any bytes is read, or refused in our words and soon."""

import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import UserError
from merging.merge import mergekit

# Twelve anchors of six aliases each: 2e9 values, as text of a few hundred bytes.
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 6)}]\n" for i in range(12)
)


def refusal(text):
    with pytest.raises(UserError) as caught:
        mergekit.parse(text)
    return str(caught.value)


def test_everything_that_is_not_followed_is_listed_at_once():
    text = refusal(
        """
merge_method: dare_ties
models:
  - {model: a, parameters: 3}
  - {model: b@main}
  - {model: c, parameters: {weight: heavy, gamma: 1, lambda: 2}}
  - {model: c, layer_range: [0, 2]}
  - 7
tokenizer: {tokens: {x: 1}, pad_to_multiple_of: 0, size: 3}
tokenizer_source: null
parameters: {normalize: [0, 2], density: [{filter: 1, value: 2}], rescale: null}
dtype: int8
3: 4
"""
    )
    for words in (
        "tokenizer: 'size': leave it out",
        "tokenizer.tokens: embeddings of single tokens are not followed",
        "tokenizer.pad_to_multiple_of: a whole number from 1 to 65536, not 0",
        "3: leave it out",
        "models[0].parameters: keys with values, not 3",
        "models[1].model: b@main: only a repository, OWNER/NAME, has revisions",
        "models[2].parameters.weight: no number: 'heavy'",
        "models[2].parameters: there is no parameter 'gamma' here",
        "models[2].parameters.lambda: is one for all models",
        "models[3]: 'layer_range': leave it out",
        "models[4]: keys with values, not 7",
        "models: c is named more than once",
        "models: dare_ties needs base_model",
        "parameters.normalize: no truth value: a list of 2",
        "parameters.density: a filter is a text, not 1",
        "parameters.rescale: no truth value: None",
        "dtype: one of bfloat16",
    ):
        assert words in text


def test_a_scale_is_passthroughs_only():
    for method in ("linear", "task_arithmetic"):
        text = (
            f"merge_method: {method}\nmodels: [{{model: a}}]\nparameters: {{scale: 1}}"
        )
        assert "parameters: there is no parameter 'scale' here" in refusal(text)
    found = refusal(
        "merge_method: passthrough\nmodels: [{model: a, parameters: {weight: 1}}]"
    )
    assert "there is no parameter 'weight' here" in found


def test_slices_that_do_not_fit_are_listed():
    text = refusal(
        """
merge_method: ties
base_model: base
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: base, layer_range: [0, 3]}
    residual_weight: 1
  - sources:
      - {model: a, layer_range: [2, 2]}
      - {model: b}
  - sources: []
"""
    )
    for words in (
        "slices[0]: all sources must have as many layers",
        "slices[0]: 'residual_weight': leave it out",
        "slices[1].sources[0].layer_range: [first layer, last layer + 1]",
        "slices[1].sources[1].layer_range: [first layer, last layer + 1], not None",
        "base_model base must be among the sources",
        "slices[2].sources: a list of at least one",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: [ties]", "merge_method a list of 1 is not followed"),
        ("merge_method: lerp", "'lerp' is not followed here; linear, slerp, "),
        ("models: []", "names no merge_method"),
        ("base_model: a\nexperts: [{source_model: b}]", "mixture of experts"),
        ("- 1", "holds no keys"),
        ("", "holds no keys"),
        ("a: [", "is no YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is no YAML: could not determine"),
        ("a: 2001-13-41", "is no YAML: month must be in"),
        (f"a: {'9' * 5000}", "is no YAML: a number that long"),
        ("[" * 3000, "is no YAML: maximum recursion"),
        ("? [a, b]\n: 1", "is no YAML: found unhashable key"),
        (BOMB, "is no YAML: more values, with its aliases, than any merge needs"),
        ("a: &-a [1, *-a]", "is no YAML: an alias within what it stands for"),
        ("merge_method: linear", "exactly one of models and slices"),
        ("merge_method: linear\nmodels: 3", "models: a list of at least one"),
        ('merge_method: linear\nmodels: [{model: "a\\0b"}]', "a model's folder, not"),
    ],
)
def test_what_is_no_merge_is_refused_in_a_line(text, words):
    found = refusal(text)
    assert words in found
    assert len(found) < 300


def test_a_long_list_of_mistakes_is_cut():
    models = ", ".join(f"{{model: m{i}, x{'y' * 500}: 1}}" for i in range(100))
    found = refusal(f"merge_method: linear\nmodels: [{models}]")
    assert found.endswith("… and 80 more")
    assert len(found) < 4000


def test_aliases_of_a_usual_size_are_read():
    document = mergekit.parse(
        "merge_method: linear\nmodels:\n"
        "  - {model: a, parameters: &p {weight: 0.5}}\n"
        "  - {model: b, parameters: {<<: *p, density: 1}}\n"
    )
    weights = [part.parameters["weight"] for part in document.slices[0].sources]
    assert weights[0] == weights[1] != ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is no file"),
        (os.mkfifo, "is no file"),
        (lambda path: path.write_bytes(b"\xff"), "can't be read"),
        (lambda path: path.write_bytes(b"#" * 200_001), "is larger than any"),
        (lambda path: None, "is no file"),
        (lambda path: path.write_text("a: ["), "m.yml is no YAML"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, make, words):
    make(tmp_path / "m.yml")
    with pytest.raises(UserError, match=words):
        mergekit.read(tmp_path / "m.yml")


def is_read_or_refused(text):
    try:
        document = mergekit.parse(text)
    except UserError as error:
        assert len(str(error)) < 4000
    else:
        assert document.slices and document.models


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_refused(data):
    is_read_or_refused(data.decode("utf-8", "replace"))


# What stands in such files, in places where it may and may not stand.
WORDS = st.sampled_from(
    ["merge_method", "base_model", "models", "slices", "sources", "model", "parameters"]
    + ["layer_range", "weight", "density", "normalize", "lambda", "filter", "value"]
    + ["linear", "ties", "dare_linear", "a", "b", "*", "dtype", "bfloat16", "1e-3"]
)
SCALARS = st.one_of(
    WORDS, st.none(), st.booleans(), st.integers(-2, 10**30), st.floats(), st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS | SCALARS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(WORDS, VALUES, max_size=6), st.sampled_from(["linear", "ties"]))
def test_any_values_are_a_document_or_refused(document, method):
    document = {"models": [{"model": "a"}], **document, "merge_method": method}
    try:
        text = yaml.safe_dump(document, allow_unicode=True)
    except (yaml.YAMLError, TypeError):  # keys that have no order
        return
    is_read_or_refused(text)
