"""Processes that share a folder never work on one thing at a time, nor lose it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merging.runtime import config as configs
from merging.sweep.claims import Claims
from merging.sweep.settings import read
from merging.sweep.steps import Grid
from merging.sweep.store import Lost, Store

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "scaling_curves" / "smoke.py"

# Takes a claim and holds it until told to go on, or asleep.
HOLD = """
import sys, time
from pathlib import Path
from merging.sweep.claims import Claims
claim = Claims(Path(sys.argv[1]), beat=0.1, expires=1.0).take("step")
print("has it" if claim else "busy", flush=True)
sys.stdin.readline()
print("held" if claim.held() else "lost", flush=True)
claim.finish()
"""

# Takes whatever is free of many things, and writes down what it got.
RACE = """
import sys, time
from pathlib import Path
from merging.sweep.claims import Claims
folder = Path(sys.argv[1])
claims = Claims(folder / "claims")
sys.stdin.readline()
for i in range(60):
    claim = claims.take(f"thing{i}")
    if claim is None:
        continue
    done = folder / f"done{i}"
    if not done.exists():
        with open(folder / "log", "a") as log:
            log.write(f"{i}\\n")
        done.touch()
    claim.finish()
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path):
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.wait()


def test_what_another_process_holds_is_left_to_it(tmp_path, holder):
    claims = Claims(tmp_path, beat=0.1, expires=1.0)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:  # its heartbeats keep it, beyond the expiry
        assert claims.take("step") is None
        time.sleep(0.1)
    told, _ = claims.holder("step")
    assert told.pid == holder.pid and told.state == "running" and told.beats > 5
    holder.communicate("go\n")
    assert list(tmp_path.iterdir()) == []
    assert claims.take("step").generation == 0


def test_what_a_killed_process_held_is_free_at_once(tmp_path, holder):
    claims = Claims(tmp_path, beat=0.1, expires=1e9)
    assert claims.take("step") is None
    holder.kill()
    holder.wait()
    claim = claims.take("step")
    assert claim.generation == 1
    claim.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_sleeping_holder_is_succeeded_and_finds_out(tmp_path, holder):
    claims = Claims(tmp_path, beat=0.1, expires=1.0)
    holder.send_signal(signal.SIGSTOP)
    asleep = time.monotonic()
    while (claim := claims.take("step")) is None:
        assert time.monotonic() < asleep + 20
        time.sleep(0.05)
    assert time.monotonic() - asleep > 0.9
    holder.send_signal(signal.SIGCONT)
    said, _ = holder.communicate("go\n")
    assert said == "lost\n"
    assert claim.held()
    claim.give_up("failed", "no such luck")
    told, _ = claims.holder("step")
    assert (told.state, told.note) == ("failed", "no such luck")


def test_a_holder_of_another_machine_is_gone_only_by_its_silence(tmp_path):
    claims = Claims(tmp_path, beat=0.1, expires=0.5)
    claim = claims.take("step")
    claim.give_up("stopped")
    path = tmp_path / "step.0"
    # What another machine would have written; its pid means nothing here.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "other"}))
    record = json.loads(path.read_text()) | {"state": "running", "pid": 1}
    for beat in range(8):
        path.write_text(json.dumps(record | {"beats": beat}))
        assert claims.take("step") is None
        time.sleep(0.1)
    time.sleep(0.6)
    assert claims.take("step").generation == 1


def test_a_claim_whose_writing_was_cut_short_expires(tmp_path):
    claims = Claims(tmp_path, expires=0.3)
    (tmp_path / "step.0").touch()
    assert claims.take("step") is None
    time.sleep(0.4)
    assert claims.take("step").generation == 1


def test_of_many_that_race_each_thing_is_done_by_one(tmp_path):
    processes = [start(RACE, tmp_path) for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    done = sorted(map(int, (tmp_path / "log").read_text().split()))
    assert done == list(range(60))
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.fixture
def step():
    return Grid(read(configs.load(str(SMOKE), {}))).base("1x", "pt")


def test_a_successor_continues_the_folder_and_the_sleeper_cannot_publish(
    tmp_path, step
):
    sleeper, store = Store(tmp_path), Store(tmp_path)
    store.claims.expires = 0.2
    sleeper.claims.beat = 1e9  # as one that is asleep
    _, old = sleeper.take(step)
    (old / "step_00000300").mkdir()
    path = next((tmp_path / "claims").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "other"}))
    assert store.take(step) is None
    time.sleep(0.3)
    claim, new = store.take(step)
    assert (new / "step_00000300").is_dir() and not old.exists()
    with pytest.raises(Lost):
        sleeper.publish(step, old, {"by": "the sleeper"})
    store.publish(step, new, {"by": "the successor"})
    claim.finish()
    with pytest.raises(Lost):
        sleeper.publish(step, old, {"by": "the sleeper"})
    assert store.output(step)["by"] == "the successor"
    assert store.take(step) is None
    assert list((tmp_path / "claims").iterdir()) == []


def test_what_one_redoes_another_does_not_throw_away(tmp_path, step):
    one, other = Store(tmp_path), Store(tmp_path)
    claim, folder = one.take(step)
    one.publish(step, folder, {})
    claim.finish()
    (one.path(step) / "output.json").write_text("{")  # damaged; both saw it
    one.discard(step)
    claim, folder = one.take(step)
    (folder / "progress").touch()
    other.discard(step)
    assert (folder / "progress").exists() and claim.held()
