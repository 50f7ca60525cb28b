"""What is run against what: this package, mergekit, and the least a merge can do."""

import mmap
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import read_write_floor
from inputs import Models
from measuring import Command

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs" / "merge"
PACKAGES = ("torch==2.13.0", "mergekit==0.1.5")  # in this order


class Contest(NamedTuple):
    """One method on both sides.

    Attributes:
      settings: of ours, where they differ from the config's.
      peer: the name of mergekit's method; None if it has none like it.
      numbers: of each expert, in mergekit's file; the weight of "mean" is 1/K.
      shared: of all experts, in mergekit's file.
      target: how many times faster than mergekit ours should be.
      base: whether the base is read.
    """

    settings: dict[str, float]
    peer: str | None
    numbers: dict[str, float | str] = {}
    shared: dict[str, float | bool] = {}
    target: float | None = None
    base: bool = True


# mergekit's DARE-TIES adds up the experts that agree where ours takes their mean: the
# weights differ, the work does not. Its TIES trims each tensor, ours the whole model.
CONTESTS = {
    "average": Contest({}, "linear", {"weight": "mean"}, target=4, base=False),
    "task_arithmetic": Contest(
        {"scale": 0.4}, "task_arithmetic", {"weight": 0.4}, target=5
    ),
    "ties": Contest(
        {"density": 0.2, "scale": 1.0},
        "ties",
        {"weight": 1.0, "density": 0.2},
        {"normalize": True, "lambda": 1.0},
        target=20,
    ),
    "dare_ties": Contest(
        {"density": 0.2, "scale": 1.0},
        "dare_ties",
        {"weight": 0.4, "density": 0.2},
        target=10,
    ),
    "rht": Contest({}, None),
}


def ours(
    program: str, method: str, models: Models, output: Path, budget: str
) -> Command:
    """Return the command that merges with this package.

    Args:
      program: how to start it, such as ``python -m merging``.
      method: one of `CONTESTS`.
      models: to be merged.
      output: folder to make.
      budget: its memory budget, such as ``1GB``.
    """
    contest = CONTESTS[method]
    words = {
        "experts": ",".join(map(str, models.experts)),
        "output": output,
        "memory_budget": budget,
        **{f"method.{key}": value for key, value in contest.settings.items()},
    }
    if contest.base:
        words["base"] = models.base
    arguments = [*shlex.split(program), "merge", "--config", CONFIGS / f"{method}.py"]
    overrides = [f"--config.{key}={value}" for key, value in words.items()]
    return Command([*map(str, arguments), *overrides])


def mergekit(folder: Path, method: str, models: Models, output: Path) -> Command:
    """Return the command that merges with mergekit; writes its YAML beside `output`."""
    config = output.with_name(f"{output.name}.yml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(_mergekit_config(CONTESTS[method], models))
    return mergekit_yaml(folder, config, output)


def mergekit_yaml(folder: Path, config: Path, output: Path) -> Command:
    """Return the command that merges a YAML file with mergekit."""
    program = str(folder / "bin" / "mergekit-yaml")
    options = "--no-copy-tokenizer --no-write-model-card --random-seed 0 --quiet"
    return Command(
        [program, str(config), str(output), *options.split()],
        {"HF_HUB_OFFLINE": "1"},
    )


def floor(method: str, models: Models, output: Path, *, sync: bool = False) -> Command:
    """Return the command that reads the same files and writes one as long."""
    output.mkdir(parents=True, exist_ok=True)
    return Command(
        [
            *(sys.executable, "-I", "-S", str(HERE / "read_write_floor.py")),
            *(["--sync"] if sync else []),
            str(output / "model.safetensors"),
            *map(str, files(method, models)),
        ]
    )


def bare(method: str, read: Sequence[Path], output: Path) -> Command:
    """Return the command that merges files with nothing around the merge."""
    output.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name("programs")
    program = [sys.executable, str(HERE / "bare_merge.py"), method, str(scratch)]
    return Command([*program, str(output / "model.safetensors"), *map(str, read)])


def files(method: str, models: Models) -> list[Path]:
    """Return the files of weights that a method reads."""
    base = [models.base] if CONTESTS[method].base else []
    return [path / "model.safetensors" for path in (*base, *models.experts)]


def warm(method: str, models: Models) -> None:
    """Bring the inputs into the page cache, and earlier output out of the way."""
    os.sync()
    with mmap.mmap(-1, read_write_floor.PIECE) as buffer:
        for path in files(method, models):
            read_write_floor.read(path, buffer)


def mergekit_environment(folder: Path) -> Path:
    """Return a virtual environment with mergekit, made now if it is not there.

    It is one of its own because mergekit's requirements are not ours. Costs a few GB
    of disk and a few minutes.
    """
    if not (folder / "bin" / "mergekit-yaml").exists():
        print(f"making {folder} with {' and '.join(PACKAGES)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        for package in PACKAGES:
            subprocess.run([*pip, package], check=True)
    return folder


def versions(folder: Path) -> str:
    """Return what is installed in an environment, of what matters here."""
    program = (
        "from importlib.metadata import version as v\n"
        "print(*(f'{n} {v(n)}' for n in ('mergekit', 'torch', 'transformers')),"
        " sep=', ')"
    )
    python = str(folder / "bin" / "python")
    ran = subprocess.run([python, "-c", program], capture_output=True, text=True)
    return ran.stdout.strip()


def _mergekit_config(contest: Contest, models: Models) -> str:
    lines = [f"merge_method: {contest.peer}"]
    if contest.base:
        lines += [f"base_model: {models.base}"]
    lines += ["models:"]
    for path in models.experts:
        lines += [f"  - model: {path}", "    parameters:"]
        for key, value in contest.numbers.items():
            number = 1 / len(models.experts) if value == "mean" else value
            lines += [f"      {key}: {number}"]
    if contest.shared:
        lines += ["parameters:"]
        lines += [f"  {k}: {str(v).lower()}" for k, v in contest.shared.items()]
    return "\n".join([*lines, "dtype: bfloat16", ""])
