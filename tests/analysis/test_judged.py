"""Analyses that judge models on a suite: paths, disentanglement, critical densities."""

import functools
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scored_models

from merging import checkpoints, evaluation, merge, methods, models, tasks
from merging.analysis import connectivity, judged, rows, saturation
from merging.analysis.judged import Score
from merging.cli.main import main
from merging.models import hf
from merging.models.hf.convert import convert

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
def test_the_connectivity_of_models(folders, tmp_path, capsys, monkeypatch):
    asked_for, scores = [], judged.Judge.scores
    monkeypatch.setattr(
        *(judged.Judge, "scores"),
        lambda judge, params: asked_for.append(judge) or scores(judge, params),
    )
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
    # On test four models and the middles of four paths, on validation two and one.
    assert sorted(map(asked_for.count, set(asked_for))) == [3, 8]
    made = rows.read(tmp_path / "out", "connectivity")["rows"]
    value = {(r.quantity, r.of, r.at): r.value for r in made}
    for name in folders:
        ends = [k for k in value if k[0] == "loss" and len(k[1]) == 2]
        ends = [k for k in ends if k[2] in (0.0, 1.0) and k[1][int(k[2])] == name]
        assert len(ends) > 1 or name == "base"
        assert len({value[k] for k in ends}) == 1
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


def answers(folders, params, dataset, split):
    """Return which of two choices a model finds likelier, of each example."""
    suite = tasks.suite(
        "miniworld", test_examples=EXAMPLES, tokenizer=folders["base"], chat=False
    )
    decoder, _ = hf.load(folders["base"])
    asked = evaluation.requests(
        suite,
        split,
        datasets=[dataset],
        count=EXAMPLES,
        context=decoder.max_length,
        vocab_size=decoder.vocab_size,
    )
    calls = (functools.partial(f, params) for f in models.predictor(decoder))
    batches = evaluation.prepare(asked, batch_size=32)
    (made,) = evaluation.predict(batches, models.Predictor(*calls))
    return made.outputs.reshape(-1, 2).argmax(axis=1)


@pytest.mark.long
def test_disentanglement_is_of_the_answers_on_the_split(folders, tmp_path):
    split = "validation"
    argv = command(
        folders,
        "connectivity",
        str(tmp_path / "out"),
        suite__test_examples=EXAMPLES,
        datasets="copa",
        points=2,
        scales=2.0,
        split=split,
        count=EXAMPLES,
    )
    assert main(argv) == 0
    made = rows.read(tmp_path / "out", "connectivity")["rows"]
    value = {(r.quantity, r.of, r.at): r.value for r in made}
    loaded = {name: hf.load(folder)[1] for name, folder in folders.items()}
    one, other = (
        jax.tree.map(lambda x, base: 2 * (x - base), loaded[name], loaded["base"])
        for name in EXPERTS
    )
    alone = jax.tree.map(lambda base, x: base + x, loaded["base"], one)
    both = jax.tree.map(lambda x, y: x + y, alone, other)
    changed = [
        np.mean(answers(folders, alone, d, split) != answers(folders, both, d, split))
        for d in ("app_reviews", "imdb")
    ]
    assert 0 < np.mean(changed) < 1
    found = value["disentanglement_error", EXPERTS[:1], 2.0]
    assert found == pytest.approx(np.mean(changed))


class Along:
    """Scores a model by how far it is from the base to another, split by split.

    Args:
      base, end: their first leaves. values: {split: {share of the way: value}}, 0 off
        the way.
    """

    def __init__(self, base, end, values):
        self._base, self._end, self._values = base, end, values

    def __call__(self, decoder, suite, datasets, split, *how):
        def scores(params):
            way = self._end - self._base
            share = float(np.mean((jax.tree.leaves(params)[0] - self._base) / way))
            value = self._values[split].get(round(share, 3), 0.0)
            return {"copa": Score(value, None)}

        return SimpleNamespace(scores=scores)


