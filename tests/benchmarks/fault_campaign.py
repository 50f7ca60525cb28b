"""Power cuts, failing disks, inputs that change, two writers: what a merge makes of it.

  python tests/benchmarks/fault_campaign.py --workdir faults
  python tests/benchmarks/fault_campaign.py --workdir faults --only power --trials 50

Whole commands of small merges, with a library before libc (faults.c, built by cc) that
counts writes and flushes of the output. A trial picks one of them at random:

power   the process is killed there, and of what was written and not flushed since, a
        random half of the pages is zeroed. What is published must be whole; otherwise
        the same command goes on to the same bytes, or refuses.
error   that call fails with EIO or ENOSPC; a flush that failed has lost what it was to
        store. One line that says so, no output, and the same command goes on.
inputs  a file of an expert is cut short, written over, or replaced, while it is read.
        Refused; or, where it was read already, the bytes of before.
twice   the same command is started twice, or by two processes and by one.
bits    a bit of any file of a finished output is turned, but the manifest's: `merging
        verify` must see it. Every other trial picks a file, the others a byte of all.

Not simulated: file names that a power cut takes back.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kill_campaign import METHODS, read
from kill_cells import Cell, family, fresh, merge_cell
from merge_speed import table

sys.path.insert(0, str(Path(__file__).parents[1]))
import together

MODES = ("power", "error", "inputs", "twice", "bits")
PAGE = 4096


def main() -> int:
    """Run the trials, print a table; return 0 if all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=100, help="of each mode (100)")
    parser.add_argument("--seed", type=int, default=0, help="of what is picked (0)")
    parser.add_argument("--only", choices=MODES, help="one mode")
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    options.workdir.mkdir(parents=True, exist_ok=True)
    library = options.workdir / "faults.so"
    source = str(Path(__file__).with_name("faults.c"))
    build = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
    subprocess.run(build, check=True)
    trials = Trials(options, library)
    for mode in [options.only] if options.only else MODES:
        trials.run(mode)
    rows = list(read(options.workdir / "faults.jsonl"))
    print(table(summary(rows)))
    return 0 if all(row["holds"] for row in rows) else 1


