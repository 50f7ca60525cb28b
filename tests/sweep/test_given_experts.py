"""A sweep of given experts on a mesh: no training, rows as of merge and evaluate."""

import json
import shutil
import sys
from pathlib import Path

import jax
import lora
import pytest
import together
from ml_collections import ConfigDict
from test_sweep_pretrained import LLAMA, write_tokenizer

import merging
from merging import checkpoints, models
from merging.cli.main import main
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.runtime import results
from merging.runtime.errors import UserError
from merging.sweep import given, merges
from merging.sweep.reading import read
from merging.sweep.steps import Grid, with_needs

CATEGORIES = ("sea", "town", "air")
MESH = {"data": 1, "fsdp": 4, "tensor": 2}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base and three fine-tunes: safetensors; Orbax; Orbax without a config.json."""
    folder = tmp_path_factory.mktemp("given")
    described = folder / "described"
    described.mkdir()
    (described / "config.json").write_text(json.dumps(LLAMA))
    write_tokenizer(described)
    _, config = families.read_config(json.dumps(LLAMA))
    start = models.init(config, 0)
    for number, name in enumerate(("base", *CATEGORIES)):
        moved = models.init(config, number)
        params = jax.tree.map(lambda a, b: a + (b - a) * 0.3, start, moved)
        checkpoints.save(folder / "orbax" / name, params)
        if name in ("base", "sea"):
            convert(
                str(folder / "orbax" / name),
                str(folder / name),
                format="safetensors",
                auxiliary_files=str(described),
            )
        else:
            shutil.copytree(folder / "orbax" / name, folder / name)
    shutil.copy(described / "config.json", folder / "town")
    lines = []
    for dataset, category, split in (
        ("tides", "sea", "held_in"),
        ("bells", "town", "held_in"),
        ("winds", "air", "held_in"),
        ("rocks", "earth", "held_out"),
    ):
        of = {"dataset": dataset, "category": category, "split": split}
        for n in range(24):
            asked = {"inputs": f"{dataset} {n}?", "choices": [f"a {n}", "b", "c"]}
            lines.append(json.dumps(of | asked | {"label": n % 3}))
    (folder / "dev.jsonl").write_text("\n".join(lines))
    return folder


def flags(folder: Path, **changes: str) -> dict[str, str]:
    """Return the values that one gives for one's own models."""
    chosen = {
        "pretrained_bases": str(folder / "base"),
        "given_experts": ",".join(f"{c}={folder / c}" for c in CATEGORIES),
        "data.files": str(folder / "dev.jsonl"),
        "methods": "average,ties",
        "scales.ties": "0.5,1.0",
        "densities.ties": "0.3",
        "experts_merged": "3",
        "keep_merges": "true",
    }
    chosen |= {f"mesh.{axis}": str(size) for axis, size in MESH.items()}
    return chosen | changes


def own_models(folder: Path, **changes: str) -> ConfigDict:
    from merging.runtime import config

    spec = str(ROOT / "configs/scaling_curves/own_models.py")
    return config.load(spec, flags(folder, **changes))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    values = [f"--config.{k}={v}" for k, v in flags(folder).items()]
    command = ["sweep", "--config", "scaling_curves/own_models"]
    assert main([*command, "--workdir", str(workdir), *values]) == 0
    return workdir


@pytest.mark.long
def test_one_command_scores_and_merges_what_is_there_and_trains_nothing(finished):
    rows = results.read(finished)
    assert {r.method for r in rows} == {"base", "expert", "average", "ties"}
    assert {r.K for r in rows if r.method == "ties"} == {3}
    assert {r.size for r in rows} == {"12.1K"}
    merged = [r for r in rows if r.method == "ties" and r.merged]
    assert merged and all(r.value_of_expert is not None for r in merged)
    kinds = {path.name for path in (finished / "steps").iterdir()}
    assert kinds == {"data", "load", "expert", "merge"}
    (expert, *_) = (finished / "steps" / "expert").iterdir()
    assert [path.name for path in expert.iterdir()] == ["output.json"]
    assert not list(finished.glob("steps/*/*/training"))


