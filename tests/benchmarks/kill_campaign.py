"""A thousand SIGKILLs, at random moments of merges, trainings and sweeps.

  python tests/benchmarks/kill_campaign.py --workdir kills
  python tests/benchmarks/kill_campaign.py --workdir kills --kills 60 --only merge

Whole commands of small jobs. One of a job's processes is killed, the others soon after,
as a scheduler does; the same command goes on, is killed again (at most `TIMES` in a
row), and then left alone. It must end with the bytes (or rows) of an undisturbed job;
no output may be there before it is whole; and what was finished is not done again.
Every kill is a line of DIR/kills.jsonl: a campaign that is stopped goes on.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import together
from merge_speed import table

METHODS = ("ties", "dare_ties", "rht", "model_stock", "iso_c")
PROCESSES, FORMATS = (1, 2, 4), ("safetensors", "orbax")
# The share of a thousand kills that trainings and sweeps get; merges get the rest.
TRAIN, SWEEP = 0.1, 0.06
TIMES = 4
LIMIT = 600  # seconds of one job
_TRAIN = {
    "size": "1x",
    "data.documents": 300,
    "data.validation_examples": 8,
    "hyperparameters.steps": 40,
    "hyperparameters.warmup_steps": 5,
    "hyperparameters.log_every": 5,
    "hyperparameters.validate_every": 20,
    "hyperparameters.checkpoint_every": 5,
}
_SWEEP = {
    "bases": "pt",
    "methods": "average,ties",
    "experts_merged": "2",
    "pretraining.steps": 20,
    "expert.steps": 10,
    "multitask.steps": 20,
    "multitask.validate_every": 10,
    "workers": 2,
}


class Cell(NamedTuple):
    """One kind of job.

    Attributes:
      name: what it is.
      processes: how many of them.
      command: makes it, given its output.
      told: counts the finished parts that its journal speaks of, given its output.
      outcome: of a finished output, everything that must come out the same; None if
        it is not there.
      kept: whether the parts that were told of before are still finished, given those
        told of now and what the processes printed.
    """

    name: str
    processes: int
    command: Callable[[Path], list[str]]
    told: Callable[[Path], set[str]]
    outcome: Callable[[Path], str | None]
    kept: Callable[[set[str], set[str], list[str]], bool]


def main() -> int:
    """Kill, compare, print a table; return 0 if all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (2)")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    options.workdir.mkdir(parents=True, exist_ok=True)
    todo = [(c, n) for c, n in shares(options) if options.only in c.name]
    with ThreadPoolExecutor(options.jobs) as threads:
        list(threads.map(lambda item: campaign(options, *item), todo))
    rows = list(read(options.workdir / "kills.jsonl"))
    print(table(summary(rows)))
    return 0 if all(row["holds"] for row in rows) else 1


def shares(options: argparse.Namespace) -> list[tuple[Cell, int]]:
    """Return every cell with the number of its kills."""
    total, models = options.kills, family(options.workdir / "models")
    merges = [
        merge_cell(models, method, processes, format)
        for method in METHODS
        for processes in PROCESSES
        for format in FORMATS
    ]
    others = [
        (train_cell(1), round(total * TRAIN / 2)),
        (train_cell(2), round(total * TRAIN / 2)),
        (sweep_cell(), round(total * SWEEP)),
    ]
    rest = total - sum(count for _, count in others)
    counts = [
        rest // len(merges) + (i < rest % len(merges)) for i in range(len(merges))
    ]
    return [*zip(merges, counts, strict=True), *others]


