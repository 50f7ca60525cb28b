"""A search on a mesh, in processes and by several of one job: the same trials."""

import sys

import jax
import numpy as np
import pytest
import searches
import together
from searches import arguments, found, records

import merging
from merging.cli.main import main
from merging.models import hf
from merging.models.hf.convert import convert
from merging.runtime import sharding, tree
from merging.sweep.resident import Resident
from merging.sweep.space import Recipe

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
# Four trials, asked for two at a time.
FEW = {"trials": 4, "batch": 2, "scales": "0.6", "merge": "false"}
RECIPES = [
    Recipe("ties(density=0.3, scale=0.7)", ()),
    Recipe(
        "dare_ties(density=0.5, scale=1.5)",
        (
            "norm|embed => base",
            "attn|query|key|value|output => task_arithmetic(scale=0.3)",
        ),
    ),
    Recipe("average", ("up => iso_c(scale=0.7)",)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a suite of one's own, a base and three experts of it."""
    return searches.write(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def meshed(place):
    """Return the workdir of a search on eight devices that share each model."""
    mesh = {f"mesh.{axis}": size for axis, size in MESH.items()}
    assert main(arguments(place, place / "meshed", **FEW, **mesh)) == 0
    return place / "meshed"


@pytest.mark.parametrize("layout", ["orbax", "safetensors"])
def test_on_a_mesh_a_merge_has_the_bits_of_the_streamed_one_and_is_split(
    place, tmp_path, layout
):
    where = {name: str(place / name) for name in ("base", "e1", "e2")}
    if layout == "safetensors":
        for name in where:
            convert(where[name], str(tmp_path / name), format=layout)
        where = {name: str(tmp_path / name) for name in where}
    base = where.pop("base")
    held = Resident(base, where, sharding.make_mesh(MESH))
    for number, recipe in enumerate(RECIPES):
        output = tmp_path / f"merged{number}"
        merging.merge_checkpoints(
            base, where, recipe.method, output, leaf_rules=recipe.rules, seed=3
        )
        _, expected = hf.load(output)
        ours = tree.flatten(held.merged(recipe, 3))
        for path, leaf in tree.flatten(expected).items():
            np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
            share = ours[path].addressable_shards[0].data.size / leaf.size
            assert share == (1 if path.endswith("norm") else 1 / 4), path
    for model in (held._base, *held._models.values()):
        shares = {x.addressable_shards[0].data.size / x.size for x in model.values()}
        assert shares == {1, 1 / 4}


def test_another_trial_on_a_mesh_compiles_nothing(place):
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    experts = {f"e{n}": str(place / f"e{n}") for n in (1, 2)}
    held = Resident(str(place / "base"), experts, sharding.make_mesh(MESH))
    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    for number in (1.0, 2.0):
        several = f"(density={0.2 + number / 10!r}, weights=({number!r}, 0.5))"
        rules = (f"norm => task_arithmetic(scale={number!r})",)
        held.merged(Recipe(f"ties{several}", rules), 0)
        counts.append(len(compiled))
    assert counts[0] > 0 and counts[1] == counts[0]


@pytest.mark.long
def test_trials_in_processes_are_those_of_a_mesh(place, meshed, tmp_path):
    assert main(arguments(place, tmp_path, **FEW, workers=2)) == 0
    assert found(tmp_path) == found(meshed)
    assert len(found(meshed)) == 4
    for name in ("references", "grid"):
        values = [[r["datasets"] for r in records(w, name)] for w in (tmp_path, meshed)]
        assert values[0] == values[1] and len(values[0]) > 0
    assert records(tmp_path, "test") == records(meshed, "test")


@pytest.mark.long
def test_processes_of_one_job_make_each_trial_together(place, meshed, tmp_path):
    workdir = tmp_path / "together"
    argv = arguments(place, workdir, **FEW | {"trials": 3}, **{"mesh.fsdp": 2})
    command = [sys.executable, "-m", "merging", *argv]
    started = together.start(command, 2, together.environment(2))
    said = together.heard(started, 540)
    assert together.statuses(started) == [0, 0], "\n".join(said)
    assert "Best, trial" in said[0] and "Best, trial" not in said[1]
    assert found(workdir) == found(meshed)[:3]
    assert len(records(workdir, "references")) == 4
    # Another number of devices and processes goes on with it.
    more = arguments(place, workdir, **FEW, **{"mesh.tensor": 2})
    assert main(more) == 0
    assert found(workdir) == found(meshed)
    assert records(workdir, "test") == records(meshed, "test")


MISTAKES = [
    ({"mesh.data": 3}, "does not use 8 devices exactly"),
    ({"batch_size": 12}, "a batch of 12 does not divide over 8 devices"),
    ({"runner": "rai"}, "unknown runner 'rai': did you mean ray"),
    ({"resources": "CPU"}, "resources: 'CPU' is no NAME=NUMBER"),
]


@pytest.mark.parametrize(("values", "words"), MISTAKES)
def test_where_it_cannot_be_done_is_one_line_and_makes_nothing(
    place, tmp_path, capsys, values, words
):
    workdir = tmp_path / "w"
    assert main(arguments(place, workdir, **values)) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert not workdir.exists()


def test_one_process_drives_workers(place, tmp_path, capsys, monkeypatch):
    for name, value in {"PROCESSES": "2", "PROCESS": "1"}.items():
        monkeypatch.setenv(f"MERGING_{name}", value)
    monkeypatch.setenv("MERGING_COORDINATOR", together.address())
    assert main(arguments(place, tmp_path / "w", workers=2)) == 2
    assert "this is process 1 of 2, and one drives" in capsys.readouterr().err
