"""A search from the command line: its trials, its stops, its best and its silence."""

import json
import re
import warnings

import jax
import numpy as np
import one_device
import pytest
import searches
from pages import DOCS
from searches import TRIALS, arguments, found, records
from statistics_of import statistics_of

import merging
from merging import UserError, checkpoints, methods
from merging.cli.main import main
from merging.evaluation import DatasetScore, TemplateScore, bootstrap
from merging.merge import rules, verify
from merging.models import hf
from merging.models.hf.convert import convert
from merging.report import search_page
from merging.report.document import render
from merging.report.searches import Point
from merging.runtime import tree
from merging.sweep import outcome, resident, trials
from merging.sweep import space as searched
from merging.sweep.resident import Resident
from merging.sweep.search_config import layer_groups
from merging.sweep.space import Recipe
from merging.sweep.trials import Lines


@pytest.fixture(scope="module", autouse=True)
def one():
    """Have searches take one device: programs compile sooner."""
    with pytest.MonkeyPatch.context() as patch:
        one_device.use(patch)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a suite of one's own, a base and three experts of it."""
    return searches.write(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def whole(place):
    """Return the workdir of a finished search, and which splits were read when."""
    workdir, asked = place / "whole", []
    read = resident.ask

    def noted(suite, split, *rest):
        begun = (workdir / "trials.jsonl").exists()
        asked.append((split, len(records(workdir)) if begun else 0))
        return read(suite, split, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "ask", noted)
        assert main(arguments(place, workdir)) == 0
    return workdir, asked


def test_the_test_split_is_not_read_before_the_last_trial(whole):
    workdir, asked = whole
    assert asked == [("validation", 0), ("test", TRIALS)]
    assert len(records(workdir)) == TRIALS
    models_tested = [line["model"] for line in records(workdir, "test")]
    assert models_tested[:4] == ["base", "expert e1", "expert e2", "expert e3"]
    assert models_tested[4:6] == ["task arithmetic, λ by the grid", "search"]


def test_the_best_trial_is_a_merge_to_run_and_scores_what_its_line_says(place, whole):
    workdir, _ = whole
    best = max(records(workdir), key=lambda line: line["value"])
    merged = workdir / f"merged_{best['number']}"
    assert verify(str(merged)) == []
    again = place / "again"
    argv = ["merge", "--config", str(workdir / "best.py")]
    assert main([*argv, f"--config.output={again}"]) == 0
    manifests = [json.loads((p / "manifest.json").read_text()) for p in (merged, again)]
    assert manifests[0]["leaves"] == manifests[1]["leaves"]
    assert manifests[0]["settings"]["method"] == best["method"]
    page = (workdir / "report" / "index.html").read_text("utf-8")
    assert f"number {best['number']} has the highest objective" in page
    run_with = page.partition("<dt>Run with</dt><dd>")[2].partition("</dd>")[0]
    assert "jax 0." in run_with and "python 3." in run_with
    assert "<dt>Seed of random masks</dt><dd>" in page
    for suffix in ("png", "svg", "pdf"):
        assert (workdir / f"search.{suffix}").stat().st_size > 1000
    suite = merging.tasks.suite(
        "jsonl", files=(str(place / "mine.jsonl"),), tokenizer=str(place / "base")
    )
    scores = merging.evaluate(str(again), suite, split="validation")
    assert {s.dataset: s.value for s in scores} == best["datasets"]


def test_the_objective_is_the_mean_ratio_to_the_best_expert(whole):
    workdir, _ = whole
    experts = [r["datasets"] for r in records(workdir, "references") if r["model"]]
    assert len(experts) == 3
    for line in [*records(workdir), *records(workdir, "grid")]:
        ratios = [v / max(e[d] for e in experts) for d, v in line["datasets"].items()]
        assert line["value"] == pytest.approx(np.mean(ratios), abs=1e-12)


def test_the_search_begins_at_the_grids_best_and_is_no_worse_on_validation(whole):
    workdir, _ = whole
    grid = max(records(workdir, "grid"), key=lambda line: line["value"])
    first = records(workdir)[0]
    assert set(first["point"].values()) == {grid["scale"]}
    assert max(line["value"] for line in records(workdir)) >= grid["value"]


def test_a_finished_search_is_told_again_and_nothing_is_done(
    place, whole, monkeypatch, capsys
):
    workdir, _ = whole

    def refuse(*_):
        raise AssertionError("merged again")

    monkeypatch.setattr(Resident, "merged", refuse)
    before = (workdir / "trials.jsonl").read_bytes()
    assert main(arguments(place, workdir)) == 0
    assert "Best, trial" in capsys.readouterr().out
    assert (workdir / "trials.jsonl").read_bytes() == before


def test_a_stopped_search_goes_on_with_the_trials_it_would_have_made(
    place, tmp_path, monkeypatch
):
    values = {"sampler": "cmaes", "batch": 3}
    straight, stopped, add = tmp_path / "straight", tmp_path / "stopped", Lines.add
    assert main(arguments(place, straight, **values)) == 0

    def killed(self, record):
        if record.get("number") == 7:
            raise KeyboardInterrupt
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "add", killed)
        assert main(arguments(place, stopped, **values)) == 130
    assert len(records(stopped)) == 7
    with open(stopped / "trials.jsonl", "ab") as file:
        file.write(b'{"number": 7, "poi')  # torn by a kill
    assert main(arguments(place, stopped, **values)) == 0
    assert found(stopped) == found(straight)
    assert len(found(stopped)) == TRIALS
    more = values | {"trials": TRIALS + 3}
    assert main(arguments(place, stopped, **more)) == 0
    assert found(stopped)[:TRIALS] == found(straight)
    assert [number for number, _, _ in found(stopped)] == list(range(TRIALS + 3))
    best = max(records(stopped), key=lambda line: line["value"])
    (tested,) = [t for t in records(stopped, "test") if t["model"] == "search"]
    assert tested["merge"] == [best["method"], best["rules"]]


