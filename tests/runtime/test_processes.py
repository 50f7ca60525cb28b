"""One program of two real processes, and what may be said wrongly about them."""

import argparse
import os
import sys

import pytest
import together

from merging.cli import command
from merging.runtime import processes
from merging.runtime.errors import UserError

OURS = ("MERGING_COORDINATOR", "MERGING_PROCESSES", "MERGING_PROCESS")
RANKS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
PROGRAM = """
import os, sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from merging import checkpoints
from merging.runtime import processes, sharding
assert processes.initialize()
me = os.environ["MERGING_PROCESS"]
assert processes.is_first() == (me == "0")
assert processes.broadcast(lambda: {"from": me, "n": [1, 2.5]}) == {
    "from": "0", "n": [1, 2.5]}
mesh = sharding.make_mesh({"fsdp": -1})
split = sharding.batch_sharding(mesh)
data = np.arange(32, dtype=np.float32).reshape(4, 8)
x = jax.make_array_from_callback((4, 8), split, lambda i: data[i])
processes.REDUCED = 6  # three numbers of each process at a time
counts = np.arange(10).reshape(2, 5) + 2**40 * (int(me) + 1)
processes.all_reduce([counts])
assert (counts == 2 * np.arange(10).reshape(2, 5) + 3 * 2**40).all(), counts
for add in (0, 1):
    checkpoints.save(sys.argv[1], {"x": x + add})
like = {"x": jax.ShapeDtypeStruct((4, 8), np.float32, sharding=split)}
back = checkpoints.restore(sys.argv[1], like)["x"]
for shard in back.addressable_shards:
    np.testing.assert_array_equal(shard.data, data[shard.index] + 1)
assert processes.all_here("both", 30)
assert me == "1" or not processes.all_here("one alone", 0.2)
processes.barrier("done")
print("fine", me)
"""


def test_two_processes_agree_and_share_a_checkpoint(tmp_path):
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "c")]
    outputs = together.heard(together.start(program, 2, together.environment(2)))
    for i, output in enumerate(outputs):
        assert f"fine {i}" in output, output


def test_alone_it_decides_itself_and_waits_for_no_one(monkeypatch):
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    assert not processes.initialize()
    assert processes.is_first()
    assert processes.broadcast(lambda: (1, 2)) == (1, 2)
    processes.barrier("alone")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, (0, 1)),
        (
            {
                "MERGING_COORDINATOR": "a:1",
                "MERGING_PROCESSES": "4",
                "MERGING_PROCESS": "3",
            },
            (3, 4),
        ),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"}, (1, 8)),
        ({"SLURM_PROCID": "1"}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, (1, 2)),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, (0, 1)),
    ],
)
def test_launchers_say_which_process_this_is(monkeypatch, told, expected):
    for name in (*OURS, *RANKS, "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert processes.process_id() == expected


def test_flags_say_what_the_variables_do(monkeypatch):
    for name in OURS:
        monkeypatch.setenv(name, "of the launcher")
    flags = "--coordinator a:1 --processes 4 --process 3".split()
    parser = argparse.ArgumentParser()
    command.takes_processes(parser)
    command.tell_processes(parser.parse_args(flags))
    assert processes.process_id() == (3, 4)
    assert os.environ["MERGING_COORDINATOR"] == "a:1"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"MERGING_PROCESS": "0"}, "MERGING_COORDINATOR, MERGING_PROCESSES is not"),
        (
            {
                "MERGING_COORDINATOR": "a:1",
                "MERGING_PROCESSES": "two",
                "MERGING_PROCESS": "0",
            },
            "must be numbers",
        ),
        (
            {
                "MERGING_COORDINATOR": "a:1",
                "MERGING_PROCESSES": "2",
                "MERGING_PROCESS": "2",
            },
            "counts from 0",
        ),
    ],
)
def test_half_said_clusters_are_refused(monkeypatch, told, words):
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        processes.initialize()
