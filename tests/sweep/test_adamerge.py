"""AdaMerging: entropies, their gradient, and a job that learns, stops and merges."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import UserError, checkpoints, models, tasks
from merging.cli.main import main
from merging.evaluation.requests import Request
from merging.merge import verify
from merging.models import hf
from merging.models.hf.convert import convert
from merging.runtime import sharding, tree
from merging.sweep import adamerge, coefficients, entropy

CONFIG = models.DecoderConfig(
    vocab_size=24,
    d_model=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    d_ff=24,
    tied_embeddings=False,
)
CHOICES = [[[5], [6, 7]], [[8, 9, 10], [5], [11, 4]], [[6], [7]], [[4, 5], [9]]]
GROUPS = {"layers": np.array([0, 1])}  # and of each other leaf the third
DATASETS = ("imdb", "common_gen")


def asked():
    """Four examples with choices, the last one's behind two prompts; four without."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 24, n).astype(np.int32) for n in (5, 3, 6, 4)]
    ids = [[np.array(c, np.int32) for c in of] for of in CHOICES]
    rows = [Request(0, p, of) for p, of in zip(prompts[:3], ids, strict=False)]
    rows += [Request(0, prompts[3], [choice]) for choice in ids[3]]
    where = np.array([0, 0, 1, 1, 1, 2, 2, 3, 4])
    groups = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])

    def made(name, requests, answers, **facts):
        return SimpleNamespace(
            dataset=SimpleNamespace(name=name),
            requests=requests,
            answers=answers,
            eval_set=SimpleNamespace(examples=4, **facts),
        )

    ranked = made("a", rows, (where, where), ranked=True, groups=groups)
    free = made("b", [Request(0, p, []) for p in prompts], None, ranked=False)
    return SimpleNamespace(sets=(ranked, free)), prompts


def reference(values, base, experts, prompts):
    """The same from whole texts, one at a time."""

    def leaf(path, start, *others):
        share = values[GROUPS["layers"]] if path.startswith("layers") else values[2]
        for k, other in enumerate(others):
            scale = share[..., k].reshape(share.shape[:-1] + (1,) * (start.ndim - 1))
            scale = scale if share.ndim > 1 else share[k]
            start = start + scale * (other - dict_of_base[path])
        return start

    dict_of_base = tree.flatten(base)
    params = tree.map_named(leaf, base, *experts)

    def log_p(prompt, text):
        ids = jnp.array([*prompt, *text])
        found = jax.nn.log_softmax(models.forward(CONFIG, params, ids[None])[0])
        return found[jnp.arange(len(prompt), len(ids)), ids[len(prompt) :]].sum()

    def of(log_p):
        log_p = log_p - jax.nn.logsumexp(log_p)
        return -(jnp.exp(log_p) * log_p).sum()

    ranked = [
        of(jnp.stack([log_p(prompt, text) for text in texts]))
        for prompt, texts in zip(prompts[:3], CHOICES, strict=False)
    ]
    free = []
    for prompt in prompts:
        ids = jnp.array([*prompt, 0])  # the last is not seen
        free.append(of(models.forward(CONFIG, params, ids[None])[0, len(prompt)]))
    return (sum(ranked) / 3 + sum(free) / 4) / 2