class Trials:
    """The trials of one campaign, over methods and formats in turn."""

    def __init__(self, options: argparse.Namespace, library: Path):
        self._options, self._library = options, library
        self._work, self._models = options.workdir, family(options.workdir / "models")
        self._undisturbed: dict[str, tuple[str, int]] = {}
        self._cells = [
            merge_cell(self._models, method, 1, format)
            for method in METHODS
            for format in ("safetensors", "orbax")
        ]

    def run(self, mode: str) -> None:
        """Make a mode's trials, less those that an earlier campaign made."""
        journal = self._work / "faults.jsonl"
        made = sum(row["mode"] == mode for row in read(journal))
        for number in range(made, self._options.trials):
            chance = random.Random(f"{self._options.seed} {mode} {number}")
            cell = self._cells[number % len(self._cells)]
            row = getattr(self, mode)(cell, chance)
            row = {"mode": mode, "trial": number, "job": cell.name, **row}
            with open(journal, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)

    def power(self, cell: Cell, chance: random.Random) -> dict[str, Any]:
        """Kill at a call, and lose half of what was not flushed."""
        expected, calls = self._known(cell)
        output, at = fresh(self._work, "out"), chance.randint(1, calls)
        self._merge(cell, output, at, "kill")
        lost = self._lose(output, chance)
        row = {"call": at, "of": calls, "pages_lost": lost}
        if (found := cell.outcome(output)) is not None:
            return row | {"ended": "published", "holds": found == expected}
        return row | self._again(cell, output, expected)

    def error(self, cell: Cell, chance: random.Random) -> dict[str, Any]:
        """Let a call fail."""
        expected, calls = self._known(cell)
        output, at = fresh(self._work, "out"), chance.randint(1, calls)
        kind = chance.choice(["eio", "enospc"])
        ran = self._merge(cell, output, at, kind)
        self._lose(output, chance, failed=True)
        row = {"call": at, "of": calls, "kind": kind, "status": ran.returncode}
        if ran.returncode == 0:
            same = cell.outcome(output) == expected
            return row | {"ended": "it did without", "holds": same}
        said = ran.stderr.strip().splitlines()[-1]
        clear = "Traceback" not in ran.stderr and not output.exists()
        again = self._again(cell, output, expected)
        return row | again | {"said": said, "holds": clear and again["holds"]}

    def inputs(self, cell: Cell, chance: random.Random) -> dict[str, Any]:
        """Change a file of an expert when the first blocks are merged."""
        expected, _ = self._known(cell)
        models = self._work / "changing"
        shutil.rmtree(models, ignore_errors=True)
        shutil.copytree(self._models, models)
        _, method, _, format = cell.name.split()
        cell = merge_cell(models, method, 1, format)
        output, change = fresh(self._work, "out"), chance.choice(sorted(_CHANGES))
        process = self._start(cell, output)
        while process.poll() is None and not cell.told(output):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.3))
        _CHANGES[change](models / f"e{chance.randrange(3)}" / "model.safetensors")
        said = process.communicate(timeout=300)[1]
        row = {"change": change, "status": process.returncode}
        if process.returncode == 0:
            found = _weights(output)
            same = found == _weights(self._work / cell.name / "undisturbed")
            return row | {"ended": "the bytes of before", "holds": same}
        clear = "Traceback" not in said and not output.exists()
        last = said.strip().splitlines()[-1]
        return row | {"ended": "refused", "said": last, "holds": clear}

    def twice(self, cell: Cell, chance: random.Random) -> dict[str, Any]:
        """Start the same command twice, a moment apart."""
        expected, _ = self._known(cell)
        output = fresh(self._work, "out")
        first = self._start(cell, output)
        time.sleep(chance.choice([0, 0, 0.5, 2]) + chance.uniform(0, 1))
        second = self._start(cell, output)
        said = [p.communicate(timeout=300)[1] for p in (first, second)]
        statuses = [first.returncode, second.returncode]
        clear = not any("Traceback" in text for text in said)
        same = cell.outcome(output) == expected
        holds = clear and same and 0 in statuses and set(statuses) <= {0, 2}
        return {"statuses": statuses, "ended": "one output", "holds": holds}

    def bits(self, cell: Cell, chance: random.Random) -> dict[str, Any]:
        """Turn a bit of a file."""
        from merging.merge.manifest import verify

        self._known(cell)
        output = fresh(self._work, "out")
        shutil.copytree(self._work / cell.name / "undisturbed", output)
        files = sorted(p for p in output.rglob("*") if p.is_file())
        files = [p for p in files if p.stat().st_size and p.name != "manifest.json"]
        sizes = [p.stat().st_size for p in files]
        (path,) = chance.choices(files, chance.choice([sizes, None]))
        at, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
        with open(path, "r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
        try:
            seen = bool(verify(str(output)))
        except ValueError:
            seen = True
        row = {"file": path.name, "at": at, "bit": bit}
        return row | {"ended": "seen" if seen else "not seen", "holds": seen}

    def _known(self, cell: Cell) -> tuple[str, int]:
        """Return the outcome of an undisturbed merge, and its counted calls."""
        if cell.name not in self._undisturbed:
            (self._work / cell.name).mkdir(exist_ok=True)
            output = fresh(self._work / cell.name, "undisturbed")
            ran = self._merge(cell, output)
            if ran.returncode:
                raise RuntimeError(ran.stderr)
            calls = sum(1 for _ in self._log())
            outcome = cell.outcome(output)
            self._undisturbed[cell.name] = str(outcome), calls
        return self._undisturbed[cell.name]

    def _again(self, cell: Cell, output: Path, expected: str) -> dict[str, Any]:
        ran = self._merge(cell, output)
        if ran.returncode == 0:
            same = cell.outcome(output) == expected
            return {"ended": "went on", "holds": same}
        refused = ran.returncode == 2 and "Traceback" not in ran.stderr
        last = ran.stderr.strip().splitlines()[-1]
        return {"ended": "refused", "said": last, "holds": refused}

    def _merge(
        self, cell: Cell, output: Path, at: int = 0, kind: str = ""
    ) -> subprocess.CompletedProcess:
        log = self._work / "calls.log"
        log.unlink(missing_ok=True)
        told = {"FAULT_ROOT": f"{output}.partial", "FAULT_LOG": str(log)}
        told |= {"FAULT_AT": str(at), "FAULT_KIND": kind} if kind else {}
        told |= {"LD_PRELOAD": str(self._library), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            cell.command(output),
            env=together.environment(1, **told),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def _start(self, cell: Cell, output: Path) -> subprocess.Popen:
        return subprocess.Popen(
            cell.command(output),
            env=together.environment(1, JAX_PLATFORMS="cpu"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _log(self) -> Iterator[list[str]]:
        log = self._work / "calls.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return (line.split() for line in lines)

    def _lose(self, output: Path, chance: random.Random, failed: bool = False) -> int:
        """Zero pages of what was not flushed; return how many.

        Args:
          output: whose files, finished or not.
          chance: picks half of the pages.
          failed: lose all that a failed flush was to store, and nothing else.
        """
        waiting: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        gone: dict[int, list[tuple[int, int]]] = {}
        for what, inode, *rest in self._log():
            if what == "w":
                start, size = map(int, rest)
                waiting[int(inode)].append((start, start + size))
            else:
                done = waiting.pop(int(inode), [])
                if what == "f":
                    gone[int(inode)] = done
        lost = 0
        paths = {p.stat().st_ino: p for p in _files(output)}
        for inode, ranges in (gone if failed else waiting).items():
            if inode not in paths:
                continue
            touched = {n for a, b in ranges for n in range(a // PAGE, -(-b // PAGE))}
            chosen = {n for n in touched if failed or chance.random() < 0.5}
            lost += len(chosen)
            _zero(paths[inode], ranges, chosen)
        return lost


def _zero(path: Path, ranges: list[tuple[int, int]], pages: set[int]) -> None:
    """Zero what ranges have of pages."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        for start, stop in ranges:
            for page in range(start // PAGE, -(-stop // PAGE)):
                a, b = max(start, page * PAGE), min(stop, page * PAGE + PAGE, size)
                if page in pages and a < b:
                    file.seek(a)
                    file.write(bytes(b - a))


def _files(output: Path) -> Iterator[Path]:
    for folder in (output, output.with_name(output.name + ".partial")):
        yield from (p for p in folder.rglob("*") if p.is_file())


def _weights(output: Path) -> list[str]:
    """Return the digests of the leaves: a manifest also names the inputs."""
    leaves = json.loads((output / "manifest.json").read_text())["leaves"]
    return [leaf["sha256"] for leaf in leaves.values()]


def _cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _written_over(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"\x01\x3c" * (size // 8))


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 20_000] = b"\x01\x3c" * 10_000
    other.write_bytes(data)
    other.rename(path)


_CHANGES = {
    "cut short": _cut_short,
    "written over": _written_over,
    "replaced": _replaced,
}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each mode and end: how many, and how many did not hold."""
    ends = collections.defaultdict(list)
    for row in rows:
        ends[row["mode"], row["ended"]].append(row["holds"])
    return [
        {"mode": mode, "ended": ended, "trials": len(of), "failed": of.count(False)}
        for (mode, ended), of in ends.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
