"""A streaming merge that is killed, or shared by processes, gives the same bytes."""

import random
import signal
import subprocess
import sys
import time

import lora
import models
import numpy as np
import pytest
from safetensors.numpy import load_file
from together import environment, heard, start

from merging import checkpoints, merge_checkpoints
from merging.cli import main
from merging.runtime import errors, tree


def command(family, output, method="ties", **values):
    base, experts = family
    settings = {"base": base, "experts": ",".join(experts.values()), "output": output}
    settings |= {"memory_budget": "700kB"} | values
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    config = f"merge/method:{method}"
    return [sys.executable, "-m", "merging", "merge", "--config", config, *flags]


@pytest.fixture
def go_on(capsys):
    """Run the command in this process; return what it told."""

    def run(family, output, **values):
        status = main.main(command(family, output, **values)[3:])
        told = capsys.readouterr().err
        assert status == 0, told
        return told

    return run


@pytest.fixture(scope="module")
def expected(family, tmp_path_factory):
    """The bytes of a merge that nothing disturbed."""
    output = tmp_path_factory.mktemp("expected") / "out"
    assert main.main(command(family, output)[3:]) == 0
    return (output / "model.safetensors").read_bytes()


def kill(merge, journal, blocks):
    """Start a merge, and kill it when so many blocks are in its journal.

    Returns:
      How many were when it was dead; None if it was faster than the kill.
    """
    with subprocess.Popen(
        merge, env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= blocks:
                break
            time.sleep(random.uniform(0, 0.003))
        process.send_signal(signal.SIGKILL)
    return journal.read_bytes().count(b"\n") if journal.exists() else None


@pytest.mark.parametrize("lost", [False, True])
def test_a_killed_merge_goes_on_to_the_same_bytes(
    family, tmp_path, expected, go_on, lost
):
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    blocks = 1 + 3 * lost
    finished = kill(
        command(family, output), partial / ".merge" / "blocks.0.jsonl", blocks
    )
    if finished is not None:
        assert finished >= blocks and not output.exists()
        weights = partial / "checkpoint" / "model.safetensors"
        if lost:  # as after a power failure
            size = weights.stat().st_size
            with open(weights, "r+b") as file:
                file.seek(4096)
                file.write(bytes(size - 4096))
        told = go_on(family, output)
        assert lost or f"{finished} of " in told
    assert (output / "model.safetensors").read_bytes() == expected
    assert not partial.exists()


@pytest.mark.long
@pytest.mark.parametrize("method", ["model_stock", "iso_c"])
def test_methods_that_see_more_than_an_element_are_shared_killed_and_resumed(
    family, tmp_path, go_on, method
):
    go_on(family, tmp_path / "one", method=method)
    expected = (tmp_path / "one" / "model.safetensors").read_bytes()
    merge = command(family, tmp_path / "two", method=method, memory_budget="300kB")
    started = start(merge, 2, environment())
    wait_for_blocks(tmp_path / "two.partial", 2, started[1])
    for process in started:  # that one alone ends the others has a test of its own
        process.kill()
    heard(started)
    if not (tmp_path / "two").exists():
        told = go_on(family, tmp_path / "two", method=method, memory_budget="300kB")
        assert "were finished before" in told
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == expected


def wait_for_blocks(partial, blocks, process):
    """Wait until so many blocks are finished, or the process has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        journals = partial.glob(".merge/blocks.*.jsonl")
        if sum(j.read_bytes().count(b"\n") for j in journals) >= blocks:
            return
        time.sleep(0.001)


def test_processes_share_the_work_and_give_the_same_bytes(family, tmp_path, expected):
    output = tmp_path / "out"
    started = start(command(family, output), 2, environment())
    said = heard(started)
    assert [process.returncode for process in started] == [0, 0], said
    assert (output / "model.safetensors").read_bytes() == expected
    assert sum("Merged:" in text for text in said) == 1


def test_processes_write_orbax_together(family, tmp_path, expected):
    output = tmp_path / "out"
    merge = command(family, output, format="orbax", memory_budget="3MB")
    started = start(merge, 2, environment())
    said = heard(started, limit=60)
    assert [process.returncode for process in started] == [0, 0], said
    single = tmp_path / "expected.safetensors"
    single.write_bytes(expected)
    found = tree.flatten(checkpoints.restore(output))
    assert models.bits(found) == models.bits(load_file(single))
    assert not (tmp_path / "out.partial").exists()


def test_a_preempted_merge_ends_with_75_and_goes_on(family, tmp_path, expected, go_on):
    output = tmp_path / "out"
    # Small blocks, so that it is far from the end when the signal comes.
    settings = {"memory_budget": "300kB"}
    process = subprocess.Popen(
        command(family, output, **settings),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_blocks(tmp_path / "out.partial", 1, process)
    process.send_signal(signal.SIGTERM)
    (said,) = (process.communicate(timeout=60)[1],)
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == errors.PREEMPTED, said
        assert "stopped by SIGTERM" in said and "to continue" in said
        assert not output.exists()
        assert "were finished before" in go_on(family, output, **settings)
    assert (output / "model.safetensors").read_bytes() == expected


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])  # the first coordinates
def test_one_preempted_process_ends_them_all(family, tmp_path, expected, go_on, number):
    output = tmp_path / "out"
    merge = command(family, output, memory_budget="300kB")
    started = start(merge, 2, environment())
    wait_for_blocks(tmp_path / "out.partial", 2, started[number])
    started[number].send_signal(signal.SIGTERM)
    said = heard(started, limit=60)
    statuses = [process.returncode for process in started]
    assert statuses in ([errors.PREEMPTED] * 2, [0, 0]), said
    if statuses != [0, 0]:
        go_on(family, output, memory_budget="300kB")
    assert (output / "model.safetensors").read_bytes() == expected


@pytest.mark.long
def test_one_killed_process_ends_them_all_and_they_go_on(family, tmp_path, expected):
    output = tmp_path / "out"
    merge = command(family, output, memory_budget="300kB")
    started = start(merge, 2, environment())
    wait_for_blocks(tmp_path / "out.partial", 2, started[1])
    started[1].kill()
    said = heard(started, limit=90)
    if started[0].returncode != 0:
        again = start(merge, 2, environment())
        said = heard(again)
        assert [process.returncode for process in again] == [0, 0], said
    assert (output / "model.safetensors").read_bytes() == expected


def test_the_first_error_is_named_by_every_process(family, tmp_path):
    """A NaN lies in a block that only one of two processes reads."""
    base, experts = family
    leaves = load_file(f"{experts['e0']}/model.safetensors")
    leaves["model.layers.1.mlp.up_proj.weight"][-1, -1] = np.nan
    bad = models.save(tmp_path / "bad", leaves)
    merge = command((base, experts | {"e0": bad}), tmp_path / "out")
    started = start(merge, 2, environment())
    said = heard(started, limit=60)
    assert [process.returncode for process in started] == [2, 2], said
    assert all("NaN or Inf in the weights" in text for text in said), said
    assert sum("failed first" in text for text in said) == 1


def test_a_process_without_a_block_takes_part(tmp_path):
    """Two small adapters are one block: the other process has none to merge."""
    folders = [lora.save(tmp_path / n, lora.factors(i)) for i, n in enumerate("ab")]
    settings = {"space": "core_space", "experts": ",".join(folders)}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    merge = [sys.executable, "-m", "merging", "merge", "--config", "merge/ties", *flags]
    started = start([*merge, f"--config.output={tmp_path / 'out'}"], 2, environment())
    said = heard(started)
    assert [process.returncode for process in started] == [0, 0], said
    merge_checkpoints(
        None,
        folders,
        "ties(density=0.2, scale=1.0, weights=None)",
        tmp_path / "one",
        space="core_space",
    )
    both = [tmp_path / n / "adapter_model.safetensors" for n in ("out", "one")]
    assert both[0].read_bytes() == both[1].read_bytes()