@pytest.fixture(scope="module")
def compiled():
    """Return a list that holds an event for each program compiled from now on."""
    found = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def test_another_trial_compiles_nothing(place, compiled):
    held = Resident(
        str(place / "base"), {f"e{n}": str(place / f"e{n}") for n in (1, 2, 3)}
    )
    counts = []
    for number in (1.0, 2.0, 3.0):
        weights = tuple(number / 10 + 0.1 * i for i in range(3))
        several = f"(density={0.2 + number / 10!r}, weights={weights!r})"
        for method in (f"task_arithmetic(scale={number!r})", "ties", "dare_ties"):
            text = method if "(" in method else f"{method}{several}"
            held.merged(
                Recipe(text, (f"norm => task_arithmetic(scale={number!r})",)), 0
            )
        counts.append(len(compiled))
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2


COMPILED = [
    ("consensus_ta", {"scale": (0.1, 1), "mask_scale": (0.1, 1), "agree": (1, 3)}, 2),
    ("ramplus_tl", {"scale": (0.1, 1), "r": (0, 1), "epsilon": (1e-6, 1e-4)}, 2),
    ("sce", {"scale": (0.1, 1), "density": (0.1, 1)}, 0),
    ("breadcrumbs", {"density": (0.1, 0.5), "gamma": (0, 0.1)}, 0),
    ("multislerp", {"eps": (1e-8, 1e-6)}, 1),
]


