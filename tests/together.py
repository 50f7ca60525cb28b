"""Several real processes of one program, for tests."""

import contextlib
import os
import random
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Half of what a test of merges waits for is XLA's CPU emitter of fusions, which makes a
# context of MLIR for each kernel. There is an older one.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """Return a process's environment: so many virtual devices, quick compilation."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags} | extra


def start(
    command: Sequence[str], processes: int, environment: Mapping[str, str]
) -> list[subprocess.Popen]:
    """Start the processes of one job, which are told so by its variables."""
    told = {"MERGING_COORDINATOR": address(), "MERGING_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            command,
            env={**environment, **told, "MERGING_PROCESS": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]


def address() -> str:
    """Return a host and a free port of it.

    A port that the system picks may be given to anybody's next connection before the
    job has bound it; of these, below what Linux gives away, none is.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", port))
            return f"localhost:{port}"
    raise OSError("none of a hundred ports is free")


def heard(started: Sequence[subprocess.Popen], limit: float = 120) -> list[str]:
    """Wait for all, and return what each printed; none outlives the test."""
    try:
        return [process.communicate(timeout=limit)[0] for process in started]
    finally:
        for process in started:
            process.kill()


def statuses(started: Sequence[subprocess.Popen]) -> list[int | None]:
    """Return their exit statuses."""
    return [process.returncode for process in started]