def campaign(options: argparse.Namespace, cell: Cell, kills: int) -> None:
    """Kill jobs of one cell so often, less what an earlier campaign did."""
    journal = options.workdir / "kills.jsonl"
    made = sum(row["cell"] == cell.name for row in read(journal))
    if made >= kills:
        return
    folder = options.workdir / cell.name
    moments = random.Random(f"{options.seed} {cell.name} {made}")
    begin = time.monotonic()
    output = fresh(folder, "undisturbed")
    started = start(cell, output)
    while not cell.told(output) and started[0].poll() is None:
        time.sleep(0.002)
    first = time.monotonic() - begin
    finish(started)
    spans = first, time.monotonic() - begin - first
    expected = cell.outcome(output)
    while made < kills:
        rows = _trial(cell, fresh(folder, "killed"), expected, moments, spans)
        with open(journal, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[: kills - made])
        made += len(rows)
        print(f"{cell.name}: {min(made, kills)} of {kills}", flush=True)


def _trial(
    cell: Cell, output: Path, expected: str | None, moments: random.Random, spans
) -> list[dict[str, Any]]:
    """Kill one job up to `TIMES` times, let it end, and return a row for each kill."""
    rows: list[dict[str, Any]] = []
    told: set[str] = set()
    for _ in range(moments.randint(1, TIMES)):
        started = start(cell, output)
        row = {"cell": cell.name, **_kill(cell, started, output, moments, spans)}
        said = together.heard(started, limit=LIMIT)
        found = cell.outcome(output)
        row["half_visible"] = found not in (None, expected)
        before, told = told, cell.told(output)
        row["redone"] = bool(before) and not cell.kept(before, told, said)
        row["told"] = len(told)
        rows.append(row)
        if found is not None:
            break
    else:
        started = start(cell, output)
        said = finish(started)
        after = cell.told(output)
        rows[-1]["redone"] |= bool(told) and not cell.kept(told, after, said)
    same = cell.outcome(output) == expected
    for row in rows:
        row["same"] = same
        row["holds"] = same and not row["half_visible"] and not row["redone"]
        if not row["holds"]:
            print(row, *said, sep="\n", flush=True)
    return rows


def _kill(cell: Cell, started, output: Path, moments: random.Random, spans) -> dict:
    """Kill one process, three times of four after the first part was finished."""
    startup, work = spans
    victim = moments.randrange(cell.processes)
    late = moments.random() < 0.75
    if late:
        before = cell.told(output)
        while started[victim].poll() is None and cell.told(output) <= before:
            time.sleep(0.002)
    time.sleep(moments.uniform(0, work if late else startup))
    running = started[victim].poll() is None
    started[victim].send_signal(signal.SIGKILL)
    time.sleep(moments.uniform(0, 1) if cell.processes > 1 else 0)
    for process in started:
        process.send_signal(signal.SIGKILL)
    return {"victim": victim, "running": running, "late": late}


def start(cell: Cell, output: Path) -> list[subprocess.Popen]:
    """Start a job."""
    told = together.environment(1, JAX_PLATFORMS="cpu")
    return together.start(cell.command(output), cell.processes, told)


def finish(started: list[subprocess.Popen]) -> list[str]:
    """Wait for a job, and return what it printed.

    Raises:
      RuntimeError: it failed.
    """
    said = together.heard(started, limit=LIMIT)
    if any(together.statuses(started)):
        raise RuntimeError(f"{together.statuses(started)}\n" + "\n".join(said))
    return said


def merge_cell(models: Path, method: str, processes: int, format: str) -> Cell:
    """Return merges of three small experts, in many blocks."""
    config = f"merge/method:{method}"
    experts = ",".join(str(models / f"e{i}") for i in range(3))

    def command(output: Path) -> list[str]:
        settings = {"base": models / "base", "experts": experts, "format": format}
        budget = "300kB" if format == "safetensors" else "4MB"
        settings |= {"output": output, "memory_budget": budget}
        return _command("merge", config, settings)

    def told(output: Path) -> set[str]:
        journal = output.with_name(output.name + ".partial") / ".merge"
        found = set()
        for path in journal.glob("blocks.*.jsonl"):
            with contextlib.suppress(FileNotFoundError):  # published at this moment
                lines = path.read_text().split("\n")
                found |= {line.split(",")[0] for line in lines if line[-1:] == "}"}
        return found

    def kept(before: set[str], now: set[str], said: list[str]) -> bool:
        text = "\n".join(said)
        if "blocks were finished before" not in text:
            # Killed again before it had come to that.
            return "Merged:" not in text
        return processes > 1 or f"{len(before)} of " in text

    return Cell(
        f"merge {method} {processes} {format}",
        processes,
        command,
        told,
        digest,
        kept,
    )


