"""The modes of `merge_speed.py` that hold a merge to its promises, not to a clock."""

import argparse
import hashlib
import random
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import contenders
import inputs
import measuring
from measuring import Command, Usage

GB = 1e9
ALLOWANCE = 0.4e9  # of memory, for Python and JAX, over the budget
SLACK = 0.02  # of the bytes read, over a process's share
_FINISHED = re.compile(r"(\d+) of (\d+) blocks were finished before")
_PLANNED = re.compile(r"^(\d+) blocks under", re.MULTILINE)


class Failed(Exception):
    """A program that was measured did not do its work."""


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the peak memory of each method, for each size and number of experts."""
    from merging.runtime.storage import parse_size  # loads JAX: other modes need not

    allowed = parse_size(options.memory_budget) + ALLOWANCE
    rows = []
    for size, count in options.cases:
        shape = shape_of(options, size)
        models = inputs.make(options.workdir, shape, count)
        for method in options.methods:
            usage, _ = _merge(options, method, models)
            rows.append(
                {
                    "method": method,
                    "size": size,
                    "model_gb": round(2 * shape.parameters / GB, 2),
                    "experts": count,
                    "budget": options.memory_budget,
                    "anonymous_gb": round(usage.anonymous / GB, 3),
                    "max_rss_gb": round(usage.resident / GB, 3),
                    "wall_s": round(usage.wall, 1),
                    "read_gb": round(usage.read / GB, 3),
                    "from_disk_gb": round(usage.from_disk / GB, 3),
                    "load": round(usage.load, 1),
                    "holds": usage.anonymous <= allowed,
                }
            )
            print(rows[-1], flush=True)
    return rows


def processes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what each process read, for every number of processes.

    What a process reads before the first weight (its modules, the headers) is measured
    by a dry run and taken off. `holds`: its share of what one process alone reads is
    1/P, and the output is the same.
    """
    models = inputs.make(
        options.workdir, shape_of(options, options.size), options.experts
    )
    rows = []
    for method in options.methods:
        weights = sum(f.stat().st_size for f in contenders.files(method, models))
        idle = dry_run(options, method, models).read
        alone: tuple[int, dict[str, str]] | None = None
        for count in options.processes:
            output = fresh(options.workdir / "out" / "merged")
            command = _ours(options, method, models, output)
            usages = measuring.measure(
                [Command(command.arguments, told) for told in together(count)],
                options.workdir / "logs",
            )
            for usage in usages:
                require(command, usage, output)
            found = digests(output)
            shutil.rmtree(output)
            read = [usage.read - idle for usage in usages]
            alone = alone or (sum(read), found)
            most = max(read) / alone[0]
            rows.append(
                {
                    "method": method,
                    "processes": count,
                    "read_mb": [round(x / 1e6, 2) for x in read],
                    "before_mb": round(idle / 1e6, 2),
                    "passes": [round(x / weights, 3) for x in read],
                    "largest_share": round(most, 4),
                    "wall_s": round(max(usage.wall for usage in usages), 1),
                    "anonymous_gb": [round(u.anonymous / GB, 3) for u in usages],
                    "same_bytes": found == alone[1],
                    "holds": found == alone[1] and most <= 1 / count + SLACK,
                }
            )
            print(rows[-1], flush=True)
    return rows