@pytest.mark.parametrize(("name", "ranges", "count"), COMPILED)
def test_the_numbers_that_compile_are_told_beforehand(name, ranges, count, compiled):
    """Told by the method's structure: here the compiler's own count says the same."""
    space = searched.space(rules.parse(name), ranges, ["a", "b", "c"])
    rng = np.random.default_rng(0)
    base, *experts = ({"w": jax.numpy.asarray(rng.normal(size=(8, 6)))} for _ in "bacd")

    def programs(point):
        before = len(compiled)
        method = rules.parse(space.recipe(point).method).method(0.0)
        merging.merge(base if method.needs_base else None, experts, method)
        return len(compiled) - before

    middle, found = space.at(0.5), []
    programs(middle)
    for label in middle:
        moved = middle | {label: space.at(0.9)[label]}
        if programs(moved):
            found.append(label)
    assert space.compiled == found
    assert len(found) == count


def test_the_page_names_all_numbers_that_compile():
    page = " ".join((DOCS / "searching.md").read_text().split())
    said = page.partition("part of the compiled program:")[2].partition("Each new")[0]
    found = set()
    for entry in methods.catalogue():
        numbers = {k: v for k, v in entry.parameters.items() if type(v) in (int, float)}
        # Inside of every range, whatever it is.
        ranges = {
            k: (v, v + 2) if type(v) is int else (v / 4, v / 2) if v else (0.1, 0.2)
            for k, v in numbers.items()
        }
        if ranges:
            space = searched.space(rules.parse(entry.name), ranges, ["a", "b"])
            found |= {(name, entry.name) for name in space.compiled}
    told = re.findall(r"((?:`\w+`(?:, | and )?)+) \(([\w, ]+)\)", said)
    assert found == {
        (name, method)
        for names, of in told
        for name in re.findall(r"`(\w+)`", names)
        for method in of.split(", ")
        if name in methods.parameters(method)
    }


def test_a_search_says_which_numbers_compile(place, tmp_path, capsys):
    config = own_config(tmp_path, place, dict(scale=(0.1, 1.0), agree=(1, 3)))
    argv = ["search", "--config", str(config), "--workdir", str(tmp_path / "w")]
    assert main(argv) == 0
    said = "search: each new value of agree compiles the merge anew; other numbers"
    assert capsys.readouterr().err.count(said) == 1
    assert main(argv) == 0
    assert said not in capsys.readouterr().err
    points = [line["point"] for line in records(tmp_path / "w")]
    assert {type(point["agree"]) for point in points} == {int}
    merged = next((tmp_path / "w").glob("merged_*"))
    assert verify(str(merged)) == []


def own_config(folder, place, space, name="consensus_ta", **more):
    """Write a config of one's own, of three trials, and return its path."""
    experts = tuple(str(place / f"e{n}") for n in (1, 2, 3))
    values = {
        "base": str(place / "base"),
        "experts": experts,
        "method": {"name": name},
        "space": space,
        "suite": {"name": "jsonl", "files": (str(place / "mine.jsonl"),)},
        "trials": 3,
        "scales": (0.3,),
        "bootstrap": {"resamples": 20},
    } | more
    path = folder / "own.py"
    path.write_text(
        "from ml_collections import ConfigDict\n\n"
        f"def get_config():\n    return ConfigDict({values!r})\n"
    )
    return path


