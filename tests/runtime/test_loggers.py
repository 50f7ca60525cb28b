"""Where a run's numbers go: what TensorBoard reads, and what services are told."""

import io
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from merging.runtime.errors import UserError
from merging.runtime.loggers import opened, require_known
from merging.runtime.progress import Progress
from merging.training.run_state import RunState
from merging.training.told import Told


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, name, value) of the event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, the message, its checksum
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return sorted(found)


def test_tensorboard_reads_what_was_logged_in_every_start(tmp_path):
    for start in (0, 2):
        with opened("tensorboard", tmp_path, {}) as logger:
            for step in (start + 1, start + 2):
                logger.log(step, {"loss": step / 4, "validation_loss": 1.0})
    found = events(tmp_path / "tensorboard")
    assert [row for row in found if row[1] == "loss"] == [
        (step, "loss", step / 4) for step in (1, 2, 3, 4)
    ]
    assert len(found) == 8


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_the_run_and_can_resume_it(tmp_path, monkeypatch, name):
    said = []
    run = types.SimpleNamespace(
        log=lambda values, step: said.append((step, values)),
        finish=lambda: said.append("finish"),
    )
    library = types.ModuleType(name)
    library.init = lambda **how: said.append(how) or run
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    for folder in (tmp_path / "a" / "run", tmp_path / "b" / "run"):
        with opened(name, folder, {"seed": 3}) as logger:
            logger.log(7, {"loss": 0.5})
    first, *rest, second = said[0], said[1], said[2], said[3]
    assert rest == [(7, {"loss": 0.5}), "finish"]
    for how in (first, second):
        assert (how["project"], how["resume"]) == ("merging", "allow")
        assert how["config"] == {"seed": 3} and how["name"].startswith("run")
    # Two folders are two runs.
    key = "id" if name == "wandb" else "name"
    assert first[key] != second[key]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_library_that_is_missing_is_named_with_its_command(monkeypatch, name):
    library = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"logger {name} .* pip install {library}"):
        require_known(name)


def test_an_unknown_logger_gets_the_nearest_name(tmp_path):
    with (
        pytest.raises(UserError, match="did you mean wandb"),
        opened("wand", tmp_path, {}),
    ):
        pass
    with opened("none", tmp_path, {}) as logger:
        logger.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_training_logs_every_step_once(tmp_path):
    told = []
    logger = types.SimpleNamespace(log=lambda step, values: told.append((step, values)))

    def state(steps):
        losses = np.arange(1, steps + 1, dtype=np.float32)
        validations = np.array([[2, 9.5]], np.float32)[: steps // 2]
        return RunState(None, None, losses, validations)

    for states in ([state(2), state(4)], [state(3), state(6)]):
        with Progress(6, "train", stream=io.StringIO()) as shown:
            tell = Told(tmp_path / "losses.jsonl", logger, shown)
            for now in states:
                tell(now)
    assert [step for step, values in told if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [row for row in told if row[0] == 2] == [
        (2, {"loss": 2.0}),
        (2, {"validation_loss": 9.5}),
    ]
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 7
