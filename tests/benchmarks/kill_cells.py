"""The jobs that `kill_campaign.py` kills: merges, trainings and sweeps, small ones."""

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import together

TRAIN = {
    "size": "1x",
    "data.documents": 300,
    "data.validation_examples": 8,
    "hyperparameters.steps": 40,
    "hyperparameters.warmup_steps": 5,
    "hyperparameters.log_every": 5,
    "hyperparameters.validate_every": 20,
    "hyperparameters.checkpoint_every": 5,
}
SWEEP = {
    "bases": "pt",
    "methods": "average,ties",
    "experts_merged": "2",
    "pretraining.steps": 20,
    "expert.steps": 10,
    "multitask.steps": 20,
    "multitask.validate_every": 10,
    "workers": 2,
}
_BLOCKS = "blocks.*.jsonl"  # of a merge's journal


class Cell(NamedTuple):
    """One kind of job.

    Attributes:
      name: what it is.
      processes: how many of them.
      command: makes it, given its output.
      told: {part: how often it was finished}, of what its journal speaks of, given its
        output; of trainings and sweeps once.
      outcome: of a finished output, everything that must come out the same; None if
        it is not there.
      kept: whether the parts that were told of before are still finished, given those
        told of now and what the processes printed.
    """

    name: str
    processes: int
    command: Callable[[Path], list[str]]
    told: Callable[[Path], Counter[str]]
    outcome: Callable[[Path], str | None]
    kept: Callable[[Counter[str], Counter[str], list[str]], bool]


def merge_cell(models: Path, method: str, processes: int, format: str) -> Cell:
    """Return merges of three small experts, in many blocks."""
    config = f"merge/method:{method}"
    experts = ",".join(str(models / f"e{i}") for i in range(3))

    def command(output: Path) -> list[str]:
        settings = {"base": models / "base", "experts": experts, "format": format}
        budget = "300kB" if format == "safetensors" else "4MB"
        settings |= {"output": output, "memory_budget": budget}
        return command_of("merge", config, settings)

    def told(output: Path) -> Counter[str]:
        found: Counter[str] = Counter()
        for path in (_journal(output) or _held(output)).glob(_BLOCKS):
            with contextlib.suppress(FileNotFoundError):  # published at this moment
                lines = path.read_text().split("\n")
                found.update(x.split(",")[0] for x in lines if x[-1:] == "}")
        return found

    def kept(before: Counter[str], now: Counter[str], said: list[str]) -> bool:
        text = "\n".join(said)
        # One that was killed again may not have come to say so.
        went_on = "blocks were finished before" in text or "Merged:" not in text
        return went_on and all(now[block] == before[block] for block in before)

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
        return [*command_of("train", config, TRAIN), "--workdir", str(output)]

    def told(output: Path) -> Counter[str]:
        if (output / "train.json").exists():
            return Counter([_step(TRAIN["hyperparameters.steps"])])
        return Counter(p.name for p in (output / "training").glob("step_????????"))

    def outcome(output: Path) -> str | None:
        if not (output / "train.json").exists():  # which is written last
            return None
        losses = (output / "losses.jsonl").read_bytes()
        weights = [_leaves(output / name) for name in ("checkpoint", "best")]
        return hashlib.sha256(losses + b"".join(weights)).hexdigest()

    def kept(before: Counter[str], now: Counter[str], said: list[str]) -> bool:
        # It tells of every five steps when they are taken, as shares of all.
        shares = re.findall(r"^train \S+ +(\d+)%", "\n".join(said), re.MULTILINE)
        each, steps = (TRAIN[f"hyperparameters.{n}"] for n in ("log_every", "steps"))
        taken = [round(int(x) / 100 * steps / each) * each for x in shares]
        new = all(_step(step) > max(before) for step in taken if step)
        return new and max(now) >= max(before)

    return Cell(f"train {processes}", processes, command, told, outcome, kept)


def sweep_cell() -> Cell:
    """Return sweeps of eight steps."""
    config = together.ROOT / "configs" / "scaling_curves" / "smoke.py"

    def command(output: Path) -> list[str]:
        return [*command_of("sweep", config, SWEEP), "--workdir", str(output)]

    def told(output: Path) -> Counter[str]:
        done = output.glob("steps/*/*/output.json")
        return Counter(f"{p.parent.name} {p.stat().st_mtime_ns}" for p in done)

    def outcome(output: Path) -> str | None:
        path = output / "results.jsonl"
        if not path.exists():
            return None
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.pop("wall_seconds")
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def kept(before: Counter[str], now: Counter[str], said: list[str]) -> bool:
        return before <= now

    return Cell("sweep", 1, command, told, outcome, kept)


def _step(number: int) -> str:
    """Return the name of a training's saved step."""
    return f"step_{number:08d}"


def hold_journal(output: Path) -> None:
    """Give a stopped merge's lists of blocks another name each: they go with the first.

    Whoever does a block of these again adds a line to the same file.
    """
    journal, held = _journal(output), _held(output)
    for path in journal.glob(_BLOCKS) if journal else ():
        held.mkdir(exist_ok=True)
        (held / path.name).unlink(missing_ok=True)
        (held / path.name).hardlink_to(path)


def _journal(output: Path) -> Path | None:
    found = output.with_name(output.name + ".partial") / ".merge"
    return found if found.exists() else None


def _held(output: Path) -> Path:
    return output.with_name(output.name + ".held")


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


def command_of(job: str, config: Path | str, settings: dict[str, Any]) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "merging", job, "--config", str(config), *flags]


def fresh(folder: Path, name: str) -> Path:
    """Return the path of an output that isn't there, nor its unfinished form."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder / name
