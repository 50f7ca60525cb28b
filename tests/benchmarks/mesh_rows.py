"""One grid on one device, on a mesh of eight, and on two processes of four: equal rows?

    python tests/benchmarks/mesh_rows.py            # all three, and a table
    python tests/benchmarks/mesh_rows.py --tiny     # a tenth of it, as the test runs it

It is its own config. Expect the values to agree to 1e-5 and the choices of λ to be the
same, for every row; times and the peak of each process's memory are printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))
import together  # noqa: E402

TOLERANCE = 1e-5
# Layout: processes, devices of each, mesh.
LAYOUTS = {
    "one device": (1, 1, {"data": 1, "fsdp": 1, "tensor": 1}),
    "eight devices": (1, 8, {"data": 1, "fsdp": 4, "tensor": 2}),
    "two processes of four": (2, 4, {"data": 1, "fsdp": 4, "tensor": 2}),
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


def command(workdir: Path, mesh: dict[str, int], tiny: bool) -> list[str]:
    """Return the command line of one sweep."""
    spec = f"{Path(__file__)}:tiny" if tiny else str(Path(__file__))
    flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    start = [sys.executable, "-m", "merging", "sweep", "--config", spec]
    return [*start, "--workdir", str(workdir), *flags]


def environment(devices: int) -> dict[str, str]:
    """Return a process's environment, with so many virtual devices."""
    return together.environment(devices, JAX_PLATFORMS="cpu")


def run(workdir: Path, layout: str, tiny: bool) -> tuple[float, list[float]]:
    """Run a layout's sweep; return its seconds and peaks of memory, GB."""
    count, devices, mesh = LAYOUTS[layout]
    address = together.address()
    begin = time.monotonic()
    started = []
    for number in range(count):
        told = {"MERGING_COORDINATOR": address, "MERGING_PROCESSES": str(count)}
        told |= {"MERGING_PROCESS": str(number)}
        started.append(
            subprocess.Popen(
                command(workdir, mesh, tiny),
                env=environment(devices) | (told if count > 1 else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    peaks = []
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        said = process.stderr.read()
        if status:
            raise SystemExit(f"{layout} ended with {status}:\n{said}")
        peaks.append(usage.ru_maxrss / 1e6)
    return time.monotonic() - begin, peaks


def rows(workdir: Path) -> dict[tuple, dict]:
    """Return a workdir's rows by what they are of."""
    lines = (workdir / "results.jsonl").read_text().splitlines()
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
    chosen = parser.parse_args()
    folder = chosen.workdir or Path(tempfile.mkdtemp())
    wrong, first = 0, None
    for layout in LAYOUTS:
        workdir = folder / layout.replace(" ", "_")
        seconds, peaks = run(workdir, layout, chosen.tiny)
        found = rows(workdir)
        first = first or found
        apart = differences(first, found)
        wrong += len(apart)
        each = ", ".join(f"{peak:.2f}" for peak in peaks)
        print(f"{layout:24} {len(found)} rows, {len(apart)} differ, {seconds:.0f} s,")
        print(f"{'':24} peak {each} GB", *apart[:5], sep="\n    ", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