@pytest.mark.long
def test_its_rows_are_those_of_merge_and_evaluate(finished, folder, tmp_path):
    (row, *_) = [r for r in results.read(finished) if r.method == "ties" and r.K == 3]
    chosen = row.parameters
    described = tmp_path / "air"
    shutil.copytree(folder / "air", described)
    shutil.copy(folder / "town" / "config.json", described)
    convert(str(described), str(tmp_path / "hf"), format="safetensors")
    convert(str(folder / "town"), str(tmp_path / "town"), format="safetensors")
    merging.merge_checkpoints(
        str(folder / "base"),
        [
            f"sea={folder / 'sea'}",
            f"town={tmp_path / 'town'}",
            f"air={tmp_path / 'hf'}",
        ],
        f"ties(density={chosen['density']}, scale={chosen['scale']})",
        str(tmp_path / "merged"),
    )
    suite = read(own_models(folder)).suite
    scores = merging.evaluate(str(tmp_path / "merged"), suite)
    expected = {s.dataset: s.value for s in scores}
    found = {
        r.dataset: r.value
        for r in results.read(finished)
        if r.method == "ties" and r.K == 3
    }
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(found) == 4
    # What was kept is that merge.
    (kept,) = finished.glob("steps/merge/*ties-K3*/checkpoint")
    theirs = families.load(tmp_path / "merged")[1]
    for one, other in zip(
        jax.tree.leaves(families.load(kept)[1]), jax.tree.leaves(theirs), strict=True
    ):
        assert (one == other).all()


@pytest.mark.long
def test_experts_that_do_not_fit_the_devices_are_merged_from_storage(
    finished, folder, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "steps" / "merge")
    merging.sweep(own_models(folder, device_memory="30kB"), workdir)
    said = capsys.readouterr().err
    assert "12.1K: merges of 3 experts and more read them from storage" in said
    for one, other in zip(results.read(finished), results.read(workdir), strict=True):
        assert (one.value, one.parameters) == (other.value, other.parameters)


def start(workdir: Path, folder: Path, processes: int, devices: int) -> list:
    """Start a sweep of one's own models on several processes."""
    mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    changes = {f"mesh.{axis}": str(size) for axis, size in mesh.items()}
    values = [f"--config.{k}={v}" for k, v in flags(folder, **changes).items()]
    command = [sys.executable, "-m", "merging", "sweep", "--workdir", str(workdir)]
    command += ["--config", "scaling_curves/own_models", *values]
    return together.start(command, processes, together.environment(devices))


@pytest.mark.long
def test_it_goes_on_on_two_processes_and_other_devices_to_the_same_rows(
    finished, folder, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "steps" / "merge")
    (*_, damaged) = (workdir / "steps" / "expert").iterdir()
    (damaged / "output.json").write_text("{")
    started = start(workdir, folder, 2, 2)
    first, second = together.heard(started, limit=600)
    assert together.statuses(started) == [0, 0], first + second
    assert "on 4 devices (data 1, fsdp 4, tensor 1) of 2 processes" in first
    assert "doing that step again" in first and "Report: " in first
    assert "process 1 prints into" in second and "Report" not in second

    def values(of: Path) -> dict:
        rows = results.read(of)
        return {(r.method, r.K, r.dataset, r.category): r for r in rows}

    one, two = values(finished), values(workdir)
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].parameters == two[key].parameters
        assert one[key].value == pytest.approx(two[key].value, abs=1e-5)


def test_merges_are_of_two_experts_then_four_and_of_all_by_default(folder):
    assert read(own_models(folder, experts_merged="()")).experts_merged == (2, 3)


def test_an_expert_may_be_trained_where_none_is_given(folder):
    with_two = own_models(folder, given_experts=f"sea={folder / 'sea'}")
    with pytest.raises(UserError, match="no expert is given for 12.1K/it/town"):
        read(with_two)
    with with_two.unlocked():
        with_two.expert = ConfigDict({"steps": 3})
        with_two.data.train = True
    experiment = read(with_two)
    steps = {s.name: s for s in with_needs(Grid(experiment).targets())}
    assert steps["expert/12.1K/it/sea/seed0"].given
    assert not steps["expert/12.1K/it/town/seed0"].given
    assert "data/experts" in steps and not any("multitask" in name for name in steps)
    assert experiment.param_dtype == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"given_experts": "see=X"}, "unknown name in given_experts 'see'.*sea"),
        ({"given_experts": "nothing"}, "'nothing' is no .*CATEGORY=PATH"),
        ({"given_experts": "sea=nowhere,town=nowhere,air=nowhere"}, "'nowhere' is no"),
        ({"given_experts": "sea=A,sea=B"}, "12.1K/it/sea is given twice"),
        ({"pretrained_bases": "()"}, "--config.pretrained_bases=BASE"),
        ({"experts_merged": "4"}, "takes 2 to 3 experts"),
        ({"methods": "regmean"}, "statistics of .* with data.train = true"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(folder, change, message):
    with pytest.raises(UserError, match=message):
        read(own_models(folder, **change))


def test_experts_that_get_nothing_right_leave_no_ratio_to_choose_by(folder):
    experiment = read(own_models(folder))
    (step,) = [
        s
        for s in Grid(experiment).targets()
        if s.name.startswith("merge/12.1K/it/ties")
    ]

    class Store:
        def output(self, expert):
            return {"validation": {f"{expert.settings['what']}s": 0.0}}

    with pytest.raises(UserError, match="sea and .*above 0 on .*airs, seas, towns.*λ"):
        merges.run(step, experiment, Store(), lambda *_: None, None)


def test_an_expert_of_another_shape_is_refused(folder, tmp_path):
    other = {**LLAMA, "intermediate_size": 32}
    _, config = families.read_config(json.dumps(other))
    checkpoints.save(tmp_path / "wide", models.init(config, 0))
    (tmp_path / "wide" / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="no fine-tune of .*: d_ff is 32, not 24"):
        given.require_like(str(tmp_path / "wide"), str(folder / "base"))


def test_an_entry_that_names_more_goes_before_one_that_names_less():
    kinds = {"size": ("1B", "8B"), "base": ("pt", "it"), "category": ("law", "code")}
    entries = ("law=every", "8B/law=large", "8B/it/law=tuned", "pt/code=raw")
    assert given.table(entries, "given_experts", kinds) == {
        ("1B", "pt", "law"): "every",
        ("1B", "it", "law"): "every",
        ("8B", "pt", "law"): "large",
        ("8B", "it", "law"): "tuned",
        ("1B", "pt", "code"): "raw",
        ("8B", "pt", "code"): "raw",
    }


def with_an_adapter(folder: Path, where: Path) -> tuple[str, Path]:
    """Return an adapter of the base, and the folder of the model that it makes."""
    base = str(folder / "base")
    _, params = families.load(base)
    modules = [
        f"model.layers.{n}.mlp.down_proj" for n in range(LLAMA["num_hidden_layers"])
    ]
    shapes = {
        f"{m}.weight": (LLAMA["hidden_size"], LLAMA["intermediate_size"])
        for m in modules
    }
    tensors = lora.factors(3, modules, rank=2, shapes=shapes)
    adapter = lora.save(where / "adapter", tensors, r=2, lora_alpha=8)
    made = merging.merge_checkpoints(
        base, [f"air={adapter}"], "task_arithmetic(scale=1.0)", str(where / "folded")
    )
    return adapter, Path(made)


def with_air(folder: Path, path: str) -> str:
    """Return the given experts, of which one is another."""
    own = [f"{name}={folder / name}" for name in CATEGORIES if name != "air"]
    return ",".join([*own, f"air={path}"])


@pytest.mark.long
def test_an_adapter_is_an_expert_and_gives_the_rows_of_its_model(folder, tmp_path):
    adapter, folded = with_an_adapter(folder, tmp_path)
    found = {}
    for name, path in (("adapter", adapter), ("folded", str(folded))):
        chosen = flags(folder, given_experts=with_air(folder, path))
        command = ["sweep", "--config", "scaling_curves/own_models"]
        values = [f"--config.{k}={v}" for k, v in chosen.items()]
        out = tmp_path / name / "run"
        assert main([*command, "--workdir", str(out), *values]) == 0
        found[name] = {
            (r.method, r.subset, r.dataset): r.value for r in results.read(out)
        }
        groups, _ = merging.sweep.groups(out)
        assert groups[0].experts["air"] == (
            f"{folder / 'base'}+{path}" if name == "adapter" else path
        )
    assert found["adapter"] == found["folded"]
    assert ("expert", ("air",), "winds") in found["adapter"]


def test_an_adapter_that_changed_is_another_expert(folder, tmp_path):
    adapter, _ = with_an_adapter(folder, tmp_path)
    before = given.digest(adapter, str(folder / "base"))
    settings = Path(adapter) / "adapter_config.json"
    settings.write_text(
        settings.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9')
    )
    given.digest.cache_clear()
    given._opened.cache_clear()
    assert given.digest(adapter, str(folder / "base")) != before
    with pytest.raises(UserError, match="has changed since this sweep began"):
        given.load(adapter, before, "float32", described=str(folder / "base"))


def test_an_adapter_of_another_model_is_refused_before_any_work(folder, tmp_path):
    other = lora.save(tmp_path / "other", lora.factors(0))
    with pytest.raises(UserError, match="other"):
        read(own_models(folder, given_experts=with_air(folder, other)))
