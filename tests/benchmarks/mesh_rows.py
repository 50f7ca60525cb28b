"""One grid on one device, a mesh, two processes, a store and Ray: equal rows?

    python tests/benchmarks/mesh_rows.py            # all five, and a table
    python tests/benchmarks/mesh_rows.py --tiny     # a tenth of it
    python tests/benchmarks/mesh_rows.py --only "one device,a store"

It is its own config. The store is an emulator of Google's on this machine; Ray's
cluster has two nodes, of which one is killed when three steps are finished. Expect
the values to agree to 1e-5 and the choices of λ to be the same, for every row; times
and the peak of each process's memory are printed, of Ray's the driver's and that of
the largest worker. Needs the extras `gcs` and `ray`, and gcp-storage-emulator.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))
import together  # noqa: E402
from merge_speed import table  # noqa: E402

from merging.runtime import storage  # noqa: E402

TOLERANCE = 1e-5
_ONE = {"data": 1, "fsdp": 1, "tensor": 1}
_EIGHT = {"data": 1, "fsdp": 4, "tensor": 2}


class Layout(NamedTuple):
    """How the grid is run.

    Attributes:
      processes: how many, each of so many `devices`, which are a `mesh`.
      on: "disk", or "store" or "ray".
    """

    processes: int = 1
    devices: int = 1
    mesh: dict[str, int] = _ONE
    on: str = "disk"


LAYOUTS = {
    "one device": Layout(),
    "eight devices": Layout(1, 8, _EIGHT),
    "two processes of four": Layout(2, 4, _EIGHT),
    "a store": Layout(on="store"),
    "Ray with a node killed": Layout(on="ray"),
}


def get_config(scale: str = "") -> ConfigDict:
    """Return the grid; of scale "tiny", as small as one can be."""
    tiny = scale == "tiny"
    config = ConfigDict()
    config.suite = "miniworld"
    few = dict(train_examples=64, validation_examples=8, test_examples=16)
    few |= dict(world_seed=2, documents=128, instructions=128)
    if tiny:
        few |= dict(
            categories=("sentiment", "topic_classification", "coreference"),
            test_examples=8,
        )
    config.data = ConfigDict(few)
    config.family = "tiny"
    config.vocab_size = 304  # the suite's 299 words do not divide over two devices
    config.sizes = ("1x",) if tiny else ("1x", "8x")
    config.bases = ("pt",) if tiny else ("pt", "it")
    every = ("average", "ties", "dare_ties", "rht")
    config.methods = every[:2] if tiny else every
    config.experts_merged = (2,) if tiny else (2, 4)
    config.learning_rate = 6e-3
    config.pretraining = ConfigDict(dict(steps=4 if tiny else 60))
    if not tiny:
        config.instruction = ConfigDict(dict(steps=30, rate=0.5))
    config.expert = ConfigDict(dict(steps=3 if tiny else 20, rate=0.4))
    if not tiny:
        config.multitask = ConfigDict(dict(steps=20, rate=0.5, validate_every=10))
    scales = {name: (0.5, 1.0) for name in config.methods[1:]}
    config.scales = ConfigDict(scales)
    config.densities = ConfigDict({name: (0.2, 0.5) for name in scales})
    config.runner = "inline"
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    return config


def run(folder: str, layout: Layout, tiny: bool) -> dict[str, Any]:
    """Run a layout's sweep; return its rows, seconds and peaks of memory, GB."""
    with contextlib.ExitStack() as stack:
        told = together.environment(layout.devices, JAX_PLATFORMS="cpu")
        peaks: list[float] = []
        if layout.on == "store":
            import object_store

            told |= stack.enter_context(object_store.running()).environment
            folder = "gs://store/mesh_rows"
        elif layout.on == "ray":
            told |= stack.enter_context(_cluster(Path(folder), peaks))
        begin = time.monotonic()
        command = _command(folder, layout, tiny)
        if layout.processes == 1:
            started = [subprocess.Popen(command, env=told, **_PIPES)]
        else:
            started = together.start(command, layout.processes, told)
        # All at once: a full pipe would stop one that the others wait for.
        with ThreadPoolExecutor(len(started)) as threads:
            ends = list(threads.map(_ended, started))
        for status, peak, said in ends:
            if status:
                raise SystemExit(f"{layout} ended with {status}:\n{said}")
            peaks.append(peak)
        seconds = time.monotonic() - begin
        return {"rows": rows(folder), "seconds": seconds, "peaks": peaks}


