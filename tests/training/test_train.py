"""`merging train` on one process and on two: the same losses, and no step lost.

Four, and kills at random moments, are in benchmarks/train_trials.py.
"""

import dataclasses
import json
import shutil
import signal
import sys
import time

import numpy as np
import one_device
import pytest
import scored_models
import together
from tolerance import decoder_length, rounding

from merging import checkpoints, tasks
from merging.models import hf as families
from merging.runtime import config, errors, tree
from merging.runtime import workdir as workdirs
from merging.training import job
from merging.training.hyperparameters import Trained

CONFIG = str(together.ROOT / "configs" / "train" / "pretrain.py")
JSONL = str(together.ROOT / "configs" / "train" / "jsonl.py")
OVERRIDES = {
    "size": "1x",
    "data.documents": "64",
    "data.validation_examples": "8",
    "hyperparameters.steps": "16",
    "hyperparameters.batch_size": "8",
    "hyperparameters.warmup_steps": "4",
    "hyperparameters.log_every": "2",
    "hyperparameters.validate_every": "8",
    "hyperparameters.checkpoint_every": "6",
}
# Relative, of a loss (tests/training/test_training.py); the bounds hold all sequences.
CLOSE = rounding(
    decoder_length(layers=2, width=16, inner=32, mlp=48, context=64, vocabulary=512)
)


def command(workdir):
    """Return a command that splits the model over all devices, of both processes."""
    train = [sys.executable, "-m", "merging", "train", "--config", CONFIG]
    values = OVERRIDES | {"mesh.fsdp": "4"}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return [*train, *flags, "--workdir", str(workdir)]