@pytest.mark.parametrize("on", ["one device", "a mesh"])
def test_the_entropy_and_its_gradient_are_the_formulas(on):
    mesh = None
    if on == "a mesh":
        mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    base, *experts = (models.init(CONFIG, seed, mesh) for seed in range(3))
    groups = coefficients.Groups(
        ("one", "two", "rest"),
        (),
        {
            path: GROUPS["layers"] if path.startswith("layers") else np.array(2)
            for path in tree.flatten(base)
        },
    )
    requests, prompts = asked()
    found, left_out = entropy.prompts(requests)
    assert left_out == {"a": 1}
    places = {"a": np.arange(3), "b": np.arange(4)}
    rows = entropy.dealt(found, places, 4)
    rows = entropy.Prompts(*(sharding.place_rows(mesh, x, 4, 1) for x in rows))
    values = np.array([[0.3, 0.5], [0.9, 0.1], [0.2, 0.4]], np.float32)
    functions = entropy.functions(CONFIG, groups, 0.1, (0.0, 1.0), mesh)
    with sharding.on(mesh):
        value, slope = functions.gradient(values, base, experts, rows)
        stepped, *_ = functions.step(
            values, functions.start(values), base, experts, rows
        )
    base, *experts = (models.init(CONFIG, seed) for seed in range(3))
    formula = jax.jit(jax.value_and_grad(reference))
    expected, expected_slope = formula(values, base, experts, prompts)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = np.abs(expected_slope).max()
    np.testing.assert_allclose(slope, expected_slope, atol=1e-4 * largest)
    # Adam's first step is the learning rate, against the gradient's sign.
    moved = np.clip(values - 0.1 * np.sign(expected_slope), 0, 1)
    np.testing.assert_allclose(stepped, moved, atol=1e-4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a base and two experts of miniworld's smallest size."""
    folder = tmp_path_factory.mktemp("adamerge")
    suite = tasks.suite("miniworld")
    config = models.size("tiny", "1x", vocab_size=len(suite.tokenizer))
    for seed, name in enumerate(("base", "a", "b")):
        params = jax.tree.map(lambda x: 2 * x, models.init(config, seed))
        checkpoints.save(folder / "ours" / name, params)
        files = hf.files_of_trained(
            config, tokenizer=suite.tokenizer.files, eos_id=suite.tokenizer.eos_id
        )
        for file, content in files.items():
            (folder / "ours" / name / file).write_bytes(content)
        convert(str(folder / "ours" / name), str(folder / name), format="safetensors")
    return folder


def arguments(place, workdir, **values):
    given = {
        "base": place / "base",
        "experts": f"{place / 'a'},{place / 'b'}",
        "suite.validation_examples": 8,
        "datasets": ",".join(DATASETS),
        "batch_size": 8,
        "steps": 6,
        "learning_rate": 0.05,
        "mesh.data": 1,
        "mesh.fsdp": -1,
    } | values
    argv = ["adamerge", "--config", "adamerge/layers", "--workdir", str(workdir)]
    return argv + [f"--config.{key}={value}" for key, value in given.items()]


def record(workdir):
    return json.loads((workdir / "adamerge.json").read_text())


@pytest.fixture(scope="module")
def whole(place):
    workdir = place / "whole"
    assert main(arguments(place, workdir)) == 0
    return workdir


def test_it_lowers_the_entropy_and_merges_as_its_config_says(place, whole):
    found = record(whole)
    before, after = (found["entropy"][k] for k in ("before", "after"))
    assert all(after[name] < before[name] for name in DATASETS)
    assert found["entropy_of_steps"][0] == pytest.approx(
        np.mean([before[name] for name in DATASETS]), rel=1e-5
    )
    table = found["coefficients"]
    layers = [name for name in table if name.startswith("model.layers.")]
    assert len(layers) == hf.open_model(place / "base").config.layers
    assert len({tuple(of.values()) for of in table.values()}) > len(layers)
    assert verify(str(whole / "merged")) == []
    argv = ["merge", "--config", str(whole / "adamerged.py")]
    assert main([*argv, f"--config.output={place / 'again'}"]) == 0
    manifests = [
        json.loads((p / "manifest.json").read_text())
        for p in (whole / "merged", place / "again")
    ]
    assert manifests[0]["leaves"] == manifests[1]["leaves"]
    # The checkpoint is θ₀ + Σ λ Δ, layer by layer.
    read = {
        name: merging.open_checkpoint(str(place / name)) for name in ("base", "a", "b")
    } | {"merged": merging.open_checkpoint(str(whole / "merged"))}
    path = "model.layers.0.mlp.up_proj.weight"
    leaf = {n: np.asarray(s.read([path], {})[path], float) for n, s in read.items()}
    share = table["model.layers.0"]
    expected = leaf["base"] + sum(
        share[n] * (leaf[n] - leaf["base"]) for n in ("a", "b")
    )
    np.testing.assert_allclose(leaf["merged"], expected, atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_coefficients(
    place, whole, tmp_path, monkeypatch, capsys
):
    argv = arguments(place, tmp_path / "run", merge="false")
    stops = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(adamerge.processes, "preempted", lambda: next(stops))
        assert main(argv) == 75
    kept = json.loads((tmp_path / "run" / "state.json").read_text())
    assert len(kept["entropies"]) == 2
    assert main(argv) == 0
    found, expected = record(tmp_path / "run"), record(whole)
    assert found == expected
    capsys.readouterr()
    assert main(argv) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "run" / "merged").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base": ""}, "no base"),
        ({"start": 2}, "start = 2.0 must lie within bounds"),
        ({"coefficients": "layers"}, "layer"),
        ({"batch_size": 3}, "does not divide over 8 devices"),
        ({"datasets": "imbd"}, "imdb"),
    ],
)
def test_mistakes_are_one_line_and_make_nothing(place, tmp_path, values, said, capsys):
    assert main(arguments(place, tmp_path / "run", **values)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("merging: error:") and said in line
    assert not (tmp_path / "run").exists()


def test_leaves_that_hold_all_layers_have_one_coefficient_each_or_are_refused(place):
    model = hf.open_model(place / "ours" / "base")
    with pytest.raises(UserError, match="merging convert"):
        coefficients.groups(model, "layer")
    found = coefficients.groups(model, "tensor")
    assert found.names == tuple(model.leaves)
    recipe = coefficients.recipe(found, np.full((len(found.names), 2), 0.25), 0.3)
    assert recipe.rules[0] == (
        f"^{found.names[0]}$ => task_arithmetic(scale=1.0, weights=(0.25, 0.25))"
    )
    one = coefficients.groups(model, "task")
    recipe = coefficients.recipe(one, np.array([[0.5, 0.1]], np.float32), 0.3)
    assert recipe == ("task_arithmetic(scale=1.0, weights=(0.5, 0.1))", ())
