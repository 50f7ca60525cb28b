"""A sweep gathers what methods that merge by statistics want, once for each expert."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tolerance import rounding

from merging import checkpoints, methods, sweep
from merging.cli.main import main
from merging.merge import merge, merge_scales
from merging.runtime import config as configs
from merging.runtime import results, sharding, tree
from merging.runtime.errors import UserError
from merging.sweep import collecting, restoring
from merging.training import statistics

SMALL = {
    "data.categories": "sentiment,paraphrase",
    "data.train_examples": "64",
    "bases": "pt",
    "methods": "fisher,regmean",
    "experts_merged": "2",
    "pretraining.steps": "10",
    "expert.steps": "5",
    "multitask.steps": "5",
    "keep_merges": "true",
    "runner": "inline",
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "run"
    chosen = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = ["sweep", "--config", "scaling_curves/smoke", "--workdir", str(folder)]
    assert main([*command, *chosen]) == 0
    return folder


@pytest.mark.long
def test_a_merge_by_statistics_has_rows_like_any_other(swept):
    rows = results.read(swept)
    assert {"fisher", "regmean"} <= {row.method for row in rows if row.K == 2}
    assert not [row for row in rows if row.method == "collect"]
    kinds = [path.name for path in swept.glob("steps/collect/*")]
    assert len(kinds) == 4  # two experts, two kinds


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "kind"), [("fisher", "fisher"), ("regmean", "gram")]
)
def test_it_is_the_merge_by_what_merging_collect_gathers(swept, tmp_path, method, kind):
    told, experts = {}, {}
    for category in ("sentiment", "paraphrase"):
        (folder,) = swept.glob(f"steps/expert/*{category}*")
        flags = {
            "checkpoint": folder / "checkpoint",
            "data.world_seed": 2,
            "data.train_examples": 64,
            "data.validation_examples": 16,
            "statistics": kind,
        }
        command = ["collect", "--config", f"collect/expert:{category}"]
        command += [f"--config.{key}={value}" for key, value in flags.items()]
        command += ["--workdir", str(tmp_path / category)]
        assert main(command) == 0
        told[category] = checkpoints.restore(tmp_path / category / kind)
        experts[category] = checkpoints.restore(folder / "checkpoint")
    (base,) = swept.glob("steps/pretrain/*")
    start = checkpoints.restore(base / "checkpoint")
    expected = merge(start, experts, methods.get(method), statistics=told)
    (kept,) = swept.glob(f"steps/merge/*{method}*")
    found = tree.flatten(checkpoints.restore(kept / "checkpoint"))
    for path, leaf in tree.flatten(expected).items():
        most = float(np.abs(leaf).max())
        close = rounding(64, most)
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=close)


def asked(**changes):
    """Return the experiment of a sweep by both methods, of which nothing is made."""
    chosen = SMALL | {"methods": "average,fisher,regmean"} | changes
    return sweep.planned(configs.load("scaling_curves/smoke", chosen))


@pytest.mark.parametrize("mesh", [None, {"data": 4, "fsdp": 2, "tensor": 1}])
def test_statistics_count_among_what_must_fit_the_devices(mesh):
    experiment = asked()
    (size,), decoder = experiment.sizes, experiment.decoder(experiment.sizes[0])
    mesh = mesh and sharding.make_mesh(mesh)
    model = restoring.model_bytes(experiment, size, mesh)
    gram, fisher = (
        collecting.beside(experiment, size, kind, 2, mesh)
        for kind in ("gram", "fisher")
    )
    # The widest map's, in every layer and whole on every device; the largest leaf's.
    assert gram == 2 * decoder.layers * decoder.d_ff**2 * 4
    table = decoder.vocab_size * decoder.d_model * 4
    assert fisher == 2 * table // (2 if mesh else 1)
    for beside in (gram, fisher):
        least = (4 * model + beside) / restoring.FILLED
        for bytes_of, fit in ((least + 9, True), (least - 9, False)):
            tried = held(experiment, bytes_of)
            assert restoring.fits(tried, size, 2, mesh, beside) is fit
        assert restoring.fits(tried, size, 2, mesh)


def test_a_grid_whose_statistics_cannot_fit_is_refused():
    eight = {"data.categories": "()", "experts_merged": "8"}
    eight |= {"methods": "average,regmean"}
    (size,) = asked(**eight).sizes
    model = restoring.model_bytes(asked(**eight), size, None)
    told = collecting.beside(asked(**eight), size, "gram", 8, None)
    merging = (2 * model + told) / restoring.FILLED
    decoder = asked().decoder(size)
    gathering = statistics.bytes_to_gather(decoder, ("gram",), None)
    assert gathering < merging - 9
    for memory, words in (
        (gathering - 1, f"gram of {size} pt: gathering takes .* of each device"),
        (merging - 9, f"{size}: regmean of 8 experts takes .* of each device"),
    ):
        with pytest.raises(UserError, match=words):
            collecting.require_room(held(asked(**eight), memory), None)
    collecting.require_room(held(asked(**eight), merging + 9), None)
    collecting.require_room(held(asked(methods="average"), 1000), None)


def held(experiment, memory):
    return dataclasses.replace(experiment, device_memory=f"{int(memory)}B")


def test_that_is_before_its_first_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(restoring, "room", lambda experiment: 100e3)
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = ["sweep", "--config", "scaling_curves/smoke", *flags]
    assert main([*command, "--workdir", str(tmp_path / "run")]) == 2
    assert "gathering takes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "steps").exists()


def test_a_method_of_ones_own_with_statistics_and_a_scale_tries_them():
    values = {"w": np.arange(4, dtype=np.float32)}
    experts = {"a": {"w": values["w"] + 1}, "b": {"w": values["w"] - 3}}
    fisher = {"a": {"w": np.full(4, 0.25)}, "b": {"w": np.full(4, 0.75)}}

    def shares(values, weights, state, statistics):
        return values[0] * statistics[0] + values[1] * statistics[1]

    combiner = methods.combiner(shares, statistics=methods.FISHER)
    method = methods.compose("by_fisher", combiner=combiner, scale=1.0)
    scales = merge_scales(values, experts, method, (0.5, 1.0), statistics=fisher)
    found = [merged["w"].tolist() for merged in scales]
    assert found == [[-1.0, 0.0, 1.0, 2.0], [-2.0, -1.0, 0.0, 1.0]]