@pytest.mark.parametrize(
    ("method", "space"),
    [("fisher", {"weights": (0.1, 1.0)}), ("regmean", {"off_diagonal": (0.5, 0.99)})],
)
@pytest.mark.parametrize("layout", ["orbax", "safetensors"])
def test_methods_that_merge_by_statistics_are_searched(
    place, tmp_path, method, space, layout
):
    names, kind = ("e1", "e2", "e3"), methods.get(method).statistics
    where = {name: str(place / name) for name in names}
    if layout == "safetensors":
        for name in names:
            where[name] = str(tmp_path / name)
            convert(str(place / name), where[name], format=layout)
    sources = {n: checkpoints.open_checkpoint(path) for n, path in where.items()}
    experts = {
        n: tree.unflatten(source.read(tree.flatten(source.abstract), {}))
        for n, source in sources.items()
    }
    told = statistics_of(methods.get(method), experts)
    for name, leaves in told.items():
        checkpoints.save(tmp_path / f"told_{name}" / kind.name, leaves)
    folders = [f"{name}={tmp_path}/told_{name}" for name in names]
    config = own_config(
        *(tmp_path, place, space, method),
        base="",
        experts=[f"{name}={path}" for name, path in where.items()],
        statistics=folders,
        per_expert=["weights"] if "weights" in space else [],
    )
    workdir = tmp_path / "w"
    assert main(["search", "--config", str(config), "--workdir", str(workdir)]) == 0
    assert len({line["value"] for line in records(workdir)}) > 1
    best = max(records(workdir), key=lambda line: line["value"])
    merged = workdir / f"merged_{best['number']}"
    assert verify(str(merged)) == []
    argv = ["merge", "--config", str(workdir / "best.py")]
    assert main([*argv, f"--config.output={tmp_path / 'again'}"]) == 0
    manifests = [
        json.loads((p / "manifest.json").read_text())
        for p in (merged, tmp_path / "again")
    ]
    assert manifests[0]["leaves"] == manifests[1]["leaves"]
    # What was scored has the streamed merge's bits, and so its score.
    told = {name: f"{tmp_path}/told_{name}" for name in names}
    held = Resident(None, where, None, {kind: told})
    params = held.merged(Recipe(best["method"], ()), 0)
    expected = tree.flatten(hf.load(merged)[1])
    for path, leaf in tree.flatten(params).items():
        assert np.asarray(leaf).tobytes() == np.asarray(expected[path]).tobytes(), path


RECIPES = [
    Recipe("ties(density=0.3, scale=0.7)", ()),
    Recipe(
        "dare_ties(density=0.5, scale=1.5)",
        (
            "norm|embed => base",
            "attn|query|key|value|output => task_arithmetic(scale=0.3)",
        ),
    ),
]


@pytest.mark.parametrize("layout", ["orbax", "safetensors"])
def test_what_is_scored_has_the_bits_of_the_streamed_merge(place, tmp_path, layout):
    names = ("base", "e1", "e2")
    where = {name: str(place / name) for name in names}
    if layout == "safetensors":
        for name in names:
            convert(where[name], str(tmp_path / name), format=layout)
        where = {name: str(tmp_path / name) for name in names}
    base = where.pop("base")
    held = Resident(base, where)
    for number, recipe in enumerate(RECIPES):
        output = tmp_path / f"merged{number}"
        merging.merge_checkpoints(
            base, where, recipe.method, output, leaf_rules=recipe.rules, seed=3
        )
        _, expected = hf.load(output)
        ours = tree.flatten(held.merged(recipe, 3))
        for path, leaf in tree.flatten(expected).items():
            np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


SPEC = rules.parse("ties(zero='positive')")


def test_a_point_is_a_merge_with_numbers_for_experts_and_groups():
    space = searched.space(
        SPEC,
        {"weights": (0, 1), "scale": (0.5, 2), "density": (0.1, 0.9)},
        ["qa", "nli"],
        per_expert=("weights",),
        per_group=("weights", "scale"),
        groups={"mlp": "up|down"},
    )
    labels = [d.label for d in space.dimensions]
    assert labels == [
        *("weights[qa]{mlp}", "weights[nli]{mlp}"),
        *("weights[qa]{others}", "weights[nli]{others}"),
        *("scale{mlp}", "scale{others}", "density"),
    ]
    point = dict(zip(labels, (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8), strict=True))
    assert space.recipe(point) == Recipe(
        "ties(zero='positive', weights=(0.3, 0.4), scale=0.7, density=0.8)",
        (
            "up|down => ties(zero='positive', weights=(0.1, 0.2), scale=0.6,"
            " density=0.8)",
        ),
    )


