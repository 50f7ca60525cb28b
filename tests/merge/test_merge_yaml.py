"""Merges by a mergekit YAML, from the files to the weights, config and manifest."""

import json
from pathlib import Path

import lora
import ml_dtypes
import numpy as np
import pytest
from mergekit_models import OUTSIDE, SINGLE, load, make, names

from merging import UserError
from merging.cli import main
from merging.merge import streamed
from merging.merge.streamed import merge_yaml

CONFIG = Path(__file__).parents[2] / "configs" / "merge" / "mergekit.py"


@pytest.fixture
def merge(tmp_path):
    """Merge models by a YAML's text, in which {folder} is where they are."""
    models = make(tmp_path)

    def merged(text, output="out", **settings):
        path = tmp_path / "merge.yml"
        path.write_text(text.replace("{folder}", str(tmp_path)))
        folder = merge_yaml(path, str(tmp_path / output), **settings)
        return load(folder)

    merged.models, merged.folder = models, tmp_path
    return merged


def listed(**of):
    """Return `models` with their parameters."""
    lines = [
        f"  - {{model: {{folder}}/{name}, parameters: {{{words}}}}}\n"
        for name, words in of.items()
    ]
    return "models:\n" + "".join(lines)


def head(method):
    return f"merge_method: {method}\nbase_model: {{folder}}/base\n"


def deltas(merge, path):
    base, a, b = (merge.models[n][path] for n in ("base", "a", "b"))
    return base, a - base, b - base


def top(delta, count):
    """Keep so many of the largest magnitudes."""
    least = np.sort(np.abs(delta), axis=None)[-count] if count else np.inf
    return np.where(np.abs(delta) >= least, delta, 0)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_linear(merge):
    found = merge(
        "merge_method: linear\n" + listed(a="weight: 1", b="weight: [3, 1, 0, 0]")
    )
    weights = dict.fromkeys(OUTSIDE, 3) | {
        name: (3, 1, 0, 0)[int(name.split(".")[2])] for name in names()[1:-2]
    }
    for name, weight in weights.items():
        a, b = merge.models["a"][name], merge.models["b"][name]
        close(found[name], (a + weight * b) / (1 + weight))


def test_task_arithmetic(merge):
    found = merge(
        head("task_arithmetic")
        + listed(a="weight: [1, 0]", b="weight: {filter: mlp, value: 0.4}")
        + "parameters: {lambda: 0.5, weight: -1}\n"
    )
    for name in names():
        base, a, b = deltas(merge, name)
        layer = int(name.split(".")[2]) if "layers" in name else 0
        weight = 0.4 if "mlp" in name else -1
        close(found[name], base + 0.5 * ((1 - layer / 3) * a + weight * b))


def elected(values, weights):
    """Return mergekit's disjoint mean: the weights vote, and a negative one turns."""
    shares = [w * v for w, v in zip(weights, values, strict=True)]
    sign = np.where(sum(shares) >= 0, 1, -1)
    agree = [np.sign(share) == sign for share in shares]
    top = sum(np.where(yes, s, 0) for yes, s in zip(agree, shares, strict=True))
    below = sum(np.where(yes, w, 0) for yes, w in zip(agree, weights, strict=True))
    return top / np.where(below == 0, 1, below)


@pytest.mark.parametrize("weight", [0.6, -0.6])
def test_ties(merge, weight):
    found = merge(
        head("ties")
        + listed(a="weight: 1, density: 0.5", b=f"weight: {weight}, density: 0.25")
    )
    for name in names():
        base, a, b = deltas(merge, name)
        kept = top(a, 6), top(b, 3)
        close(found[name], base + elected(kept, (1, weight)))


def test_a_density_of_0_keeps_nothing_and_one_above_1_everything(merge):
    experts = listed(a="weight: 1, density: 0", b="weight: 3, density: 1.5")
    found = merge(head("ties") + experts)
    for name in names():
        base, _, b = deltas(merge, name)
        close(found[name], base + b)
    found = merge(head("dare_linear") + experts + "parameters: {normalize: true}", "d")
    for name in names():
        base, _, b = deltas(merge, name)
        close(found[name], base + 3 * b / 4)