def kills(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Kill merges at random moments, let them finish, and compare every byte."""
    models = inputs.make(
        options.workdir, shape_of(options, options.size), options.experts
    )
    moments = random.Random(options.seed)
    rows = []
    for method in options.methods:
        whole, expected = _merge(options, method, models)
        planned = _PLANNED.search(dry_run(options, method, models).output)
        for number in range(options.kills):
            moment = moments.uniform(0, whole.wall)
            row = {"method": method, "kill": number + 1}
            row |= _kill_once(options, method, models, moment)
            row["blocks"] = int(planned[1]) if planned else None
            row["same_bytes"] = row.pop("digests") == expected
            row["holds"] = row["same_bytes"]
            rows.append(row)
            print(row, flush=True)
    before = [row for row in rows if row["stage"] != "after the end"]
    print(
        f"{len(rows)} kills, {len(before)} of them before the end; blocks not done "
        f"again: {sum(row['kept'] or 0 for row in rows)} of "
        f"{sum(row['journalled'] or 0 for row in rows)} finished before a kill; "
        f"outputs that differ: {sum(not row['same_bytes'] for row in rows)}."
    )
    return rows


def _kill_once(
    options: argparse.Namespace, method: str, models: inputs.Models, moment: float
) -> dict[str, Any]:
    output = fresh(options.workdir / "out" / "merged")
    command = _ours(options, method, models, output)
    logs = options.workdir / "logs"
    (usage,) = measuring.measure([command], logs, limit=moment)
    if usage.status != -9:
        require(command, usage, output)
    begun = output.with_name(output.name + ".partial")
    row: dict[str, Any] = {"at_s": round(moment, 2), "journalled": _journalled(begun)}
    row["kept"] = row["rerun_s"] = None
    if output.exists():
        row["stage"] = "after the end"
    else:
        row["stage"] = "in the merge" if begun.exists() else "before the merge"
        (usage,) = measuring.measure([command], logs)
        require(command, usage, output)
        row["rerun_s"] = round(usage.wall, 2)
        if finished := _FINISHED.search(usage.output):
            row["kept"] = int(finished[1])
    row["digests"] = digests(output)
    shutil.rmtree(output)
    return row


def _journalled(begun: Path) -> int | None:
    """Return how many blocks an unfinished output's journal says are finished."""
    journal = begun / ".merge"
    if not journal.exists():
        return None
    return sum(p.read_bytes().count(b"\n") for p in journal.glob("blocks.*.jsonl"))


def _merge(
    options: argparse.Namespace, method: str, models: inputs.Models
) -> tuple[Usage, dict[str, str]]:
    """Merge with ours and return the cost and the output's digests."""
    output = fresh(options.workdir / "out" / "merged")
    command = _ours(options, method, models, output)
    contenders.warm(method, models)
    (usage,) = measuring.measure([command], options.workdir / "logs")
    require(command, usage, output)
    found = digests(output)
    shutil.rmtree(output)
    return usage, found


def dry_run(options: argparse.Namespace, method: str, models: inputs.Models) -> Usage:
    """Return what a merge takes before it reads the first weight."""
    output = fresh(options.workdir / "out" / "merged")
    command = _ours(options, method, models, output)
    command = Command([*command.arguments, "--dry_run"])
    (usage,) = measuring.measure([command], options.workdir / "logs")
    if usage.status:
        raise Failed(_report(command, usage))
    return usage


def _ours(
    options: argparse.Namespace, method: str, models: inputs.Models, output: Path
) -> Command:
    return contenders.ours(
        options.merging, method, models, output, options.memory_budget
    )


def together(count: int) -> list[dict[str, str]]:
    """Return the environments that make `count` processes one program."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    if count == 1:
        return [{}]
    shared = {"MERGING_COORDINATOR": address, "MERGING_PROCESSES": str(count)}
    return [shared | {"MERGING_PROCESS": str(i)} for i in range(count)]


def shape_of(options: argparse.Namespace, size: str) -> inputs.Shape:
    """Return the size's shape, with what the options say otherwise."""
    told = {f: getattr(options, f) for f in inputs.Shape._fields}
    return inputs.SIZES[size]._replace(**{k: v for k, v in told.items() if v})


def fresh(output: Path) -> Path:
    """Return the output's path, with nothing there and nothing unfinished."""
    for path in (output, output.with_name(output.name + ".partial")):
        shutil.rmtree(path, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def require(command: Command, usage: Usage, output: Path) -> None:
    """Refuse to count a run that failed, or wrote nothing.

    Raises:
      Failed: with the command and the end of what it printed.
    """
    if usage.status or not list(output.glob("*.safetensors")):
        raise Failed(_report(command, usage))


def digests(output: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder."""
    found = {}
    for path in sorted(output.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(output))] = digest
    return found


def _report(command: Command, usage: Usage) -> str:
    text = " ".join(command.arguments)
    return f"status {usage.status} of\n  {text}\n{usage.output[-3000:]}"