def test_wise_ft_chooses_on_validation_and_is_judged_on_the_split(
    folders, tmp_path, monkeypatch
):
    loaded = [hf.load(folders[name])[1] for name in ("base", "mean")]
    ends = [jax.tree.leaves(params)[0] for params in loaded]
    values = {
        "validation": {0.0: 0.1, 0.5: 0.7, 1.0: 0.6},
        "test": {0.0: 0.2, 0.5: 0.3, 1.0: 0.8},
    }
    monkeypatch.setattr(connectivity, "Judge", Along(*ends, values))
    chosen = {"merged": folders["mean"], "points": 3, "scales": "", "datasets": "copa"}
    argv = command(folders, "connectivity", str(tmp_path / "out"), **chosen)
    assert main(argv) == 0
    made = rows.read(tmp_path / "out", "connectivity")["rows"]
    found = {r.quantity: r.value for r in made if r.of == ("mean",)}
    expected = {"wise_ft_share": 0.5, "wise_ft_value": 0.3, "plain_value": 0.8}
    assert found == pytest.approx(expected)


def test_wise_ft_alone_wants_no_expert_and_takes_ones_own_files_and_any_layout(
    folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = convert(folders["mean"], "mean", format="safetensors")
    assert hf.open_model(str(other)).stacked != hf.open_model(folders["base"]).stacked
    lines = [
        {"dataset": "tides", "category": "sea", "split": "held_in", "part": part}
        | {"inputs": f"{part} {i}", "choices": ["b", "c"], "label": i % 2}
        for i in range(4)
        for part in ("train", "validation", "test")
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    config = ["analyze", "--config", "analyze/connectivity:jsonl", "--workdir", "out"]
    config += ["--config.suite.files=mine.jsonl", "--config.points=3"]
    config += [f"--config.base={folders['base']}", f"--config.merged={other}"]
    assert main(config) == 0
    made = rows.read(tmp_path / "out", "connectivity")["rows"]
    found = {(r.quantity, r.of) for r in made}
    assert ("wise_ft_value", ("mean",)) in found
    assert ("loss_barrier", ("base", "mean")) in found
    assert not any(quantity == "disentanglement_error" for quantity, _ in found)


def test_neither_experts_nor_merged_models_are_refused(folders, tmp_path, capsys):
    argv = command(folders, "connectivity", str(tmp_path / "out"), experts="")
    assert main(argv) == 2
    assert "no experts: name at least one" in capsys.readouterr().err


def test_an_expert_that_is_not_above_its_base_has_no_density(
    folders, tmp_path, monkeypatch, capsys
):
    loaded = {name: jax.tree.leaves(hf.load(f)[1]) for name, f in folders.items()}
    asked = []

    def same(one, other):
        return all(map(np.array_equal, one, other))

    class Scripted:
        """The base has 0.5, sentiment's expert 0.4 and the other's 0.9, trimmed too."""

        def __init__(self, decoder, suite, datasets, *how):
            self._own = 0.4 if "imdb" in datasets else 0.9

        def scores(self, params):
            leaves = jax.tree.leaves(params)
            of_base = same(leaves, loaded["base"])
            asked.append(of_base)
            return {"any": Score(0.5 if of_base else self._own, None)}

    monkeypatch.setattr(saturation, "Judge", Scripted)
    argv = command(
        *(folders, "saturation:miniworld", str(tmp_path / "out")),
        **{"densities": "0.5,0.01", "draws": 64},
    )
    assert main(argv) == 0
    assert "warning: sentiment is not above the base" in capsys.readouterr().err
    made = rows.read(tmp_path / "out", "saturation")["rows"]
    value = {(r.quantity, r.of): r for r in made}
    assert value["critical_density", EXPERTS[:1]].value is None
    assert value["critical_density", EXPERTS[1:]].value == 0.01
    assert ("statistical_dimension", EXPERTS[:1]) not in value
    assert value["threshold", ("parameters",)].at == 1
    assert asked.count(True) == len(EXPERTS)


def test_the_saturation_of_experts(folders, tmp_path, capsys, monkeypatch):
    # What random weights learned is luck.
    monkeypatch.setattr(saturation, "learned", lambda own, base: True)
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
    del points[0.5]
    found = list(connectivity.path_rows("x", "y", points))
    assert found and not [r for r in found if r.quantity.endswith("barrier")]


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
