"""Commands that are run again, own configs, and what commands say on the way."""

import os
import shlex
import warnings

import pytest

import merging
from merging.checkpoints import files
from merging.cli import COMMANDS
from merging.runtime.errors import UserError
from merging.training import job

MERGE = "merge --config merge/ties --config.base=base --config.experts=e1,e2"


def test_an_object_store_that_does_not_answer_is_named(run_here, monkeypatch):
    class Silent:
        def __init__(self, uri):
            self.uri = uri

        def exists(self):
            raise RuntimeError("Could not resolve host\nmore of it")

        def __str__(self):
            return self.uri

    monkeypatch.setattr(files.epath, "Path", Silent)
    experts = "--config.experts=s3://bucket/expert"
    status, _, err = run_here(
        "merge", "--config", "merge/average", experts, "--config.output=o"
    )
    assert status == 2 and err.count("\n") == 1
    assert "s3://bucket/expert cannot be reached (RuntimeError: Could not" in err


def test_a_minimal_config_of_ones_own_takes_the_defaults(run_here, place):
    status, out, err = run_here("merge", "--config", "mine.py")
    assert status == 0, err
    assert "Merged: own" in out and (place / "own" / "model.safetensors").exists()


def test_python_takes_paths_and_refuses_what_is_no_method_or_config(place, tmp_path):
    models = [place / "e1", place / "e2"]
    out = merging.merge_checkpoints(place / "base", models, "ties()", tmp_path / "out")
    assert (out / "model.safetensors").exists()
    named = {"a": place / "e1", "b": place / "e2"}
    merging.merge_checkpoints(None, named, "average()", tmp_path / "named")
    for wrong in (None, 3):
        with pytest.raises(UserError, match="method must be a value such as"):
            merging.merge_checkpoints(None, named, wrong, tmp_path / "wrong")
    for call in (merging.train, merging.sweep):
        with pytest.raises(UserError, match="takes a ConfigDict, such as"):
            call("train/pretrain", tmp_path / "w")
    with pytest.raises(UserError, match="takes a ConfigDict, such as"):
        merging.plan("plan/palm_64b", "v5e:4x4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["named", "out"]


def test_a_finished_merge_is_done_and_another_is_refused(run_here, contents, tmp_path):
    command = [*shlex.split(MERGE), f"--config.output={tmp_path / 'out'}"]
    assert run_here(*command)[0] == 0
    before = contents(tmp_path)
    status, out, err = run_here(*command)
    assert status == 0, err
    assert out.startswith("Nothing to do, it is merged: ")
    status, _, err = run_here(*command, "--config.method.density=0.5")
    assert status == 2 and "is not what this very command makes" in err
    status, out, _ = run_here(*command, "--dry_run")
    assert status == 0 and out.startswith("It is merged already.")
    assert contents(tmp_path) == before


def test_a_corrected_training_takes_the_workdir_of_the_mistaken_one(
    run_here, tmp_path, monkeypatch
):
    def store(suite, what, split, length, data):
        (data / "stored").mkdir(parents=True, exist_ok=True)
        if length == 9:
            raise UserError("example 0 is longer than 9")

    def fit(*arguments, **more):
        raise UserError("it begins")

    monkeypatch.setattr(job.tasks, "store", store)
    monkeypatch.setattr(job, "fit", fit)
    workdir = ["--workdir", str(tmp_path / "w"), "--config.size=1x"]
    train = ["train", "--config", "train/pretrain", *workdir]
    # Found only while the examples are read.
    status, _, err = run_here(*train, "--config.length=9")
    assert status == 2 and "longer than 9" in err
    assert not (tmp_path / "w" / "config.json").exists()
    status, _, err = run_here(*train)
    assert status == 2 and "it begins" in err
    assert (tmp_path / "w" / "config.json").exists()
    status, _, err = run_here(*train, "--config.seed=1")
    assert status == 2 and "holds the run of another config" in err


def test_a_warning_shows_no_source(run_here, monkeypatch):
    def warn(arguments):
        warnings.warn("the moon is full", stacklevel=1)
        return 0

    monkeypatch.setitem(COMMANDS, "methods", COMMANDS["methods"]._replace(run=warn))
    assert run_here("methods") == (0, "", "warning: the moon is full\n")


def test_the_dry_run_of_a_small_model_needs_little(run_here):
    budget = "--config.memory_budget=100GB"
    status, out, _ = run_here(
        *shlex.split(f"{MERGE} --config.output=out"), budget, "--dry_run"
    )
    assert status == 0
    assert "100 GB of memory" in out and "Peak memory: 320 B of blocks" in out
    assert not os.path.exists("out")