_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def _ended(process: subprocess.Popen) -> tuple[int, float, str]:
    """Wait for a process; return its status, its peak of memory (GB), its words."""
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    return status, usage.ru_maxrss / 1e6, said


def _command(folder: str, layout: Layout, tiny: bool) -> list[str]:
    spec = f"{Path(__file__)}:tiny" if tiny else str(Path(__file__))
    flags = [f"--config.mesh.{axis}={size}" for axis, size in layout.mesh.items()]
    if layout.on == "ray":
        flags = ["--config.runner=ray"]
    start = [sys.executable, "-m", "merging", "sweep", "--config", spec]
    return [*start, "--workdir", folder, *flags]


@contextlib.contextmanager
def _cluster(workdir: Path, peaks: list[float]) -> Iterator[dict[str, str]]:
    """Give what a driver must know to join two nodes, of which one is lost.

    Args:
      workdir: of the sweep; the node goes when three steps are finished there.
      peaks: is given that of the largest worker, GB.
    """
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(together.ROOT)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    far = made.add_node(num_cpus=1)
    over, largest = threading.Event(), [0.0]

    def look() -> None:
        lost = False
        while not over.wait(0.2):
            largest[0] = max(largest[0], *_workers(), 0.0)
            done = len(list(workdir.glob("steps/*/*/output.json")))
            if not lost and done >= 3:
                lost = True
                made.remove_node(far, allow_graceful=False)
                print("a node was killed", flush=True)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield {"RAY_ADDRESS": made.address}
    finally:
        over.set()
        thread.join()
        made.shutdown()
        peaks.append(largest[0])


def _workers() -> Iterator[float]:
    """Yield the peaks of memory of Ray's workers, GB."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if (status.parent / "cmdline").read_bytes().startswith(b"ray::"):
                lines = status.read_text().splitlines()
                peak = next(x for x in lines if x.startswith("VmHWM"))
                yield int(peak.split()[1]) / 1e6


def rows(workdir: str) -> dict[tuple, dict]:
    """Return a workdir's rows by what they are of."""
    lines = (storage.place(workdir) / "results.jsonl").read_text().splitlines()
    names = ("size", "base", "method", "K", "seed", "category", "dataset")
    made = {}
    for row in map(json.loads, lines):
        key = (*(row[name] for name in names), tuple(row["subset"]))
        made[key] = row
    return made


def differences(one: dict[tuple, dict], other: dict[tuple, dict]) -> list[str]:
    """Return what differs between two grids: rows, choices of λ, values."""
    found = [f"only in one: {key}" for key in one.keys() ^ other.keys()]
    for key in one.keys() & other.keys():
        a, b = one[key], other[key]
        if a["parameters"] != b["parameters"]:
            found.append(f"{key}: chose {a['parameters']} and {b['parameters']}")
        elif abs(a["value"] - b["value"]) > TOLERANCE:
            found.append(f"{key}: {a['value']} and {b['value']}")
    return found


def main() -> int:
    """Run the layouts and print what they took and where they differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--only", default="", help="layouts, with commas")
    chosen = parser.parse_args()
    folder = chosen.workdir or Path(tempfile.mkdtemp())
    told: list[dict[str, Any]] = []
    first = None
    for name in chosen.only.split(",") if chosen.only else LAYOUTS:
        ran = run(str(folder / name.replace(" ", "_")), LAYOUTS[name], chosen.tiny)
        first = first or ran["rows"]
        apart = differences(first, ran["rows"])
        told.append({"layout": name, "rows": len(ran["rows"]), "differ": len(apart)})
        told[-1]["seconds"] = round(ran["seconds"])
        told[-1]["peak GB"] = [round(peak, 2) for peak in ran["peaks"]]
        print(told[-1], *apart[:5], sep="\n    ", flush=True)
    print(table(told))
    return any(row["differ"] for row in told)


if __name__ == "__main__":
    sys.exit(main())
