"""Merges, trainings and sweeps in an object store that fails, killed between objects.

  python tests/benchmarks/store_campaign.py --workdir store
  python tests/benchmarks/store_campaign.py --workdir store --only merge --rounds 20

Whole commands of small jobs against an emulator of the storage's API. A share of its
answers are 429, 503, a connection reset before or after the work was done, or slow; and
a command is killed (SIGKILL) when the store was asked so many times, at random, at most
three times. Then the same command is left alone. It must end with the bytes (or rows)
that it has on a local disk; until then, nothing may be there that looks finished. Every
round is a line of DIR/rounds.jsonl.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "merge"))
import models
import object_store
import together
from kill_cells import SWEEP, TRAIN
from merge_speed import table

from merging.runtime import storage

ROOT = Path(__file__).parents[2]
KILLS, LIMIT = 3, 600  # of a round; seconds of a command
UNTOLD = ("wall_seconds", "git_revision")


class Job(NamedTuple):
    """A command, given where its work is kept, and what must come out the same.

    Attributes:
      name: what it is.
      command: its words.
      last: the file that says that it is finished.
      outcome: what must be the same, of a finished folder.
      requests: that it makes, roughly: a kill comes before as many.
    """

    name: str
    command: Callable[[str], list[str]]
    last: str
    outcome: Callable[[storage.Folder], str]
    requests: int


def main() -> int:
    """Run the rounds, print a table; return 0 if all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="of each job (5)")
    parser.add_argument("--chance", type=float, default=0.02, help="of a fault (0.02)")
    parser.add_argument("--seed", type=int, default=0, help="of what is picked (0)")
    parser.add_argument("--only", default="", help="jobs whose name holds this text")
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    with object_store.running() as store:
        store.random.seed(options.seed)
        for job in jobs(options.workdir):
            if options.only not in job.name:
                continue
            expected = undisturbed(job, options.workdir)
            for number in range(options.rounds):
                rows.append(one_round(job, number, store, expected, options))
                with (options.workdir / "rounds.jsonl").open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    print(table(summary(rows)))
    return 0 if all(row["holds"] for row in rows) else 1


def jobs(workdir: Path) -> list[Job]:
    """Return the kinds of jobs."""
    if not (workdir / "models").exists():
        models.family(workdir / "models")
    config = ROOT / "configs" / "scaling_curves" / "smoke.py"
    return [
        merge_job(workdir / "models", "safetensors", "700kB", 220),
        merge_job(workdir / "models", "orbax", "3MB", 110),
        Job(
            "train",
            lambda place: words("train", "train/pretrain", TRAIN, workdir=place),
            "train.json",
            lambda place: digest(place, "checkpoint/state", "losses.jsonl"),
            600,
        ),
        Job(
            "sweep",
            lambda place: words("sweep", str(config), SWEEP, workdir=place),
            "results.jsonl",
            rows_of,
            900,
        ),
    ]


def merge_job(folder: Path, format: str, budget: str, requests: int) -> Job:
    """Return a merge by TIES into a format."""
    experts = ",".join(str(folder / f"e{number}") for number in range(3))
    values = {
        "base": folder / "base",
        "experts": experts,
        "format": format,
        "shard_size": "200kB",
        "memory_budget": budget,
    }
    return Job(
        f"merge {format}",
        lambda place: words("merge", "merge/ties", values | {"output": place}),
        "manifest.json",
        digest,
        requests,
    )


def words(name: str, config: str, values: dict[str, Any], **options: str) -> list[str]:
    """Return a command's words."""
    found = [sys.executable, "-m", "merging", name, "--config", config]
    found += [f"--config.{key}={value}" for key, value in values.items()]
    return found + [word for k, v in options.items() for word in (f"--{k}", v)]


def undisturbed(job: Job, workdir: Path) -> str:
    """Return what comes out on a local disk."""
    place = workdir / "local" / job.name.replace(" ", "_")
    shutil.rmtree(place, ignore_errors=True)  # perhaps of another version
    place.parent.mkdir(exist_ok=True)
    run(job.command(str(place)), {}).wait(LIMIT)
    return job.outcome(place)


def one_round(
    job: Job,
    number: int,
    store: object_store.Store,
    expected: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Kill and go on, until it is left alone; return what happened."""
    place = f"gs://store/{job.name.replace(' ', '_')}/{options.seed}_{number}"
    draw = random.Random(f"{options.seed}/{job.name}/{number}")
    begin, before = time.monotonic(), store.met.total()
    kills = half = 0
    while kills < KILLS:
        after = len(store.asked) + draw.randrange(job.requests)
        store.chance = options.chance
        running = run(job.command(place), store.environment)
        while running.poll() is None and len(store.asked) < after:
            time.sleep(0.01)
        if running.poll() is not None:  # it was quicker
            break
        running.kill()
        running.wait()
        kills += 1
        store.chance = 0.0
        at = storage.place(place)
        if job.name != "sweep" and (at / job.last).exists():
            half += job.outcome(at) != expected
    store.chance = options.chance
    status = run(job.command(place), store.environment).wait(LIMIT)
    store.chance = 0.0
    same = status == 0 and job.outcome(storage.place(place)) == expected
    left = [
        n for n in store.names(place.removeprefix("gs://store/")) if ".partial" in n
    ]
    return {
        "job": job.name,
        "round": number,
        "kills": kills,
        "faults": store.met.total() - before,
        "status": status,
        "same": same,
        "left": len(left),
        "half finished": half,
        "holds": bool(same and not left and not half),
        "seconds": round(time.monotonic() - begin, 1),
    }


def run(command: list[str], extra: dict[str, str]) -> subprocess.Popen:
    """Start a command on one device."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=together.environment(1, **extra),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def digest(place: storage.Folder, *names: str) -> str:
    """Return a hash of all files, or of those whose names begin so."""
    if storage.is_remote(place):
        found = {str(p.relative_to(place)): p for p in place.find()}
    else:
        files = [path for path in place.rglob("*") if path.is_file()]
        found = {str(p.relative_to(place)): p for p in files}
    hashed = hashlib.sha256()
    for name in sorted(found):
        if not names:
            hashed.update(name.encode() + found[name].read_bytes())
    if names:  # Orbax names its files at random: what is in them counts
        from merging import checkpoints

        params = checkpoints.restore(str(place / "checkpoint"))
        for path, leaf in sorted(flat(params).items()):
            hashed.update(path.encode() + leaf)
        hashed.update(found["losses.jsonl"].read_bytes())
    return hashed.hexdigest()


def flat(params: Any) -> dict[str, bytes]:
    """Return {path: bytes} of parameters."""
    import numpy as np

    from merging.runtime import tree

    return {path: np.asarray(x).tobytes() for path, x in tree.flatten(params).items()}


def rows_of(place: storage.Folder) -> str:
    """Return a sweep's rows without what says when they were made."""
    lines = (place / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return json.dumps([{k: v for k, v in r.items() if k not in UNTOLD} for r in rows])


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each job."""
    lines = []
    for name in dict.fromkeys(row["job"] for row in rows):
        of = [row for row in rows if row["job"] == name]
        keys = ("kills", "faults", "half finished", "same", "holds")
        totals = {key: sum(row[key] for row in of) for key in keys}
        lines.append({"job": name, "rounds": len(of), **totals})
    return lines


if __name__ == "__main__":
    sys.exit(main())
