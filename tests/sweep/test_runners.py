"""One step's failure is its own: what a runner does when steps fail, die or stop."""

import functools
import multiprocessing
import os
import subprocess
import sys
import time

import fake_steps
import pytest
from fake_steps import Fakes, finished, step

from merging.runtime import preemption
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import Progress
from merging.sweep import pool, runners
from merging.sweep.store import Store


@pytest.fixture
def in_process(monkeypatch):
    """Fakes that run inline; the real work is put back afterwards."""
    monkeypatch.setitem(sys.modules, "merging.sweep.work", None)
    monkeypatch.delattr("merging.sweep.work", raising=False)
    fakes = Fakes("inline")
    fakes.load_methods()
    return fakes


def run(steps, experiment, folder) -> Store:
    with Progress(len(steps), "steps") as progress:
        runners.run(steps, experiment, Store(folder), progress)


def test_steps_that_need_no_failed_one_are_done_and_the_failed_are_named(
    in_process, tmp_path, capsys
):
    mistaken = step("mistaken")
    after = step("after", mistaken)
    steps = [mistaken, step("one"), after, step("last", after), step("two")]
    with pytest.raises(UserError) as error:
        run(steps, in_process, tmp_path)
    assert str(error.value) == "mistaken: the rate is too high"
    assert finished(Store(tmp_path)) == {"one", "two"}
    assert Store(tmp_path).failure(mistaken) == "the rate is too high"
    said = capsys.readouterr().err
    assert "failed: mistaken: the rate is too high, and with it 2 that need it" in said


def test_a_fault_names_its_step(in_process, tmp_path):
    with pytest.raises(RuntimeError, match="odd: an odd error") as error:
        run([step("odd"), step("mistaken"), step("one")], in_process, tmp_path)
    assert "mistaken: the rate is too high" in str(error.value)
    assert isinstance(error.value.__cause__, fake_steps.TwoPartError)
    assert finished(Store(tmp_path)) == {"one"}


def test_what_fails_every_step_is_not_tried_with_all_of_them(
    in_process, tmp_path, monkeypatch
):
    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(sys.modules["merging.sweep.work"], "execute", full)
    with pytest.raises(UserError, match="5 steps failed.*\n.*full") as error:
        run([step(str(n)) for n in range(9)], in_process, tmp_path)
    assert "4 others were not begun" in str(error.value)


def test_a_workers_odd_error_is_its_steps_and_not_the_end_of_the_pool(tmp_path):
    with pytest.raises(RuntimeError, match="^odd: TwoPartError: an odd error$"):
        run([step("odd"), step("one"), step("two")], Fakes("local", 1), tmp_path)
    assert finished(Store(tmp_path)) == {"one", "two"}


def test_a_killed_worker_is_told_of_and_strange_processes_are_left_alone(
    tmp_path, monkeypatch
):
    # On a busy machine the pool looks at its workers before the last one is there.
    start = multiprocessing.context.SpawnProcess.start
    monkeypatch.setattr(
        multiprocessing.context.SpawnProcess,
        "start",
        lambda self: time.sleep(0.5) or start(self),
    )
    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    mine.start()
    try:
        with pytest.raises(UserError, match="worker process died, at one of: ") as e:
            run([step("slow to save"), step("killed")], Fakes("local"), tmp_path)
        assert mine.is_alive()
        assert "killed" in str(e.value) and "--config.workers=1" in str(e.value)
    finally:
        mine.kill()


def test_when_a_worker_is_the_first_to_be_stopped_the_others_save(tmp_path):
    with pytest.raises(Preempted):
        run([step("stopped"), step("slow to save")], Fakes("local"), tmp_path)
    assert (tmp_path / "slow to save.saved").exists()


def test_workers_that_end_because_all_are_stopped_are_no_fault(
    in_process, tmp_path, monkeypatch
):
    def end(*_):
        monkeypatch.setattr(preemption, "asked", lambda: True)
        raise runners.BrokenExecutor("a process was terminated abruptly")

    monkeypatch.setattr(sys.modules["merging.sweep.work"], "execute", end)
    with pytest.raises(Preempted):
        run([step("one")], in_process, tmp_path)


def test_one_thread_is_one():
    code = """
import os
from pathlib import Path
from merging.sweep.pool import one_thread
os.environ.update(one_thread())
import jax.numpy as jnp
(jnp.ones((300, 300)) @ jnp.ones((300, 300))).block_until_ready()
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
print(sum("XLAEigen" in name for name in names))
"""
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command, environment = [sys.executable, "-c", code], os.environ | devices
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"]


def test_actors_keep_what_they_made_and_answer_in_order(tmp_path):
    with pool.Actors(functools.partial(fake_steps.Answers, tmp_path), 1) as actors:
        told = [*actors.map("told", "ab"), *actors.map("told", "c")]
        assert [one[::2] for one in told] == [("a", 1), ("b", 2), ("c", 3)]
        assert len({process for _, process, _ in told} - {os.getpid()}) == 1
        with pytest.raises(UserError, match="^the rate is too high$"):
            list(actors.map("told", ["mistaken"]))
        with pytest.raises(RuntimeError, match="^TwoPartError: an odd error$"):
            list(actors.map("told", ["odd"]))
        assert next(actors.map("told", "d"))[1:] == (told[0][1], 6)
        with pytest.raises(UserError, match="worker process died.*config.workers=1"):
            list(actors.map("told", ["fatal"]))
