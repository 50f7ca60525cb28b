"""A streaming merge that is killed, or shared by processes, gives the same bytes."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIES = ROOT / "configs" / "merge" / "ties.py"


def command(family, output, **values):
    base, experts = family
    settings = {"base": base, "experts": ",".join(experts.values()), "output": output}
    settings |= {"memory_budget": "700kB"} | values
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    merge = [sys.executable, "-m", "merging", "merge", "--config", str(TIES)]
    return [*merge, *flags]


def environment(**extra):
    # The processes have the devices of a small machine, not those of the tests.
    flags = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags} | extra


def run(family, output, **values):
    ran = subprocess.run(
        command(family, output, **values),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture(scope="module")
def expected(family, tmp_path_factory):
    """The bytes of a merge that nothing disturbed."""
    output = tmp_path_factory.mktemp("expected") / "out"
    run(family, output)
    return (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_killed_merge_goes_on_to_the_same_bytes(family, tmp_path, expected, blocks):
    output = tmp_path / "out"
    journal = tmp_path / "out.partial" / ".merge" / "blocks.0.jsonl"
    with subprocess.Popen(
        command(family, output), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= blocks:
                break
            time.sleep(random.uniform(0, 0.003))
        process.send_signal(signal.SIGKILL)
    if not output.exists():
        finished = journal.read_bytes().count(b"\n")
        assert finished >= blocks
        again = run(family, output)
        assert f"{finished} of " in again.stderr
    assert (output / "model.safetensors").read_bytes() == expected
    assert not (tmp_path / "out.partial").exists()


def test_a_block_whose_bytes_were_lost_is_done_again(family, tmp_path, expected):
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    with subprocess.Popen(
        command(family, output), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        journal = partial / ".merge" / "blocks.0.jsonl"
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
                break
        process.send_signal(signal.SIGKILL)
    if output.exists():
        pytest.skip("it was faster than the kill")
    weights = partial / "model.safetensors"
    size = weights.stat().st_size
    with open(weights, "r+b") as file:  # as after a power failure
        file.seek(4096)
        file.write(bytes(size - 4096))
    run(family, output)
    assert (output / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_work_and_give_the_same_bytes(
    family, tmp_path, expected, processes
):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    output = tmp_path / "out"
    started = [
        subprocess.Popen(
            command(family, output),
            env=environment(
                MERGING_COORDINATOR=f"localhost:{port}",
                MERGING_PROCESSES=str(processes),
                MERGING_PROCESS=str(number),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, said
    assert (output / "model.safetensors").read_bytes() == expected
    assert sum("Merged:" in text for text in said) == 1


def test_a_kill_without_warning_leaves_no_output(family, tmp_path):
    output = tmp_path / "out"
    with subprocess.Popen(
        command(family, output), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (tmp_path / "out.partial").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