def curve(workdir):
    lines = map(json.loads, (workdir / "losses.jsonl").read_text().splitlines())
    return [list(line.values())[-1] for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trained by this process, on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_device.use(patch)
        job.run(config.load(CONFIG, OVERRIDES), workdir)
    return workdir


def begun(tmp_path, alone):
    """Return a workdir that has the examples, so that no process needs TensorFlow."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(alone / "config.json", workdir)
    shutil.copytree(alone / "data", workdir / "data")
    return workdir


def run_two(workdir):
    started = together.start(command(workdir), 2, together.environment(2))
    said = together.heard(started)
    assert together.statuses(started) == [0, 0], said
    return said


@pytest.fixture(scope="module")
def two(alone, tmp_path_factory):
    """Trained by two processes, which nothing disturbed; and what they printed."""
    workdir = begun(tmp_path_factory.mktemp("two"), alone)
    return workdir, run_two(workdir)


def leaves(workdir, name="checkpoint"):
    return tree.flatten(checkpoints.restore(workdir / name))


@pytest.mark.long
def test_two_processes_train_as_one_and_the_first_reports(alone, two):
    workdir, said = two
    assert len(curve(workdir)) == 18
    np.testing.assert_allclose(curve(workdir), curve(alone), rtol=CLOSE)
    for name in ("checkpoint", "best"):
        ours = leaves(workdir, name)
        for path, leaf in leaves(alone, name).items():
            # Where a gradient is little more than rounding, AdamW's step has a share
            # of the learning rate, 3.6e-3, that is as uncertain.
            np.testing.assert_allclose(
                ours[path], leaf, rtol=0, atol=3.6e-3 / 18, err_msg=path
            )
    assert "Trained:" in said[0] and "16 steps" in said[0]
    assert "Trained:" not in said[1] and "train pretrain" not in said[1]
    log = workdir / "logs" / "process_1.log"
    assert str(log) in said[1] and "train pretrain 100%" in log.read_text()
    assert not (workdir / "logs" / "process_0.log").exists()
    assert json.loads((workdir / "train.json").read_text())["processes"] == 2


@pytest.mark.long
def test_a_preempted_process_ends_both_and_the_rerun_gives_the_same_bytes(
    alone, two, tmp_path
):
    workdir = begun(tmp_path, alone)
    started = together.start(command(workdir), 2, together.environment(2))
    losses, deadline = workdir / "losses.jsonl", time.monotonic() + 60
    while started[1].poll() is None and time.monotonic() < deadline:
        if losses.exists() and losses.read_text().count("\n") >= 2:
            break
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    said = together.heard(started, limit=60)
    assert together.statuses(started) == [errors.PREEMPTED] * 2, said
    assert "stopped by SIGTERM at step" in said[0] and "to continue" in said[0]
    saved = max(path.name for path in (workdir / "training").iterdir())
    assert f"at step {int(saved.removeprefix('step_'))} of 16" in said[0]
    run_two(workdir)
    assert losses.read_bytes() == (two[0] / "losses.jsonl").read_bytes()
    for name in ("checkpoint", "best"):
        expected = leaves(two[0], name)
        for path, leaf in leaves(workdir, name).items():
            assert leaf.tobytes() == expected[path].tobytes(), path


def test_what_is_trained_is_not_trained_again_and_no_other_config_is_taken(
    alone, capsys
):
    before = (alone / "train.json").stat().st_mtime_ns
    job.run(config.load(CONFIG, OVERRIDES), alone)
    assert "it is trained" in capsys.readouterr().out
    assert (alone / "train.json").stat().st_mtime_ns == before
    with pytest.raises(errors.UserError, match="another config"):
        job.run(config.load(CONFIG, OVERRIDES | {"hyperparameters.steps": "30"}), alone)


def test_another_start_in_the_same_place_is_another_training(
    alone, tmp_path, monkeypatch, capsys
):
    def fit(what, folder, **_):
        checkpoints.save(folder / "checkpoint", what.params)
        return Trained(what.params, what.params, np.ones(1), 1, False, 0, {})

    one_device.use(monkeypatch)
    monkeypatch.setattr(job, "fit", fit)
    start, workdir = tmp_path / "start", tmp_path / "run"
    shutil.copytree(alone / "checkpoint", start)
    shutil.copytree(alone / "data", workdir / "data")
    chosen = config.load(CONFIG, OVERRIDES | {"start": str(start)})
    job.run(chosen, workdir)
    job.run(chosen, workdir)
    assert "it is trained" in capsys.readouterr().out
    shutil.rmtree(start)
    shutil.copytree(alone / "best", start)
    described = start / "config.json"
    described.write_text(described.read_text() + " ")
    with pytest.raises(errors.UserError, match="another config"):
        job.run(chosen, workdir)


def test_a_training_that_is_under_way_is_not_begun_twice(tmp_path):
    chosen = config.load(CONFIG, OVERRIDES)
    with workdirs.only_driver(tmp_path / "run"):
        with pytest.raises(errors.UserError, match="process .* works in .*run"):
            job.run(chosen, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_what_is_trained_is_opened_by_its_config(alone):
    (decoder, params), record = (
        families.load(alone / "checkpoint"),
        json.loads((alone / "train.json").read_text()),
    )
    assert dataclasses.asdict(decoder) == {
        **record["decoder"],
        "local_layers": tuple(record["decoder"]["local_layers"]),
    }
    expected = leaves(alone)
    for name, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert (alone / "best" / "config.json").exists()


def test_what_is_trained_in_a_models_tokens_has_its_tokenizer(tmp_path, monkeypatch):
    one_device.use(monkeypatch)
    texts = tasks.suite("miniworld").source.generator.documents(0, 50)
    made = scored_models.byte_level(texts, 300)
    given = scored_models.write(tmp_path / "given", made, width=16)
    overrides = OVERRIDES | {
        "what": "imdb",
        "start": "fresh",
        "data.train_examples": "16",
        "length": "128",
        "hyperparameters.steps": "1",
        "hyperparameters.validate_every": "0",
    }
    loaded = config.load(CONFIG, overrides)
    with loaded.unlocked():
        loaded.data.tokenizer = str(given / "tokenizer.json")
    path = job.run(loaded, tmp_path / "run")
    opened, own = (tasks.open_tokenizer(str(f)) for f in (path, given))
    assert opened.digest == own.digest
    assert families.load(path)[0].vocab_size == 300
    described = json.loads((path / "config.json").read_text())
    assert (described["bos_token_id"], described["eos_token_id"]) == (0, 1)


@pytest.mark.long
def test_an_expert_of_files_has_its_starts_weights_and_tokens(tmp_path):
    texts = tasks.suite("miniworld").source.generator.documents(0, 50)
    made = scored_models.byte_level(texts, 300)
    start = scored_models.write(tmp_path / "start", made, width=16)
    of = {"dataset": "tides", "category": "sea", "split": "held_in"}
    lines = [
        json.dumps(of | {"inputs": f"Tide {n}?", "choices": ["a", "b"], "label": n % 2})
        for n in range(40)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    overrides = {
        "start": str(start),
        "data.files": str(tmp_path / "mine.jsonl"),
        "hyperparameters.batch_size": "8",
        "hyperparameters.steps": "1",
        "hyperparameters.warmup_steps": "0",
        "hyperparameters.learning_rate": "1e-30",
        "hyperparameters.validate_every": "0",
        "length": "32",
    }
    path = job.run(config.load(f"{JSONL}:sea", overrides), tmp_path / "run")
    opened, own = (tasks.open_tokenizer(str(f)) for f in (path, start))
    assert opened.digest == own.digest
    # Without a step to speak of, it is the checkpoint that it started from.
    expected = tree.flatten(checkpoints.restore(start))
    for name, leaf in tree.flatten(checkpoints.restore(path)).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert not (tmp_path / "run" / "best").exists()


def test_a_start_whose_bytes_have_changed_is_refused(alone, tmp_path):
    shutil.copytree(alone / "checkpoint", tmp_path / "start")
    files = [file for file in (tmp_path / "start").rglob("d/*") if file.is_file()]
    file = max(files, key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)
    overrides = OVERRIDES | {"start": str(tmp_path / "start")}
    with pytest.raises(checkpoints.CorruptCheckpoint):
        job.run(config.load(CONFIG, overrides), tmp_path / "run")
