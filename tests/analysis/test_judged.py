"""Analyses that judge models on a suite: paths, disentanglement, critical densities."""

import json
import math

import jax
import numpy as np
import pytest
import scored_models

from merging import checkpoints, evaluation, merge, methods, models, tasks
from merging.analysis import connectivity, judged, rows, saturation
from merging.analysis.judged import Score
from merging.cli.main import main
from merging.models import hf

EXPERTS = ("sentiment", "sentence_completion")
EXAMPLES = 6


def moved(params, seed, scale):
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    return jax.tree.map(
        lambda x: x + scale * jax.random.normal(next(keys), x.shape, x.dtype), params
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, two experts and their mean, random, each with config and tokenizer."""
    folder = tmp_path_factory.mktemp("judged")
    texts = tasks.suite("miniworld").source.generator.documents(0, 300)
    tokenizer = scored_models.byte_level(texts, 300)
    base = scored_models.write(folder / "base", tokenizer, width=16)
    _, params = hf.load(base)
    made = {name: moved(params, i + 1, 0.1) for i, name in enumerate(EXPERTS)}
    made["mean"] = merge(None, list(made.values()), methods.average())
    for name, leaves in made.items():
        checkpoints.save(folder / name, leaves)
        for path in base.glob("*.json"):
            (folder / name / path.name).write_bytes(path.read_bytes())
    return {name: str(folder / name) for name in ("base", *made)}


def command(folders, analysis, workdir, **values):
    named = ",".join(f"{name}={folders[name]}" for name in EXPERTS)
    settings = {"base": folders["base"], "experts": named} | values
    flags = [f"--config.{key.replace('__', '.')}={v}" for key, v in settings.items()]
    return ["analyze", "--config", f"analyze/{analysis}", *flags, "--workdir", workdir]


@pytest.mark.long
def test_the_connectivity_of_models(folders, tmp_path, capsys):
    argv = command(
        folders,
        "connectivity",
        str(tmp_path / "out"),
        merged=folders["mean"],
        suite__test_examples=EXAMPLES,
        datasets="copa,imdb",
        points=3,
        scales=0.5,
        count=EXAMPLES,
    )
    assert main(argv) == 0, capsys.readouterr().err
    made = rows.read(tmp_path / "out", "connectivity")["rows"]
    value = {(r.quantity, r.of, r.at): r.value for r in made}
    suite = tasks.suite(
        "miniworld", test_examples=EXAMPLES, tokenizer=folders["base"], chat=False
    )
    config, _ = hf.load(folders["base"])
    loaded = {name: hf.load(folder)[1] for name, folder in folders.items()}
    halfway = jax.tree.map(
        lambda a, b: 0.5 * a + 0.5 * b, *(loaded[name] for name in EXPERTS)
    )
    asked = dict(datasets=["copa", "imdb"], count=EXAMPLES)
    losses = []
    for score in evaluation.job.evaluate((config, halfway), suite, **asked):
        losses.append(-score.log_p / score.tokens)
        key = ("loss", (*EXPERTS, score.dataset), 0.5)
        assert value[key] == pytest.approx(losses[-1], rel=1e-4)
        key = ("error", (*EXPERTS, score.dataset), 0.5)
        assert value[key] == pytest.approx(1 - score.value)
    assert value["loss", EXPERTS, 0.5] == pytest.approx(np.mean(losses), rel=1e-4)
    ends = [value["loss", EXPERTS, at] for at in (0.0, 1.0)]
    height = max(value["loss", EXPERTS, 0.5] - np.mean(ends), 0)
    assert value["loss_barrier", EXPERTS, None] == pytest.approx(height, abs=1e-6)
    # The mean of the experts is their halfway point.
    assert value["loss", ("base", "mean"), 1.0] == pytest.approx(
        value["loss", EXPERTS, 0.5], rel=1e-4
    )
    errors = [value["disentanglement_error", (name,), 0.5] for name in EXPERTS]
    assert value["disentanglement_error", (), 0.5] == pytest.approx(sum(errors))
    share = value["wise_ft_share", ("mean",), None]
    assert share in (0.0, 0.5, 1.0)
    chosen = 1 - value["error", ("base", "mean"), share]
    assert value["wise_ft_value", ("mean",), None] == pytest.approx(chosen)
    assert (tmp_path / "out" / "figures" / "paths.png").exists()
    assert main(argv) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_the_saturation_of_experts(folders, tmp_path, capsys):
    argv = command(
        folders,
        "saturation:miniworld",
        str(tmp_path / "out"),
        suite__test_examples=EXAMPLES,
        densities="0.5,0.01",
        draws=4096,
        count=EXAMPLES,
    )
    assert main(argv) == 0, capsys.readouterr().err
    made = rows.read(tmp_path / "out", "saturation")["rows"]
    value = {(r.quantity, r.of, r.at): r for r in made}
    n = models.parameter_count(hf.load(folders["base"])[0])
    for name in EXPERTS:
        density = value["critical_density", (name,), None]
        assert density.value in (1, 0.5, 0.01) and density.low < density.value
        dimension = value["statistical_dimension", (name,), None].value
        assert dimension == int(density.value * n)
    total = sum(value["statistical_dimension", (name,), None].value for name in EXPERTS)
    threshold = value["threshold", ("parameters",), 2]
    expected = 1 + next(k for k in range(99) if (k + 1) * total / 2 > n)
    assert threshold.low <= threshold.value <= threshold.high
    assert abs(threshold.value - expected) <= 1
    one = value["width", EXPERTS, 1]
    assert one.low < 1 / math.sqrt(2 * math.pi) < one.high


def test_an_expert_that_is_no_category_is_refused(folders, tmp_path, capsys):
    argv = command(folders, "connectivity", str(tmp_path / "out"))
    argv = [a.replace("sentiment=", "sentimental=") for a in argv]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "sentimental: no category of the suite miniworld" in line
    assert not (tmp_path / "out").exists()


def test_a_barrier_is_over_the_line_between_the_ends():
    assert connectivity.barrier({0.0: 1.0, 0.25: 1.6, 1.0: 2.0}) == pytest.approx(0.35)
    assert connectivity.barrier({0.0: 1.0, 0.5: 1.2, 1.0: 2.0}) == 0
    points = {
        at: {"a": Score(0.5, at), "b": Score(0.2, None)} for at in (0.0, 0.5, 1.0)
    }
    found = list(connectivity.path_rows("x", "y", points))
    assert not [r for r in found if r.quantity == "loss" and r.of[-1] == "b"]
    assert [r.value for r in found if r.quantity == "loss_barrier"] == [0]


def test_disagreement_is_a_share_of_examples():
    one, other = {"a": [0, 1, 1, 0], "b": ["x"]}, {"a": [0, 1, 0, 0], "b": ["y"]}
    assert connectivity.disagreement(one, other) == pytest.approx((0.25 + 1) / 2)


def test_a_critical_density_is_found_from_above():
    kept = {0.5: 1.0, 0.2: 0.995, 0.1: 0.9, 0.05: 1.0}
    assert saturation.critical_density(kept.get, list(kept), 0.99) == (0.2, 0.1)
    assert saturation.critical_density(lambda d: 1.0, [0.5, 0.1], 0.99) == (0.1, 0.0)
    assert saturation.critical_density(lambda d: 0.0, [0.5, 0.1], 0.99) == (1.0, 0.5)
    own = {"a": Score(0.5, None), "b": Score(0.0, None)}
    cut = {"a": Score(0.4, None), "b": Score(0.3, None)}
    assert saturation.kept_share(cut, own) == pytest.approx(0.8)


def test_mixing_is_linear():
    one, other = ({"w": np.array(x, np.float32)} for x in ([1.0, 2.0], [3.0, -2.0]))
    found = judged.mixed(one, other, 0.25)["w"]
    np.testing.assert_allclose(found, [1.5, 1.0])
    np.testing.assert_array_equal(judged.mixed(one, other, 0.0)["w"], one["w"])
    np.testing.assert_array_equal(judged.mixed(one, other, 1.0)["w"], other["w"])


def test_kept_scores_are_plain_json():
    assert json.loads(json.dumps({"a": Score(0.5, None)})) == {"a": [0.5, None]}