def test_ranges_of_layers_are_patterns_of_their_leaves():
    paths = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(11)]
    groups = layer_groups([*paths, "model.embed_tokens.weight"], 3)
    assert list(groups) == ["layers 0-2", "layers 3-6", "layers 7-10"]
    chosen = rules.recipe(
        paths, "average", [f"{g} => average(weights=(1, 2))" for g in groups.values()]
    )
    assert {m.weights for m in chosen.values()} == {(1.0, 2.0)}
    first = rules.recipe(paths, "average", [f"{groups['layers 0-2']} => dare()"])
    names = [m.name for m in first.values()]
    assert names == ["dare"] * 3 + ["average"] * 8
    with pytest.raises(UserError, match="the leaves' paths tell 0 layers apart"):
        layer_groups(["layers/up", "embed"], 2)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_trials_asked_again_are_the_same(sampler):
    space = searched.space(
        SPEC, {"scale": (0, 1), "density": (0.1, 1)}, ["a"], per_expert=()
    )

    def made(kept):
        asked = []

        def evaluate(new):
            for number, point in new:
                asked.append(number)
                value = -((point["scale"] - 0.3) ** 2) - (point["density"] - 0.5) ** 2
                yield {"number": number, "point": point, "value": value}

        settings = dict(trials=30, batch=4, workers=1, seed=1, points=3, begin=[])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lines = [
                trial.line
                for trial in trials.search(
                    space, evaluate, sampler=sampler, kept=kept, **settings
                )
            ]
        return lines, asked

    every, asked = made({})
    assert asked == list(range(30))
    again, asked = made({line["number"]: line for line in every[:18]})
    assert again == every and asked == list(range(18, 30))
    other = every[0] | {"point": {"scale": 0.5, "density": 0.5}}
    with pytest.raises(UserError, match="trial 0 of this workdir is not what Optuna"):
        made({0: other})


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", "grid"])
def test_a_number_whose_default_is_whole_is_searched_over_whole_numbers(sampler):
    ranges = {"agree": (1, 4), "scale": (0, 1)}
    space = searched.space(rules.parse("consensus_ta"), ranges, ["a"])

    def made(kept):
        def evaluate(new):
            for number, point in new:
                searched._methods(space.recipe(point))  # or it is refused
                value = -abs(point["agree"] - 3) - abs(point["scale"] - 0.3)
                yield {"number": number, "point": point, "value": value}

        settings = dict(trials=20, batch=4, workers=1, seed=1, points=5)
        begin = searched.starts(space, {}, None)
        lines = [
            json.loads(json.dumps(trial.line))
            for trial in trials.search(
                *(space, evaluate), sampler=sampler, kept=kept, begin=begin, **settings
            )
        ]
        return lines

    every = made({})
    found = [line["point"]["agree"] for line in every]
    assert {type(value) for value in found} == {int} and {*found} == {1, 2, 3, 4}
    assert found[0] == (1 if sampler == "grid" else 2)
    assert made({line["number"]: line for line in every[:9]}) == every


def test_whole_numbers_need_a_range_of_whole_numbers():
    with pytest.raises(UserError, match="agree = .* as the default 2 is"):
        searched.space(rules.parse("consensus_ta"), {"agree": (1, 2.5)}, ["a"])


def test_a_grid_holds_the_ends_of_every_range():
    space = searched.space(SPEC, {"scale": (0, 1), "density": (0.2, 0.4)}, ["a"])
    points = searched.grid_points(space, 3)
    assert len(points) == 9
    assert points[0] == {"scale": 0, "density": 0.2}
    assert points[-1] == pytest.approx({"scale": 1, "density": 0.4})
    with pytest.raises(UserError, match="has 1,000,000 trials"):
        searched.grid_points(space, 1000)


