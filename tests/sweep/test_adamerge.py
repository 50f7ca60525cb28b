"""AdaMerging: entropies, their gradient, and a job that learns, stops and merges."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import one_device
import pytest

import merging
from merging import UserError, checkpoints, models, tasks
from merging.cli.main import main
from merging.evaluation.requests import Request
from merging.merge import verify
from merging.models import hf
from merging.models.hf.convert import convert
from merging.runtime import sharding, tree
from merging.sweep import coefficients, entropy, entropy_steps

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
CHOICES = [[[5], [6, 7]], [[8, 9, 10], [5], [11, 4]], [[4, 5], [9]]]
PROMPTS = ([7, 12, 4], [20, 5, 8, 11, 3], [9, 9])
DATASETS = ("imdb", "common_gen")


def asked():
    """Three examples with choices, the last one's behind two prompts; one without."""
    prompts = [np.array(prompt, np.int32) for prompt in PROMPTS]
    ids = [[np.array(c, np.int32) for c in of] for of in CHOICES]
    rows = [Request(0, p, of) for p, of in zip(prompts[:2], ids, strict=False)]
    rows += [Request(0, prompts[2], [choice]) for choice in ids[2]]
    where = np.array([0, 0, 1, 1, 1, 2, 3])
    groups = np.array([0, 0, 1, 1, 1, 2, 2])

    def made(name, requests, answers, **facts):
        return SimpleNamespace(
            dataset=SimpleNamespace(name=name),
            requests=requests,
            answers=answers,
            eval_set=SimpleNamespace(**facts),
        )

    ranked = dict(ranked=True, examples=3, groups=groups)
    free = [Request(0, prompts[2], [])]
    return SimpleNamespace(
        sets=(
            made("a", rows, (where, where), **ranked),
            made("b", free, None, ranked=False, examples=1),
        )
    )


@jax.jit
def forward(params, texts):
    return jax.nn.log_softmax(models.forward(CONFIG, params, texts))


def reference(values, base, experts):
    """The same from whole texts, in float64 but for the model's own arithmetic."""

    def leaf(path, start, *others):
        found = np.array(start, float)
        for k, other in enumerate(others):
            moved = np.asarray(other, float) - np.asarray(start, float)
            if path.startswith("layers"):
                moved = np.stack([values[n, k] * moved[n] for n in (0, 1)])
            else:
                moved = values[2, k] * moved
            found += moved
        return found.astype(np.float32)

    params = tree.map_named(leaf, base, *experts)
    texts = [[*p, *c] for p, of in zip(PROMPTS, CHOICES, strict=True) for c in of]
    table = np.array([text + [0] * (9 - len(text)) for text in texts])
    log_p = np.asarray(forward(params, table), float)
    of = [
        sum(log_p[row, at, text[at]] for at in range(len(prompt), len(text)))
        for row, (text, prompt) in enumerate(
            zip(
                texts,
                [PROMPTS[0]] * 2 + [PROMPTS[1]] * 3 + [PROMPTS[2]] * 2,
                strict=True,
            )
        )
    ]

    def entropy_of(log_p):
        p = np.exp(log_p) / np.exp(log_p).sum()
        return -(p * np.log(p)).sum()

    ranked = entropy_of(np.array(of[:2])) + entropy_of(np.array(of[2:5]))
    return (ranked / 2 + entropy_of(log_p[5, len(PROMPTS[2])])) / 2


def test_the_entropy_and_its_gradient_are_the_formulas():
    mesh = sharding.make_mesh({"fsdp": 2}, jax.devices()[:2])
    params = [models.init(CONFIG, seed) for seed in range(3)]
    where = sharding.shardings(params[0], models.partition_rules(CONFIG), mesh)
    base, *experts = (jax.device_put(of, where) for of in params)
    groups = coefficients.Groups(
        ("one", "two", "rest"),
        (),
        tuple(
            (path, (0, 1) if path.startswith("layers") else 2)
            for path in tree.flatten(base)
        ),
    )
    found, left_out = entropy.prompts(asked())
    assert left_out == {"a": 1}
    rows = entropy.dealt(found, {"a": np.arange(2), "b": np.arange(1)}, 4)
    rows = entropy.Prompts(*(sharding.place_rows(mesh, x, 4, 1) for x in rows))
    values = np.array([[0.3, 0.5], [0.9, 0.05], [0.2, 0.4]], np.float32)
    functions = entropy.functions(CONFIG, groups, 0.1, (0.0, 1.0), mesh)
    with sharding.on(mesh):
        stepped, (adam, _), value = functions.step(
            *functions.start(values), base, experts, rows
        )
    slope = np.asarray(adam.mu) / 0.1  # after one step, (1 - b1) of the gradient
    base, *experts = params
    assert value == pytest.approx(reference(values, base, experts), rel=1e-5)
    small = 0.003
    expected = np.zeros((3, 2))
    for place in np.ndindex(3, 2):
        step = np.zeros((3, 2))
        step[place] = small
        ends = [reference(values + way * step, base, experts) for way in (1, -1)]
        expected[place] = (ends[0] - ends[1]) / (2 * small)
    # Of a central difference the third derivative is left, times small² / 6.
    np.testing.assert_allclose(slope, expected, atol=2e-3 * np.abs(expected).max())
    # Adam's first step is the learning rate, against the gradient's sign.
    moved = np.clip(values - 0.1 * np.sign(expected), 0, 1)
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
        "experts": f"{place / 'a'},v0.2={place / 'b'}",
        "suite.validation_examples": 8,
        "datasets": ",".join(DATASETS),
        "batch_size": 8,
        "steps": 6,
        "learning_rate": 0.05,
        "mesh.data": -1,
        "mesh.fsdp": 1,
    } | values
    argv = ["adamerge", "--config", "adamerge/layers", "--workdir", str(workdir)]
    return argv + [f"--config.{key}={value}" for key, value in given.items()]


def record(workdir):
    return json.loads((workdir / "adamerge.json").read_text())


@pytest.fixture(scope="module")
def whole(place):
    workdir = place / "whole"
    with pytest.MonkeyPatch.context() as patch:
        one_device.use(patch)
        assert main(arguments(place, workdir)) == 0
    return workdir


@pytest.mark.long
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
    expected = leaf["base"] + share["a"] * (leaf["a"] - leaf["base"])
    expected += share["v0.2"] * (leaf["b"] - leaf["base"])
    np.testing.assert_allclose(leaf["merged"], expected, atol=1e-6)


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_same_coefficients(
    place, whole, tmp_path, monkeypatch, capsys
):
    argv = arguments(place, tmp_path / "run", merge="false")
    stops = iter([False, True])
    one_device.use(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(entropy_steps.processes, "preempted", lambda: next(stops))
        assert main(argv) == 75
    kept = json.loads((tmp_path / "run" / "state.json").read_text())
    assert len(kept["entropies"]) == 2
    assert main(argv) == 0
    found, expected = record(tmp_path / "run"), record(whole)
    assert found == expected
    capsys.readouterr()
    assert main(argv) == 0
    assert "Nothing to do" in capsys.readouterr().out
    merged = tmp_path / "run" / "merged"
    assert not merged.exists()
    argv = arguments(place, tmp_path / "run")  # and now it is to be merged
    for _ in range(2):
        assert main(argv) == 0
        leaves = [
            json.loads((path / "manifest.json").read_text())["leaves"]
            for path in (merged, whole / "merged")
        ]
        assert leaves[0] == leaves[1]


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
