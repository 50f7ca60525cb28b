"""Several processes as one program: start, meet, and agree on what process 0 decides.

Every function also works, and costs nothing, when there is one process only.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from merging.runtime import preemption, storage
from merging.runtime.errors import UserError

# Numbers of all processes that `all_reduce` has in memory at a time: 8 MB.
REDUCED = 2**20
HEARTBEAT = 30  # seconds of silence after which a process counts as lost
# Set by Slurm inside a job step, and by Open MPI: the number of processes.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_RANKS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
_OURS = ("MERGING_COORDINATOR", "MERGING_PROCESSES", "MERGING_PROCESS")


def initialize(logs: storage.Folder | None = None) -> bool:
    """Join the other processes, when there are any; call before anything uses JAX.

    Told by MERGING_COORDINATOR (host:port), MERGING_PROCESSES and MERGING_PROCESS (on
    the command line --coordinator, --processes and --process), or detected in TPU
    slices of GKE, Slurm job steps and under Open MPI, or wherever JAX can, with
    MERGING_CLUSTER=auto. From then on SIGTERM is heard (see `stopping`).

    Args:
      logs: where processes other than 0 print from now on, if MERGING_LOGS doesn't say;
        if neither does, they print where they did.

    Returns:
      Whether this is now one process of several.

    Raises:
      UserError: only some of the three variables are set, or one is no number.
    """
    told = {name: os.environ[name] for name in _OURS if os.environ.get(name)}
    if not told and not _detected():
        return False
    arguments = _told(told) if told else ()
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(*arguments, heartbeat_timeout_seconds=HEARTBEAT)
    if jax.process_count() > 1:
        preemption.join_others(_coordination_client(), jax.process_index())
        if not is_first():
            print_apart(logs, jax.process_index())
    return jax.process_count() > 1


def process_id() -> tuple[int, int]:
    """Return (this process's number, how many), as told, without joining the others.

    For work that processes share through files alone. One that no launcher numbered
    is number 0 of 1.

    Raises:
      UserError: as `initialize`.
    """
    told = {name: os.environ[name] for name in _OURS if os.environ.get(name)}
    if told:
        return _told(told)[:0:-1]
    for rank, size in _RANKS:
        numbers = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(number.isdigit() for number in numbers):
            return int(numbers[0]), int(numbers[1])
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    number = os.environ.get("TPU_WORKER_ID", "0")
    return (int(number), workers) if workers > 1 and number.isdigit() else (0, 1)


def print_apart(logs: storage.Folder | None, process: int) -> None:
    """Print into DIR/process_I.log from now on, and say so where it was printed before.

    Args:
      logs: the folder; MERGING_LOGS goes before it. None changes nothing. For one in an
        object store, which nothing is added to, this machine's `storage.scratch`.
      process: I.
    """
    folder = os.environ.get("MERGING_LOGS") or logs
    if folder is None:
        return
    path = storage.scratch(storage.place(folder)) / f"process_{process}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"merging: process {process} prints into {path}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)


def preempted() -> bool:
    """Return whether the job was asked to stop: the same answer on every process."""
    return broadcast(preemption.asked)


def is_first() -> bool:
    """Return whether this is process 0, the one that decides and reports."""
    return jax.process_index() == 0


def index() -> int:
    """Return this process's number, from 0."""
    return jax.process_index()


def count() -> int:
    """Return how many processes there are."""
    return jax.process_count()


def barrier(name: str) -> None:
    """Wait until every process is here; ``name`` must be the same on all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_here(name: str, seconds: float) -> bool:
    """Return whether every process comes here in time.

    Through the coordination service, so that one that fails alone, while others wait
    for it in a collective, finds out. Names are used once.
    """
    if jax.process_count() == 1:
        return True
    try:
        _coordination_client().wait_at_barrier(name, round(seconds * 1000))
    except Exception:  # whatever the service says: they are not
        return False
    return True


def broadcast(question: Callable[[], Any]) -> Any:
    """Return process 0's answer on every process.

    A clock, a directory listing or a random draw may differ between processes; a
    program whose collectives depend on one would hang.

    Args:
      question: called on process 0 only; its answer must be plain JSON.

    Raises:
      UserError: the question raised one on process 0; on every process.
    """
    if jax.process_count() == 1:
        return question()
    answer = b""
    if is_first():
        try:
            answer = json.dumps({"answer": question()}).encode()
        except UserError as error:
            answer = json.dumps({"refused": str(error)}).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(answer))))
    buffer = np.zeros(length, np.uint8)
    if is_first():
        buffer[:] = np.frombuffer(answer, np.uint8)
    heard = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))
    if "refused" in heard:
        raise UserError(heard["refused"])
    return heard["answer"]


def all_reduce(arrays: Sequence[np.ndarray]) -> None:
    """Add up, in place, the int64 arrays that every process holds alike in shape.

    Part by part, as every process receives all the others' numbers: the memory that
    takes does not grow with the processes.
    """
    processes = jax.process_count()
    if processes == 1:
        return
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1)
        step = max(REDUCED // processes, 1)
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            # As words: without x64, JAX would cut an int64 in half.
            words = part.view(np.uint32)
            gathered = np.asarray(multihost_utils.process_allgather(words))
            part[:] = gathered.reshape(processes, -1).view(np.int64).sum(axis=0)
        array[...] = flat.reshape(array.shape)


def _coordination_client() -> Any:
    """Return JAX's client of the key-value store that the processes share.

    JAX 0.10 has no public way to it: `multihost_utils` offers collectives only, which
    a process that fails or is preempted can't wait in. The one private import of ours.
    """
    from jax._src.distributed import global_state

    return global_state.client


def _told(told: dict[str, str]) -> tuple[str, int, int]:
    if missing := [name for name in _OURS if name not in told]:
        raise UserError(
            f"{', '.join(told)} is set but {', '.join(missing)} is not: set all of "
            f"{', '.join(_OURS)}, or none; or give --coordinator HOST:PORT, "
            "--processes N and --process I."
        )
    coordinator, processes, process = (told[name] for name in _OURS)
    if not (processes.isdigit() and process.isdigit()):
        raise UserError(
            "MERGING_PROCESSES and MERGING_PROCESS must be numbers, got "
            f"{processes!r} and {process!r}."
        )
    if int(process) >= int(processes):
        raise UserError(
            f"MERGING_PROCESS is {process}, but counts from 0 and MERGING_PROCESSES is "
            f"{processes}."
        )
    return coordinator, int(processes), int(process)


def _detected() -> bool:
    tasks = (os.environ.get(name, "1") for name in _TASKS)
    return (
        os.environ.get("MERGING_CLUSTER") == "auto"
        or any(n.isdigit() and int(n) > 1 for n in tasks)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )
