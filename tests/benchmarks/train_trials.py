"""What `merging train` promises of several processes, tried for real.

curves  the same losses on 1, 2 and 4 processes, of two virtual devices each
kills   SIGKILL to one of two processes at a random moment, the same command again:
        the same bytes

examples:
  python tests/benchmarks/train_trials.py curves --workdir trials
  python tests/benchmarks/train_trials.py kills --workdir trials --kills 10

A trial trains the miniworld's smallest model for 120 steps, half a minute on two cores.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import together

from merging import checkpoints
from merging.runtime import tree

STEPS = 120
SETTINGS = {
    "size": "1x",
    "data.documents": 2000,
    "data.validation_examples": 16,
    "hyperparameters.steps": STEPS,
    "hyperparameters.warmup_steps": 20,
    "hyperparameters.log_every": 5,
    "hyperparameters.validate_every": 30,
    "hyperparameters.checkpoint_every": 20,
}
LIMIT = 600  # seconds of one job


def main() -> int:
    """Run one mode and return 0 if all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["curves", "kills"])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10, help="how many (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = {"curves": curves, "kills": kills}[options.mode](options)
    return 0 if all(row["holds"] for row in rows) else 1


def curves(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on 1, 2 and 4 processes; hold the losses of each against those of one."""
    rows, alone = [], None
    for processes in (1, 2, 4):
        folder = fresh(options.workdir, f"curve{processes}")
        begin = time.monotonic()
        finish(start(folder, processes))
        found = losses(folder)
        alone = found if alone is None else alone
        apart = float(np.max(np.abs(found - alone) / alone))
        rows.append(
            {
                "processes": processes,
                "lines": len(found),
                "seconds": round(time.monotonic() - begin, 1),
                "largest_relative_difference": float(f"{apart:.2g}"),
                "holds": len(found) == len(alone) and apart < 1e-5,
            }
        )
        print(rows[-1], flush=True)
    return rows


def kills(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Kill one of two processes at random moments, and let the command go on."""
    folder = fresh(options.workdir, "undisturbed")
    finish(start(folder, 2))
    expected, data = outcome(folder), folder / "data"
    moments, rows = random.Random(options.seed), []
    for number in range(options.kills):
        row = _kill_once(options.workdir, moments, data)
        same = row.pop("outcome") == expected
        row |= {"kill": number + 1, "same_bytes": same, "holds": same}
        rows.append(row)
        print(row, flush=True)
    ended = [row["other_ended_s"] for row in rows if row["before_the_end"]]
    print(
        f"{len(rows)} kills, {len(ended)} of them before the end; the other process "
        f"ended within {max(ended, default=0)} s; outcomes that differ: "
        f"{sum(not row['same_bytes'] for row in rows)}."
    )
    return rows


def _kill_once(workdir: Path, moments: random.Random, data: Path) -> dict[str, Any]:
    """Kill once a random step was told of, or before the first, and a little later."""
    folder = fresh(workdir, "killed")
    victim, step = moments.randrange(2), moments.randrange(STEPS)
    if step > STEPS // 10:
        folder.mkdir()
        shutil.copy(data.parent / "config.json", folder)
        shutil.copytree(data, folder / "data")
    started = start(folder, 2)
    told = folder / "losses.jsonl"
    while step > STEPS // 10 and started[victim].poll() is None:
        if told.exists() and told.read_bytes().count(b"\n") >= step:
            break
        time.sleep(0.01)
    time.sleep(moments.uniform(0, 1) if step > STEPS // 10 else moments.uniform(0, 20))
    row: dict[str, Any] = {"victim": victim, "step": step}
    row["before_the_end"] = started[victim].poll() is None
    row["told"] = told.read_bytes().count(b"\n") if told.exists() else 0
    started[victim].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    together.heard(started, limit=LIMIT)
    row["other_ended_s"] = round(time.monotonic() - begin, 1)
    row["other_status"] = started[1 - victim].returncode
    steps = sorted(path.name for path in (folder / "training").glob("step_????????"))
    row["saved"] = steps[-1] if steps else None
    finish(start(folder, 2))
    return row | {"outcome": outcome(folder)}


def start(folder: Path, processes: int) -> list[subprocess.Popen]:
    """Start a job of so many processes."""
    config = together.ROOT / "configs" / "train" / "pretrain.py"
    command = [sys.executable, "-m", "merging", "train", "--config", str(config)]
    command += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    command += ["--workdir", str(folder)]
    devices = together.environment(2, JAX_PLATFORMS="cpu")
    return together.start(command, processes, devices)


def finish(started: list[subprocess.Popen]) -> None:
    """Wait for a job.

    Raises:
      RuntimeError: it failed.
    """
    said = together.heard(started, limit=LIMIT)
    if any(together.statuses(started)):
        raise RuntimeError(f"{together.statuses(started)}\n" + "\n".join(said))


def outcome(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the losses and every leaf of both checkpoints, as bytes."""
    leaves = {
        f"{name}/{path}": np.asarray(leaf).tobytes()
        for name in ("checkpoint", "best")
        for path, leaf in tree.flatten(checkpoints.restore(folder / name)).items()
    }
    return (folder / "losses.jsonl").read_bytes(), leaves


def losses(folder: Path) -> np.ndarray:
    """Return every training and validation loss, in order."""
    lines = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    return np.array([list(line.values())[-1] for line in lines])


def fresh(workdir: Path, name: str) -> Path:
    """Return an empty folder's path."""
    shutil.rmtree(workdir / name, ignore_errors=True)
    return workdir / name


if __name__ == "__main__":
    sys.exit(main())
