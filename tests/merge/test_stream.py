"""Streaming merges: the bits of a merge in memory, whatever the blocks and formats."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import models
import numpy as np
import pytest
from methods import cases
from safetensors.numpy import load_file
from statistics_of import statistics_of

from merging import UserError, checkpoints, methods
from merging.cli import main
from merging.merge import magnitudes, memory, on_host, passes
from merging.merge import majority as majority_module
from merging.merge import streamed as stream
from merging.merge.costs import cost
from merging.runtime import tree
from merging.runtime.progress import Progress

ROOT = Path(__file__).parents[2]

ROWS = methods.compose(
    "rows",
    methods.trim(0.3, "row", "exact"),
    combiner=methods.elect_sign(),
    scale=0.7,
)
RANKED = methods.compose(
    "ranked",
    methods.magprune(0.5, 0.2),
    methods.trim(0.3),
    combiner=methods.combiners.sum(),
    scale=0.7,
)
METHODS = {
    "average": methods.average(weights=(1, 2, 0.5)),
    "ties": methods.ties(),
    "ties of tensors": methods.ties(scope="tensor", density=(0.2, 0.5, 0.1)),
    "ties exact": methods.ties(ties="exact"),
    "dare_ties trimmed": methods.dare_ties(density=0.6, trim_density=0.4),
    "rht": methods.rht(density=0.4),
    "rows": ROWS,
    "trimmed by what ranks in rows left": RANKED,
}


def in_memory(family, method):
    base, experts = family
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in experts.items()}
    return memory.merge(load_file(f"{base}/model.safetensors"), loaded, method)


def merged(family, method, output, **settings):
    base, experts = family
    return stream.merge_checkpoints(base, experts, method, str(output), **settings)


@pytest.fixture(scope="module")
def few_shapes(tmp_path_factory):
    """Families whose programs are few: two matrices of one shape, larger than a block.

    The second has a vector, too. What others ask of the engine, `family` has.
    """
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (60, 130) for i in range(2)}
    return [
        models.family(tmp_path_factory.mktemp("few_shapes"), shapes={**shapes, **more})
        for more in ({}, {"model.norm.weight": (130,)})
    ]


@pytest.mark.parametrize("name", methods.names())
def test_every_registered_method_streams_the_bits_of_memory(
    few_shapes, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(on_host, "PART", 1024)  # seven rows, or four
    made = []
    read = passes.Passes._read
    monkeypatch.setattr(
        passes.Passes, "_read", lambda self, *a: made.append(1) or read(self, *a)
    )
    base, experts = few_shapes[name in cases.KINDS]
    # By default several of mergekit's keep all.
    parameters = cases.CASES[name][0] if "@" in name else {}
    method = methods.get(name, **parameters)
    experts = dict(list(experts.items())[: method.takes])
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in experts.items()}
    start = load_file(f"{base}/model.safetensors")
    told = statistics_of(method, loaded) or {}
    for expert, leaves in told.items():
        models.save(tmp_path / expert / method.statistics.name, leaves)
    folders = {expert: str(tmp_path / expert) for expert in told}
    settings = {"memory_budget": "200kB", "seed": 3, "statistics": folders}
    path = merged((base, experts), method, tmp_path / "out", **settings)
    expected = memory.merge(start, loaded, method, seed=3, statistics=told)
    expected = models.bits(expected)
    assert models.bits(load_file(path / "model.safetensors")) == expected
    # As `merging methods` says, but for a window that misses, and the merge itself.
    assert len(made) < cost(method).passes + 2
    assert bool(made) == (cost(method).passes > 1)


@pytest.mark.parametrize(
    ("name", "budget"),
    [(name, "700kB") for name in METHODS]
    # All in a block, but for what needs one of its own.
    + [(name, "200MB") for name in ("average", "ties of tensors", "rht", "rows")],
)
def test_it_has_the_bits_of_a_merge_in_memory(family, tmp_path, name, budget):
    method = METHODS[name]
    path = merged(family, method, tmp_path / "out", memory_budget=budget)
    expected = models.bits(in_memory(family, method))
    assert models.bits(load_file(path / "model.safetensors")) == expected


@pytest.mark.parametrize("name", ["average", "ties", "rht", "rows"])
def test_progress_is_at_its_end_with_the_last_block_alone(
    family, tmp_path, monkeypatch, name
):
    told, advance = [], Progress.advance

    def listened(shown, *arguments):
        advance(shown, *arguments)
        told.append((shown.done, shown.total))

    monkeypatch.setattr(Progress, "advance", listened)
    merged(family, METHODS[name], tmp_path / "out", memory_budget="700kB")
    *before, (done, total) = told
    assert len(before) > 3 and done == total
    assert all(done < total for done, total in before)


@pytest.mark.parametrize("name", ["ties", "rht"])
def test_of_a_large_model_runs_of_neighbours_are_sampled(
    family, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(magnitudes, "RUNS", 16)  # 32,768 elements of 145,000
    path = merged(family, METHODS[name], tmp_path / "out", memory_budget="700kB")
    expected = models.bits(in_memory(family, METHODS[name]))
    assert models.bits(load_file(path / "model.safetensors")) == expected


def test_what_answers_no_further_query_is_not_kept(few_shapes, tmp_path, monkeypatch):
    """Or it would be the more, the more layers have a density of their own."""
    made, stages, counted = [], [], passes.Passes._counted

    def listened(self, stage, queries, *guess):
        kept = {name for name, _ in self._histograms}
        assert kept <= {stage.name} and len(self._histograms) <= 3 - len(queries)
        made.append(self)
        stages.append(stage.name)
        return counted(self, stage, queries, *guess)

    monkeypatch.setattr(passes.Passes, "_counted", listened)
    method = "ties(density=by_layer(0.1, 0.5), scope='tensor')"
    merged(few_shapes[0], method, tmp_path / "out", memory_budget="200kB")
    assert len(set(stages)) == 2
    assert made[0]._histograms == {} and made[0]._sample is None


@pytest.mark.parametrize(
    "method", [methods.ties(density=1), methods.della(density=0.6, epsilon=0.3)]
)
def test_a_negative_majority_decides_where_votes_cancel(tmp_path, method):
    base = {"a": np.zeros((40, 50), np.float32), "b": np.zeros(70, np.float32)}
    moves = np.random.default_rng(0).choice([-1, -1, 1], (2, 40, 50)) / 4
    experts = [{"a": m.astype(np.float32), "b": base["b"] - 1} for m in moves]
    family = (
        models.save(tmp_path / "base", base),
        {f"e{i}": models.save(tmp_path / f"e{i}", e) for i, e in enumerate(experts)},
    )
    path = merged(family, method, tmp_path / "out")
    found = load_file(path / "model.safetensors")
    cancelled = moves[0] == -moves[1]
    assert 0 < cancelled.sum() < cancelled.size
    if method.name == "ties":
        assert (found["a"][cancelled] == -0.25).all()
    # DELLA's chances follow from ranks in whole rows.
    assert models.bits(found) == models.bits(in_memory(family, method))


@pytest.mark.parametrize("majority", [1, -1])
def test_a_majority_that_turns_at_the_end_is_everyones(tmp_path, monkeypatch, majority):
    """Blocks are merged under the majority so far: those of "a" under the other."""
    shapes, rng = {"a": (500, 300), "b": (700, 100)}, np.random.default_rng(0)
    shares = {"a": 0.48, "b": 0.9}  # that lean to the majority
    moves = {
        n: majority * rng.choice([-1, 1], (2, *s), p=[1 - shares[n], shares[n]]) / 4
        for n, s in shapes.items()
    }
    base = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    experts = [{n: m[i].astype(np.float32) for n, m in moves.items()} for i in range(2)]
    family = (
        models.save(tmp_path / "base", base),
        {f"e{i}": models.save(tmp_path / f"e{i}", e) for i, e in enumerate(experts)},
    )
    whole, over = majority_module._written_over, []

    def written_over(*arguments):
        over.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(majority_module, "_written_over", written_over)
    method = methods.ties(density=1)
    path = merged(family, method, tmp_path / "out", memory_budget="700kB")
    found = load_file(path / "model.safetensors")
    cancelled = moves["a"].sum(axis=0) == 0
    assert cancelled.any() and (found["a"][cancelled] == majority / 4).all()
    assert models.bits(found) == models.bits(in_memory(family, method))
    assert over


def test_leaves_of_several_dtypes_are_ranked_together(tmp_path):
    start = models.base()
    start["model.embed_tokens.weight"] = start["model.embed_tokens.weight"].astype("f4")
    experts = {f"e{i}": models.expert(start, i) for i in range(2)}
    family = (
        models.save(tmp_path / "base", start),
        {n: models.save(tmp_path / n, e) for n, e in experts.items()},
    )
    path = merged(family, methods.ties(), tmp_path / "out", memory_budget="700kB")
    expected = models.bits(in_memory(family, methods.ties()))
    assert models.bits(load_file(path / "model.safetensors")) == expected


@pytest.mark.parametrize("method", ["ties", "rht"])
def test_orbax_and_safetensors_hold_the_same_leaves(family, tmp_path, method):
    expected = models.bits(in_memory(family, METHODS[method]))
    settings = {"memory_budget": "64MB"}
    orbax = merged(
        family, METHODS[method], tmp_path / "orbax", format="orbax", **settings
    )
    restored = tree.flatten(checkpoints.restore(orbax))
    assert models.bits(restored) == expected
    base, experts = family
    inputs = (str(orbax), {"one": str(orbax)})
    back = merged(inputs, "average()", tmp_path / "back", format="safetensors")
    assert models.bits(load_file(back / "model.safetensors")) == expected
    assert stream.verify(str(orbax)) == stream.verify(str(back)) == []


def test_shards_have_an_index_and_the_same_leaves(family, tmp_path):
    path = merged(family, "ties()", tmp_path / "out", shard_size="100kB")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 1
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    joined = {}
    for shard in shards:
        joined |= load_file(shard)
    assert models.bits(joined) == models.bits(in_memory(family, METHODS["ties"]))
    sizes = sum(leaf.nbytes for leaf in joined.values())
    assert index["metadata"]["total_size"] == sizes


def test_the_output_may_have_another_dtype(family, tmp_path):
    path = merged(family, "task_arithmetic()", tmp_path / "out", dtype="float32")
    leaves = load_file(path / "model.safetensors")
    rounded = {p: a.astype(jnp.bfloat16) for p, a in leaves.items() if p != "positions"}
    rounded["positions"] = leaves["positions"]
    expected = models.bits(in_memory(family, methods.task_arithmetic()))
    assert models.bits(rounded) == expected
    assert json.loads((path / "config.json").read_text())["torch_dtype"] == "float32"


def test_rules_treat_leaves_apart(family, tmp_path):
    path = merged(
        family,
        "task_arithmetic(scale=1.0)",
        tmp_path / "out",
        leaf_rules=[
            "norm|scalar => base",
            "mlp => task_arithmetic(scale=by_layer(0.5, 1.0), weights=(1, 0, 0))",
        ],
    )
    base, experts = family
    start = load_file(f"{base}/model.safetensors")
    leaves = load_file(path / "model.safetensors")
    first = load_file(f"{experts['e0']}/model.safetensors")
    norm = "model.layers.0.input_layernorm.weight"
    assert leaves[norm].tobytes() == start[norm].tobytes()
    for layer, scale in ((0, 0.5), (1, 1.0)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        old = start[name].astype(np.float32)
        delta = first[name].astype(np.float32) - old
        expected = (old + np.float32(scale) * delta).astype(jnp.bfloat16)
        assert leaves[name].tobytes() == expected.tobytes()


def test_rules_are_followed_from_the_command_line(family, tmp_path, capsys):
    base, experts = family
    config = str(ROOT / "configs" / "merge" / "average.py")
    command = ["merge", "--config", config, f"--config.output={tmp_path / 'apart'}"]
    command += [
        f"--config.base={base}",
        f"--config.experts={','.join(experts.values())}",
    ]
    apart = "--config.rules=mlp => dare(density=0.5, scale=1), norm|scalar => base"
    assert main.main([*command, apart]) == 0, capsys.readouterr().err
    rules = json.loads((tmp_path / "apart" / "manifest.json").read_text())
    assert rules["settings"]["leaf_rules"] == [
        "mlp => dare(density=0.5, scale=1)",
        "norm|scalar => base",
    ]


@pytest.mark.parametrize(
    ("method", "passes"), [("average", 1), ("ties", 2), ("rht", 3)]
)
def test_a_dry_run_prints_the_plan_and_makes_nothing(
    family, tmp_path, capsys, method, passes
):
    base, experts = family
    words = {
        "base": base,
        "experts": ",".join(experts.values()),
        "output": tmp_path / "o",
    }
    command = ["merge", "--config", str(ROOT / "configs" / "merge" / f"{method}.py")]
    command += [f"--config.{key}={word}" for key, word in words.items()]
    assert main.main([*command, "--config.memory_budget=200kB", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith(method)]
    assert int(row.split()[4]) == passes
    assert not list(tmp_path.iterdir())


def test_a_manifest_repeats_the_merge_and_verify_notices_a_changed_byte(
    family, tmp_path
):
    path = merged(family, "dare_ties(density=0.5)", tmp_path / "out", seed=3)
    again = stream.repeat(path / "manifest.json", str(tmp_path / "again"))
    weights = (path / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    with open(again / "model.safetensors", "r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)[0]
        file.seek(-1000, 2)
        file.write(bytes([byte ^ 1]))
    (line,) = stream.verify(str(again))
    assert "its bytes have changed" in line


def test_a_manifest_is_not_repeated_with_other_inputs(tmp_path):
    family = models.family(tmp_path)
    path = merged(family, "ties()", tmp_path / "out")
    shutil.rmtree(family[1]["e0"])
    models.save(tmp_path / "e0", models.expert(models.base(), 9))
    with pytest.raises(UserError, match="not what they were: .*e0"):
        stream.repeat(path / "manifest.json", str(tmp_path / "again"))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"method": "ties()"}},
        {"settings": 3},
        {"inputs": None},
        {"inputs": []},
        {"leaves": {"w": "abc"}},
        {"version": 7},
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(family, tmp_path, change):
    path = merged(family, "task_arithmetic()", tmp_path / "out") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"manifest\.json"):
        stream.repeat(path, str(tmp_path / "again"))


def test_an_expert_given_twice_counts_twice_with_a_warning(family, tmp_path):
    base, experts = family
    with pytest.warns(UserWarning, match="more than once.*e0"):
        path = stream.merge_checkpoints(
            base, [experts["e0"]] * 2, "task_arithmetic(scale=0.5)", str(tmp_path / "o")
        )
    once = stream.merge_checkpoints(
        base, [experts["e0"]], "task_arithmetic(scale=1.0)", str(tmp_path / "once")
    )
    one, two = (load_file(p / "model.safetensors") for p in (once, path))
    assert models.bits(one) == models.bits(two)
