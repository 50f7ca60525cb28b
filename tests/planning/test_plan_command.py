"""`merging plan`: its tables and data, its fallbacks, and what it refuses."""

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from merging import models, planning, sweep
from merging.cli.main import main
from merging.models import hf as families
from merging.planning import child, compiling, rendering
from merging.runtime import config as configs
from merging.runtime.errors import UserError
from merging.sweep import with_needs

PALM = ["plan", "--config", "configs/plan/palm_64b.py"]
GRID = ["plan", "--config", "scaling_curves/palm"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs libtpu (the extra tpu)",
)


def run(capsys, *arguments, command=PALM):
    status = main([*command, *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def cells(text, row):
    """Return the cells of the first line that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(row))
    return re.split(r"\s{2,}", line)


def test_the_data_parses_and_the_tables_hold_its_numbers(capsys):
    where = ["--topology", "h200:8x16", "--count"]
    _, text, _ = run(capsys, *where, command=GRID)
    status, out, _ = run(capsys, *where, "--json", command=GRID)
    found = json.loads(out)
    assert status == 0
    blocks = text.split("\n\n")
    for estimate in found["estimates"]:
        memory, name = estimate["bytes_per_device"], estimate["name"]
        if memory is not None:
            shown = cells(blocks[1], name)
            parts = ("arguments", "outputs", "scratch")
            assert shown[2:5] == [rendering.size(memory[part]) for part in parts]
        header, shown = cells(blocks[2], "time allowed by"), cells(blocks[2], name)
        row = dict(zip(header, shown, strict=True))
        for limit, seconds in estimate["seconds"].items():
            assert row[limit] == rendering.seconds(seconds)
        assert row["bottleneck"] == estimate["bottleneck"]
        assert row["chip-hours"] == rendering.number(estimate["chip_hours"])
    total = cells(blocks[4], "all")
    assert total[-1] == rendering.number(found["grid"]["chip_hours"])
    assert found["grid"]["merges"] == 480


def test_64b_on_128_chips_has_the_bytes_and_seconds_of_its_shape(capsys):
    _, out, _ = run(capsys, "--topology", "v5p:4x4x8", "--count", "--json")
    streaming, merge, score, step = json.loads(out)["estimates"]
    params, chips = 62_495_662_080, 128
    # Two passes over nine models of bfloat16, dealt to 32 hosts by whole blocks.
    assert streaming["bytes_per_host"]["read"] == pytest.approx(
        2 * 9 * 2 * params / 32, rel=0.01
    )
    assert streaming["bytes_per_host"]["written"] == pytest.approx(
        2 * params / 32, rel=0.01
    )
    assert merge["bottleneck"] == "storage"
    assert merge["seconds"]["storage"] == pytest.approx(9 * 2 * params / 32 / 2e9)
    # Parameters and two moments in float32; eight operations a weight and token.
    assert step["bytes_per_device"]["arguments"] == pytest.approx(
        12 * params / chips, rel=0.02
    )
    tokens = 128 * 1024
    attention = 4 * 4 * 64 * 32 * 256 * 1024 * tokens / chips
    assert step["flops_per_device"] == pytest.approx(
        8 * params * tokens / chips + attention, rel=0.001
    )
    assert step["seconds"]["compute"] == step["flops_per_device"] / 459e12
    assert step["chip_hours"] == pytest.approx(
        step["bound_seconds"] / 0.5 * chips / 3600
    )
    assert all(p["fits"] for p in (merge, score, step))


def test_what_does_not_fit_says_so(capsys):
    _, text, _ = run(capsys, "--topology", "h100:8x1", "--count", "--only", "training")
    assert cells(text, "training step")[1] == "NO"


def test_slices_exchange_gradients_over_the_network(capsys):
    where = ["--topology", "v5p:4x4x4", "--slices", "2", "--count", "--json"]
    _, out, _ = run(capsys, *where)
    found = json.loads(out)
    assert found["mesh"] == {"data": 2, "fsdp": 16, "tensor": 4}
    step = found["estimates"][-1]
    (one,) = [c for c in step["collectives"] if c["network"]]
    assert one["kind"] == "all-reduce"
    # Each of two copies sends what it holds once: scatter, then gather.
    assert one["sent"] == pytest.approx(4 * 62_495_662_080 / 64, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--topology", "v5q:4x4"], "unknown chip 'v5q': did you mean v5p"),
        (["--topology", "v5p:3x4x4"], "the first two sizes must be even"),
        (
            ["--topology", "v5p:4x4x8", "--config.mesh.tensor=64"],
            "tensor=64 does not divide 32 heads; tensor may be 1, 2, 4, 8, 16, 32",
        ),
        (["--topology", "v5p:4x4x8", "--config.mesh.tensor=3"], "give sizes whose"),
        (
            ["--topology", "v5p:4x4x8", "--config.scoring.batch=12"],
            "12 rows do not divide over 32 devices",
        ),
        (
            ["--topology", "v5p:4x4x8", "--config.efficiency=0.0"],
            "must be positive: efficiency = 0.0",
        ),
        (["--topology", "v5p:4x4x8", "--only", "mergee"], "did you mean merge"),
        (["--topology", "v5p:4x4x8", "--config.size=65b"], "did you mean 64b"),
    ],
)
def test_what_is_wrong_is_refused_in_one_message(capsys, arguments, why):
    status, out, error = run(capsys, "--count", *arguments)
    assert (status, out) == (2, "")
    assert why in error and "Traceback" not in error


def test_a_config_of_something_else_is_refused(capsys):
    train = ["--config", "train/pretrain", "--topology", "cpu:8"]
    assert main(["plan", *train]) == 2
    assert "--config plan/palm_64b" in capsys.readouterr().err


def test_without_libtpu_it_counts_and_says_so(capsys, monkeypatch):
    version = metadata.version

    def without(name):
        if name == "libtpu":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(compiling.metadata, "version", without)
    _, text, _ = run(capsys, "--topology", "v5p:4x4x8", "--only", "merge")
    assert "counted: libtpu is not installed" in text
    _, out, _ = run(capsys, "--topology", "v5p:4x4x8", "--only", "merge", "--json")
    found = json.loads(out)
    assert found["compiler"] == "" and "libtpu" in found["missing"]
    assert {estimate["source"] for estimate in found["estimates"]} == {"counted"}


@pytest.mark.parametrize(
    ("crash", "how"),
    [
        ("import os; os.kill(os.getpid(), 11)", "it was ended by SIGSEGV"),
        (
            "import sys; sys.exit('no such chip')",
            "it ended with status 1: no such chip",
        ),
    ],
)
def test_a_compiler_that_crashes_leaves_counts_and_a_note(
    capsys, monkeypatch, crash, how
):
    version = metadata.version
    monkeypatch.setattr(
        compiling.metadata, "version", lambda n: "0" if n == "libtpu" else version(n)
    )
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", crash))
    only = ["--topology", "v5e:16x16", "--only", "scoring"]
    status, text, error = run(capsys, *only)
    assert (status, error) == (0, "")
    assert f"scoring is counted: compiling it for v5e:16x16 failed ({how})" in text
    _, out, _ = run(capsys, *only, "--json")
    crashed = json.loads(out)
    _, out, _ = run(capsys, *only, "--count", "--json")
    assert crashed["estimates"] == json.loads(out)["estimates"]
    assert crashed["compiler"] == ""


def test_what_another_process_compiles_stands_in_the_place_of_the_counts(
    capsys, monkeypatch
):
    def planned(config, where, part):
        found = planning.plan_here(config, where, compile=False, parts=[part])
        for estimate in found["estimates"]:
            estimate["source"] = "libtpu 0"
        return {**found, "compiler": "libtpu 0", "missing": ""}

    monkeypatch.setattr(compiling, "has_libtpu", lambda: True)
    monkeypatch.setattr(child, "planned", planned)
    _, out, _ = run(
        capsys, "--topology", "v5e-16".replace("v5e", "v5litepod"), "--json"
    )
    found = json.loads(out)
    assert found["topology"]["name"] == "v5e:4x4" and found["compiler"] == "libtpu 0"
    names = {e["name"]: e["source"] for e in found["estimates"]}
    assert names.pop("streamed merge") == "libtpu 0"
    assert names == dict.fromkeys(
        ("in-memory merge", "scoring", "training step"), "libtpu 0"
    )


def test_the_pages_figures_are_those_that_the_command_prints(capsys):
    page = Path("docs/plan.md").read_text()
    command = "merging plan --config scaling_curves/palm --topology v5p:4x4x8 --count"
    assert command in page and command in Path("README.md").read_text()
    where = ["--topology", "v5p:4x4x8", "--count", "--json"]
    _, out, _ = run(capsys, *where, command=GRID)
    found = json.loads(out)
    for estimate in found["estimates"]:
        memory = estimate["bytes_per_device"]
        cells = [
            "none" if memory is None else rendering.size(memory["peak"]),
            estimate["bottleneck"],
            rendering.seconds(estimate["expected_seconds"]),
            rendering.number(estimate["chip_hours"]),
        ]
        (row,) = [
            line
            for line in page.splitlines()
            if line.startswith(f"| {estimate['name']}")
        ]
        assert [cell.strip() for cell in row.split("|")[2:-1]] == cells, row
    sizes = found["grid"]["sizes"]
    parts = {
        name: sum(one[name] for one in sizes)
        for name in sizes[0]
        if name in ("training", "merging", "evaluation")
    }
    hours = {name: rendering.number(value) for name, value in parts.items()}
    total = rendering.number(found["grid"]["chip_hours"])
    said = " ".join(page.split())
    assert (
        f"takes {total} chip-hours: training {hours['training']}, merging "
        f"{hours['merging']}, evaluation {hours['evaluation']}." in said
    )
    (reduced,) = found["estimates"][1]["collectives"]
    assert f"sends {rendering.size(reduced['sent'])} a chip" in said
    assert f"at most {rendering.size(reduced['largest'])}" in said


def test_for_a_gpu_and_for_more_virtual_devices_than_there_are_it_counts(capsys):
    assert len(jax.devices()) == 8  # JAX is awake, and their number settled
    for name, why in (
        ("h200:8x2", "JAX compiles for a GPU only where there is one"),
        ("cpu:16", "this process has only 8 virtual devices"),
    ):
        _, out, _ = run(capsys, "--topology", name, "--only", "merge", "--json")
        assert why in json.loads(out)["missing"]


def small_grid(**changes):
    """Return a sweep of two sizes in PaLM's shape, none of whose files is there."""
    overrides = {"sizes": "1b,8b", "pretrained_bases": "1b/pt=nowhere,8b/pt=nowhere"}
    overrides |= {"methods": "average,ties", "scales.ties": "0.5,1.0"}
    return configs.load("scaling_curves/palm", overrides | changes)


def test_a_grid_costs_the_very_steps_of_its_sweep(estimate_of):
    config = small_grid(**{"plan.rows": "1000", "plan.validation_rows": "160"})
    found = planning.plan(config, "v5p:2x2x1", compile=False)
    steps = with_needs(sweep.Grid(sweep.planned(config), lambda *_: "").targets())
    large = found["grid"]["sizes"][1]
    own = [step for step in steps if step.settings.get("size") == "8b"]
    trained = [s.settings["hyperparameters"]["steps"] for s in own if s.trained]
    assert (large["merges"], found["grid"]["merges"]) == (48, 96)
    assert any(line.endswith("x 3 runs") for line in found["grid"]["assumptions"])
    # 2 x 3 x 8 experts, an instructed base and two multitask models; 300, 2,000, 2,400.
    assert len(trained) == 51 and sum(trained) == 48 * 300 + 2000 + 2 * 2400
    load = found["model"]["parameters"] * 2 / 2e9
    step = estimate_of(found, "training step")["expected_seconds"]
    hours = 4 / 3600
    assert large["training"] == pytest.approx(hours * (sum(trained) * step + 51 * load))
    # Tests: 48 merges, two bases, multitask models twice; each dataset of 23 by its
    # expert, in six runs. Validation, ten rows a dataset: by its expert, and in each of
    # 24 TIES merges for two values of λ, of 2 + 4 + 6 + 8 datasets' pairs, six times.
    tested = (48 + 2 + 2 * 2) * 1000 + 6 * 16 / 23 * 1000
    validated = 6 * 16 * 10 + 6 * 2 * (2 + 4 + 6 + 8) * 2 * 10
    batch = estimate_of(found, "scoring")["expected_seconds"]
    expected = hours * (tested + validated) / 128 * batch
    assert large["evaluation"] == pytest.approx(expected)
    total = sum(large[part] for part in ("training", "merging", "evaluation"))
    assert large["total"] == pytest.approx(total)


def test_a_grid_that_gathers_statistics_costs_their_gradients():
    plain = planning.plan(small_grid(), "v5p:2x2x1", compile=False, parts=["grid"])
    more = small_grid(methods="average,ties,fisher")
    found = planning.plan(more, "v5p:2x2x1", compile=False, parts=["grid"])
    assert found["grid"]["merges"] == 96 * 3 / 2
    for one, other in zip(plain["grid"]["sizes"], found["grid"]["sizes"], strict=True):
        assert other["training"] > one["training"]


def test_a_grid_counts_statistics_beside_its_merges():
    by = {
        method: planning.plan(
            small_grid(methods=method), "v5e:2x2", compile=False, parts=["grid"]
        )
        for method in ("average", "regmean")
    }
    decoder = sweep.planned(small_grid()).decoder("8b")
    # Of the widest map, in every layer and in float32, eight experts'.
    told = 8 * decoder.layers * decoder.d_ff**2 * 4
    said = {
        method: next(n for n in found["notes"] if "8b: a merge" in n)
        for method, found in by.items()
    }
    sizes = {m: re.search(r"([\d.]+) ([GT]B) of", n).groups() for m, n in said.items()}
    peaks = {m: float(n) * {"GB": 1e9, "TB": 1e12}[u] for m, (n, u) in sizes.items()}
    assert peaks["regmean"] - peaks["average"] == pytest.approx(told, rel=0.01)
    assert "8b: gathering gram does not fit" in " ".join(by["regmean"]["notes"])
    assert "gathering" not in " ".join(by["average"]["notes"])
    hours = [by[m]["grid"]["sizes"][-1]["merging"] for m in ("average", "regmean")]
    assert hours[1] > hours[0]


def test_a_grid_says_which_of_its_steps_do_not_fit():
    found = planning.plan(small_grid(), "v5e:2x2", compile=False, parts=["grid"])
    steps = [note.partition(" does not fit: ")[0] for note in found["notes"]]
    merge = "8b: a merge of 8 experts in memory"
    assert steps[1:] == ["1b: a training step", merge, "8b: scoring", steps[-1]]
    assert steps[-1] == "8b: a training step"
    # Base, experts and result of 8.6 billion in bfloat16 over four chips; and scratch.
    assert "50.6 GB of a chip's 16 GB" in found["notes"][2]
    found = planning.plan(small_grid(), "v5p:4x4x8", compile=False, parts=["grid"])
    assert found["notes"] == []


def test_checkpoints_of_a_known_family_are_planned_from_their_headers(estimate_of):
    folder = "tests/models/goldens/llama3"
    config = configs.load(
        "configs/merge/ties.py", {"base": folder, "experts": f"{folder},"}
    )
    found = planning.plan(config, planning.topology("v5e:2x1"), compile=False)
    decoder, params = families.load(folder)
    assert found["model"]["parameters"] == models.parameter_count(decoder)
    merge = estimate_of(found, "in-memory merge")["bytes_per_device"]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert merge["arguments"] == pytest.approx(2 * size / 2, rel=0.05)
    names = [estimate["name"] for estimate in found["estimates"]]
    assert names[2:] == ["scoring", "training step"]


def test_a_mergekit_yaml_is_planned_too(tmp_path, estimate_of):
    folder = "tests/models/goldens/llama3"
    yaml = tmp_path / "merge.yml"
    yaml.write_text(f"merge_method: passthrough\nmodels: [{{model: {folder}}}]")
    config = configs.load(str(yaml))
    found = planning.plan(config, planning.topology("v5e:2x1"), compile=False)
    assert estimate_of(found, "streamed merge")
    assert found["model"]["parameters"] > 0


def on_one_chip(size):
    """Return a v5e, and what lowers a product of so large a matrix for it."""
    where = compiling.target(planning.topology("v5e:1x1"), {"fsdp": -1}, compile=True)
    whole = jax.NamedSharding(where.mesh, jax.P())
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=whole)
    return where, lambda: jax.jit(lambda x: x @ x.T).lower(matrix)


@needs_libtpu
def test_the_compiler_says_what_does_not_fit_a_chip():
    with pytest.raises(compiling.TooLarge) as caught:
        compiling.compiled(*on_one_chip(2**17))
    assert caught.value.needed >= 2**36


@needs_libtpu
def test_compiling_twice_takes_nothing_from_the_cache_and_warns_of_nothing(recwarn):
    for _ in range(2):
        found = compiling.compiled(*on_one_chip(1024))
        assert (found.arguments, found.outputs) == (2**22, 2**22)
        jax.clear_caches()
    assert not [w for w in recwarn if "compilation cache" in str(w.message)]
    assert jax.config.jax_enable_compilation_cache


def test_an_impossible_topology_is_the_users_mistake():
    with pytest.raises(UserError, match="several slices|data axis"):
        where = planning.topology("v5p:4x4x4", 2)
        compiling.target(where, {"data": 1, "fsdp": -1}, compile=False)