def test_weights_that_sum_to_0_divide_by_nothing(merge):
    experts = listed(a="weight: 0.5", b="weight: -0.5")
    found = merge(head("task_arithmetic") + experts + "parameters: {normalize: true}")
    for name in names():
        base, a, b = deltas(merge, name)
        close(found[name], base + 0.5 * a - 0.5 * b)


def sources(*ranges, model="a", weight=1):
    text = "slices:\n"
    for start, stop in ranges:
        text += (
            f"  - sources:\n"
            f"    - {{model: {{folder}}/{model}, layer_range: [{start}, {stop}],"
            f" parameters: {{weight: {weight}}}}}\n"
            f"    - {{model: {{folder}}/base, layer_range: [{start}, {stop}]}}\n"
        )
    return text


@pytest.mark.parametrize(
    ("ranges", "layers"),
    [
        (((0, 2),), [0, 1]),
        (((0, 3), (1, 4)), [0, 1, 2, 1, 2, 3]),
        (((2, 4), (0, 1)), [2, 3, 0]),
    ],
)
def test_layers_are_those_of_the_slices_and_the_config_counts_them(
    merge, ranges, layers
):
    found = merge(head("task_arithmetic") + sources(*ranges, weight=0.5))
    assert set(found) == set(names(len(layers)))
    for name in found:
        there = name
        if "layers" in name:
            parts = name.split(".")
            parts[2] = str(layers[int(parts[2])])
            there = ".".join(parts)
        base, a, _ = deltas(merge, there)
        close(found[name], base + 0.5 * a)
    config = json.loads((merge.folder / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == len(layers)


def test_slices_of_a_config_that_counts_no_layers_are_refused(merge):
    (merge.folder / "base" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say how many layers"):
        merge(head("task_arithmetic") + sources((0, 2)))
    assert not (merge.folder / "out").exists()


def test_dtype_casts_the_inputs_and_out_dtype_the_result(merge):
    bf16 = ml_dtypes.bfloat16
    experts = listed(a="weight: 1", b="weight: 0.5")
    text = head("task_arithmetic") + experts + "dtype: bfloat16\n"
    found = merge(text)
    wide = merge(text + "out_dtype: float32\n", "wide")
    for name in names():
        base, a, b = (
            merge.models[n][name].astype(bf16).astype(np.float32)
            for n in ("base", "a", "b")
        )
        expected = base + (a - base) + np.float32(0.5) * (b - base)
        assert found[name].dtype == bf16 and wide[name].dtype == np.float32
        close(wide[name], expected)
        # One rounding, of the same sum.
        assert np.array_equal(found[name], wide[name].astype(bf16))
    configs = [
        json.loads((merge.folder / out / "config.json").read_text())
        for out in ("out", "wide")
    ]
    assert [c["torch_dtype"] for c in configs] == ["bfloat16", "float32"]


def test_float64_is_refused_without_x64(merge):
    experts = listed(a="weight: 1", b="weight: 0.5")
    for key in ("dtype", "out_dtype"):
        with pytest.raises(UserError, match="float64.*JAX_ENABLE_X64=1"):
            merge(head("ties") + experts + f"{key}: float64\n")


def with_tokenizer(folder, template=None, jinja=None):
    settings = {"model_max_length": 7}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)


def template_of(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 7}
    return (folder / "chat_template.jinja").read_text()


def test_a_chat_template_replaces_the_bases(merge):
    with_tokenizer(merge.folder / "base", template="{{ the base's own }}")
    merge(
        head("task_arithmetic")
        + listed(a="weight: 1")
        + 'chat_template: "{{ messages[0].content }}"\n'
    )
    assert template_of(merge.folder / "out") == "{{ messages[0].content }}"


def test_an_automatic_chat_template_is_what_most_models_have(merge):
    with_tokenizer(merge.folder / "base", template="{{ first }}")
    with_tokenizer(merge.folder / "a", jinja="{{ second }}\n")
    named = [{"name": "default", "template": " {{ second }}"}]
    with_tokenizer(merge.folder / "b", template=named)
    merge(
        head("task_arithmetic")
        + listed(a="weight: 1", b="weight: 1")
        + "chat_template: auto\n"
    )
    assert template_of(merge.folder / "out") == "{{ second }}"


def test_a_chat_template_that_can_not_be_is_refused(merge):
    text = head("task_arithmetic") + listed(a="weight: 1")
    with pytest.raises(UserError, match="there is no tokenizer_config.json to go with"):
        merge(text + "chat_template: auto\n")
    with_tokenizer(merge.folder / "base")
    with pytest.raises(UserError, match="'chatml': write the template itself"):
        merge(text + "chat_template: chatml\n")


def test_a_merge_by_yaml_is_repeated_from_its_manifest(merge):
    text = head("dare_linear") + listed(a="weight: 1, density: 0.5")
    merge(text, seed=5)
    first = merge.folder / "out"
    (merge.folder / "merge.yml").unlink()
    again = streamed.repeat(first / "manifest.json", merge.folder / "again")
    assert (again / SINGLE).read_bytes() == (first / SINGLE).read_bytes()
    card = (first / "README.md").read_text()
    assert "    merge_method: dare_linear\n" in card
    make(merge.folder / "a", count=0)  # the expert's folder now has another beside it
    (merge.folder / "a" / "base" / SINGLE).replace(merge.folder / "a" / SINGLE)
    with pytest.raises(UserError, match="are not what they were: a"):
        streamed.repeat(first / "manifest.json", merge.folder / "third")


def test_experts_of_one_name_get_names_of_their_own(merge):
    (merge.folder / "x").mkdir()
    make(merge.folder / "x", count=1)
    merge(
        "merge_method: linear\nmodels:\n"
        "  - {model: {folder}/a, parameters: {weight: 1}}\n"
        "  - {model: {folder}/x/a, parameters: {weight: 1}}\n"
    )
    record = json.loads((merge.folder / "out" / "manifest.json").read_text())
    assert set(record["settings"]["experts"]) == {"a", f"{merge.folder}/x/a"}


def test_the_command_line_takes_a_yaml(merge, capsys):
    path, out = merge.folder / "m.yml", merge.folder / "cli"
    path.write_text(
        f"merge_method: linear\nmodels: [{{model: {merge.folder}/a, "
        "parameters: {weight: 1}}]\n"
    )
    command = ["merge", "--config", str(CONFIG), f"--config.output={out}"]
    assert main.main(command) == 2
    assert "name the mergekit YAML (merge_yaml)" in capsys.readouterr().err
    command.append(f"--config.merge_yaml={path}")
    assert main.main([*command, "--dry_run"]) == 0
    assert "linear@mergekit" in capsys.readouterr().out
    assert main.main(command) == 0
    close(load(out)["lm_head.weight"], merge.models["a"]["lm_head.weight"])
    short = ["merge", f"--config={path}", f"--config.output={merge.folder / 'short'}"]
    assert main.main(short) == 0
    assert load(merge.folder / "short").keys() == load(out).keys()


def test_mistakes_name_the_file(merge):
    with pytest.raises(UserError, match=r"merge\.yml asks for what is not followed"):
        merge("merge_method: linear\nmodels: []\n")


def test_a_model_with_a_lora_is_merged_as_its_sum(merge):
    module = names()[1].removesuffix(".weight")
    shapes = {f"{module}.weight": (2, 6)}
    tensors = lora.factors(1, (module,), rank=1, shapes=shapes)
    lora.save(merge.folder / "lora", tensors, r=1)
    found = merge(
        head("task_arithmetic")
        + "models:\n  - model: {folder}/base\n"
        + "  - {model: {folder}/base+{folder}/lora, parameters: {weight: 0.5}}\n"
        + "  - {model: {folder}/a, parameters: {weight: 1}}\n"
    )
    for name in names():
        _, a, _ = deltas(merge, name)
        added = 0.5 * lora.delta(tensors, module, 6.0) if module in name else 0
        close(found[name], merge.models["base"][name] + a + added)
