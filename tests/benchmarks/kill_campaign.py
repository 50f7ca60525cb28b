"""A thousand SIGKILLs, at random moments of merges, trainings and sweeps.

  python tests/benchmarks/kill_campaign.py --workdir kills
  python tests/benchmarks/kill_campaign.py --workdir kills --kills 60 --only "ties [24]"

Whole commands of small jobs. One of a job's processes is killed, the others soon after,
as a scheduler does; the same command goes on, is killed again (at most `TIMES` in a
row), and then left alone. It must end with the bytes (or rows) of an undisturbed job;
no output may be there before it is whole; and what was finished is not done again: of a
merge no block that any process's journal had, of a training no step that was saved.
Every kill is a line of DIR/kills.jsonl: a campaign that is stopped goes on.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import together
from kill_cells import (
    Cell,
    family,
    fresh,
    hold_journal,
    merge_cell,
    sweep_cell,
    train_cell,
)
from merge_speed import table

METHODS = ("ties", "dare_ties", "rht", "model_stock", "iso_c")
PROCESSES, FORMATS = (1, 2, 4), ("safetensors", "orbax")
# The share of a thousand kills that trainings and sweeps get; merges get the rest.
_TRAIN, _SWEEP = 0.1, 0.06
TIMES = 4
LIMIT = 600  # seconds of one job


def main() -> int:
    """Kill, compare, print a table; return 0 if all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (2)")
    parser.add_argument("--only", default="", help="jobs whose names match this")
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    options.workdir.mkdir(parents=True, exist_ok=True)
    todo = [(c, n) for c, n in shares(options) if re.search(options.only, c.name)]
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
        (train_cell(1), round(total * _TRAIN / 2)),
        (train_cell(2), round(total * _TRAIN / 2)),
        (sweep_cell(), round(total * _SWEEP)),
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
    told: Counter[str] = Counter()
    for _ in range(moments.randint(1, TIMES)):
        hold_journal(output)
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
        hold_journal(output)
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


def read(journal: Path) -> list[dict[str, Any]]:
    """Return the kills so far."""
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text().splitlines()]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each cell: kills, and what did not hold."""
    cells = defaultdict(list)
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


if __name__ == "__main__":
    sys.exit(main())