MISTAKES = [
    ({"experts": ""}, "no experts"),
    ({"trials": 0}, "trials = 0 must be 1 or more"),
    ({"sampler": "tep"}, "unknown sampler 'tep': did you mean tpe"),
    ({"method.name": "tises"}, "unknown method 'tises': did you mean ties"),
    ({"method.name": "model_stock"}, "unknown parameter of model_stock 'weights'"),
    ({"space.weights": "1,0"}, "space.weights = (1.0, 0.0) must be (low, high)"),
    ({"method.name": "fisher"}, "fisher needs statistics of every expert, and there"),
    ({"statistics": "e1=gone"}, "statistics are given, and no method uses them"),
    ({"method.name": "nuslerp"}, "nuslerp merges 2 experts, not 3; multislerp or"),
    ({"per_expert": ""}, "weights are one for each expert"),
    ({"per_expert": "weights,scale"}, "per_expert: scale has no range in space"),
    ({"groups": "mlp"}, "per_group names no parameter"),
    ({"per_group": "weights"}, "per_group needs groups of leaves"),
    ({"per_group": "weights", "layer_ranges": 2}, "tell 0 layers apart"),
    ({"per_group": "weights", "groups": "nowhere"}, "rules that match no leaf"),
    ({"per_group": "weights", "groups": "a("}, "the pattern is malformed"),
    ({"sampler": "grid", "points": 1000}, "has 1,000,000,000 trials"),
    ({"datasets": "heu"}, "did you mean hue"),
    ({"base": ""}, "task_arithmetic: this needs the base"),
    ({"base": "gone"}, "there is no checkpoint at gone"),
    ({"bootstrap.resamples": 1}, "bootstrap needs 2 resamples"),
    ({"seed": "x"}, "expected a whole number"),
]


@pytest.mark.parametrize(("values", "words"), MISTAKES)
def test_what_cannot_be_searched_is_one_line_and_makes_nothing(
    place, tmp_path, capsys, values, words
):
    workdir = tmp_path / "w"
    assert main(arguments(place, workdir, **values)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert not workdir.exists()


def test_another_configs_workdir_is_refused(place, whole, capsys):
    workdir, _ = whole
    assert main(arguments(place, workdir, search_seed=1)) == 2
    assert "holds the run of another config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampler", "together"), [("grid", 4), ("random", 4), ("tpe", 1), ("cmaes", 1)]
)
def test_all_workers_are_asked_where_the_next_trial_depends_on_none(sampler, together):
    space = searched.space(SPEC, {"scale": (0, 1), "density": (0.1, 1)}, ["a"])

    def made(workers):
        asked = []

        def evaluate(new):
            asked.append(len(new))
            for number, point in new:
                yield {"number": number, "point": point, "value": -point["scale"]}

        how = dict(trials=9, batch=1, seed=1, points=3, begin=[], kept={})
        given = dict(sampler=sampler, workers=workers, **how)
        return [trial.line for trial in trials.search(space, evaluate, **given)], asked

    lines, asked = made(4)
    assert asked == [4, 4, 1] if together == 4 else [1] * 9
    assert lines == made(1)[0]


def test_a_search_whose_experts_score_nothing_on_test_ends_with_no_ratios():
    def scores(value):
        counts = np.full((4, 1), value, np.float32)
        template = TemplateScore(4, 0, "", {"accuracy": value}, {"accuracy": counts})
        facts = ("hue", "hues", "held_in", "accuracy", 0.5)
        return [DatasetScore(*facts, value, 4, templates={"": template})]

    found = {"base": scores(0.0), "expert e1": scores(0.0)}
    found |= {outcome.GRID: scores(0.25), outcome.BEST: scores(1.0)}
    lines = outcome.compared(found, bootstrap.Options(resamples=20))
    assert [line["mean"] for line in lines] == [0.0, 0.0, 0.25, 1.0, 0.75]
    kept = json.loads(json.dumps(lines, allow_nan=False))
    assert {line[f"ratio{end}"] for line in kept for end in ("", "_low", "_high")} == {
        None
    }
    assert outcome._table(lines).count(" -") == 3 * len(lines)
    points = [Point(0, {"scale": 0.5}, 0.5)]
    text = render(search_page.page(points, kept, gain=outcome.GAIN))
    assert "no expert scores anything; the mean of its values is 1.0000" in text