def train_cell(processes: int) -> Cell:
    """Return trainings of the miniworld's smallest model."""
    config = together.ROOT / "configs" / "train" / "pretrain.py"

    def command(output: Path) -> list[str]:
        return [*_command("train", config, _TRAIN), "--workdir", str(output)]

    def told(output: Path) -> set[str]:
        if (output / "train.json").exists():
            return {"the end"}
        return {p.name for p in (output / "training").glob("step_????????")}

    def outcome(output: Path) -> str | None:
        if not (output / "train.json").exists():  # which is written last
            return None
        losses = (output / "losses.jsonl").read_bytes()
        weights = [_leaves(output / name) for name in ("checkpoint", "best")]
        return hashlib.sha256(losses + b"".join(weights)).hexdigest()

    def kept(before: set[str], now: set[str], said: list[str]) -> bool:
        return max(now) >= max(before)

    return Cell(f"train {processes}", processes, command, told, outcome, kept)


def sweep_cell() -> Cell:
    """Return sweeps of eight steps."""
    config = together.ROOT / "configs" / "scaling_curves" / "smoke.py"

    def command(output: Path) -> list[str]:
        return [*_command("sweep", config, _SWEEP), "--workdir", str(output)]

    def told(output: Path) -> set[str]:
        done = output.glob("steps/*/*/output.json")
        return {f"{p.parent.name} {p.stat().st_mtime_ns}" for p in done}

    def outcome(output: Path) -> str | None:
        path = output / "results.jsonl"
        if not path.exists():
            return None
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.pop("wall_seconds")
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def kept(before: set[str], now: set[str], said: list[str]) -> bool:
        return before <= now

    return Cell("sweep", 1, command, told, outcome, kept)


def family(folder: Path) -> Path:
    """Make a base and three experts of small leaves, whose votes often cancel."""
    if folder.exists():
        return folder
    sys.path.insert(0, str(together.ROOT / "tests" / "merge"))
    import models

    models.family(folder.with_suffix(".new"), 3)
    folder.with_suffix(".new").rename(folder)
    return folder


def digest(output: Path) -> str | None:
    """Return one hash of all files of a checkpoint, whatever Orbax dates aside."""
    if not output.exists():
        return None
    found = hashlib.sha256()
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        if not path.name.startswith("_"):
            found.update(f"{path.relative_to(output)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _leaves(folder: Path) -> bytes:
    import numpy as np

    from merging import checkpoints
    from merging.runtime import tree

    leaves = tree.flatten(checkpoints.restore(folder))
    return b"".join(np.asarray(leaf).tobytes() for leaf in leaves.values())


def _command(job: str, config: Path | str, settings: dict[str, Any]) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "merging", job, "--config", str(config), *flags]


def read(journal: Path) -> list[dict[str, Any]]:
    """Return the kills so far."""
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text().splitlines()]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each cell: kills, and what did not hold."""
    cells = collections.defaultdict(list)
    for row in rows:
        cells[row["cell"]].append(row)
    return [
        {
            "job": name,
            "kills": len(of),
            "while running": sum(row["running"] for row in of),
            "parts finished before": sum(row["told"] for row in of),
            "other outcome": sum(not row["same"] for row in of),
            "half visible": sum(row["half_visible"] for row in of),
            "redone": sum(row["redone"] for row in of),
        }
        for name, of in sorted(cells.items())
    ]


def fresh(folder: Path, name: str) -> Path:
    """Return the path of an output that isn't there, nor its unfinished form."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder / name


if __name__ == "__main__":
    sys.exit(main())
