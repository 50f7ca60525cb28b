"""Matrix, mask and data-driven methods beside a direct version in PyTorch: seconds.

    python tests/benchmarks/matrix_speed.py --workdir bench --torch VENV/bin/python
    python tests/benchmarks/matrix_speed.py … --size 1x --methods fisher
    python tests/benchmarks/matrix_speed.py … --steps 10 --methods wudi
    python tests/benchmarks/matrix_speed.py … --size tiny     # a trial

Base and four experts of 2 of the 16 layers of method_speed's model and a smaller
vocabulary, 42M parameters in bfloat16: the work is a matrix's, and a model has more of
them or fewer. (1x is method_speed's model whole, 334M.) The other side is the methods
as one writes them down (matrix_torch.py), on all threads. Statistics are made up. Both
sides' outputs are held against each other. WUDI's time is its steps'.
Programs take turns after one run of ours that compiles and is not counted; medians.
Nothing else should run.
"""

import argparse
import json
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import contenders
import inputs
import jax
import measuring
import numpy as np
from inputs import Models, Shape
from jax.sharding import SingleDeviceSharding
from measuring import Command
from merge_speed import table

from merging import checkpoints
from merging.runtime import tree

SIZES = {**inputs.SIZES, "2 layers": Shape(1024, 2, 4096, 16, 4000)}
OF_VECTORS = ("iso_c", "iso_cts", "tsv_m", "wudi", "consensus_ta", "emr")
OF_MODELS = ("fisher", "regmean")
KINDS = {"fisher": "fisher", "regmean": "gram"}
_SIDES = ("ours", "torch")
_SIDE = Path(__file__).with_name("matrix_torch.py")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--torch", required=True, metavar="PYTHON")
    parser.add_argument("--methods", default=",".join((*OF_VECTORS, *OF_MODELS)))
    parser.add_argument("--size", choices=SIZES, default="2 layers")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of WUDI (300)")
    parser.add_argument("--program", default=f"{sys.executable} -m merging")
    chosen = parser.parse_args()
    folder = chosen.workdir.resolve()
    shape = SIZES[chosen.size]
    models = inputs.make(folder, shape, 4)
    print(json.dumps(measuring.machine()))
    rows = []
    for method in chosen.methods.split(","):
        told = []
        if method in OF_MODELS:
            told = [made_up(path, shape, KINDS[method]) for path in models.experts]
        steps = str(chosen.steps)
        commands = {
            "ours": ours(chosen.program, method, models, told, steps, folder / "ours"),
            "torch": theirs(
                chosen.torch, method, models, told, steps, folder / "torch"
            ),
        }
        if method == "fisher":
            read = [path / "model.safetensors" for path in models.experts]
            read += [path / "fisher" / "model.safetensors" for path in told]
            commands["bare"] = contenders.bare(method, read, folder / "bare")
        rows.append({"method": method} | contest(commands, folder, chosen.runs))
        print(table(rows), flush=True)
    return 0


def ours(
    program: str,
    method: str,
    models: Models,
    told: list[Path],
    steps: str,
    output: Path,
) -> Command:
    """Return our command."""
    names = [path.name for path in models.experts]
    words = {"experts": ",".join(map(str, models.experts)), "output": output}
    if told:
        pairs = zip(names, told, strict=True)
        words["statistics"] = ",".join(f"{name}={path}" for name, path in pairs)
    else:
        words["base"] = models.base
    if method == "wudi":
        words["method.steps"] = steps
    overrides = [f"--config.{key}={value}" for key, value in words.items()]
    config = f"merge/{method}" if told else f"merge/method:{method}"
    return Command([*shlex.split(program), "merge", "--config", config, *overrides])


def theirs(
    python: str,
    method: str,
    models: Models,
    told: list[Path],
    steps: str,
    output: Path,
) -> Command:
    """Return the command of the direct version."""
    output.mkdir(parents=True, exist_ok=True)
    base = "-" if told else str(models.base)
    words = [python, str(_SIDE), method, str(output / "model.safetensors"), base]
    words += map(str, models.experts)
    if told:
        words += ["--", *(str(path / KINDS[method]) for path in told)]
    return Command(words, {"WUDI_STEPS": steps})


def made_up(expert: Path, shape: Shape, kind: str) -> Path:
    """Return a folder of statistics of an expert, made now if it is not there."""
    folder = expert.with_name(f"{expert.name}_statistics")
    file = folder / kind / "model.safetensors"
    if file.exists():
        return folder
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([int(expert.name[-1]), len(kind)])
    header, parts, end = {}, [], 0
    for name, dims in inputs.tensors(shape):
        if kind == "fisher":
            values = random.uniform(0, 1, dims).astype(np.float32) ** 4
        elif "proj" in name:
            seen = random.normal(size=(2 * dims[1], dims[1])).astype(np.float32)
            values = seen.T @ seen / np.float32(len(seen))
        else:
            continue
        start, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": [*values.shape]}
        header[name]["data_offsets"] = [start, end]
        parts.append(values.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    return folder


def contest(commands: dict[str, Command], folder: Path, runs: int) -> dict[str, Any]:
    """Return the seconds of both, in turns, and how far apart they end."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory = dict.fromkeys(commands, 0.0)
    for turn in range(runs + 1):
        for name, command in commands.items():
            if turn == 0 and name == "torch":
                continue
            if name == "ours":
                shutil.rmtree(folder / name, ignore_errors=True)
            (used,) = measuring.measure([command], folder / "logs")
            if used.status:
                raise SystemExit(f"{name}: {used.output[-2000:]}")
            memory[name] = max(memory[name], used.anonymous / 1e9)
            if turn:
                seconds[name].append(used.wall)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    found = {f"{name}, s": f"{middle[name]:.1f}" for name in commands}
    found["times as fast"] = f"{middle['torch'] / middle['ours']:.2f}"
    found |= {f"{name}, GB": f"{memory[name]:.2f}" for name in commands}
    return found | {"apart": f"{apart(folder):.1e}"}


def apart(folder: Path) -> float:
    """Return the largest difference, as a share of its leaf's largest weight."""
    sources = [checkpoints.open_checkpoint(str(folder / name)) for name in _SIDES]
    here, found = SingleDeviceSharding(jax.devices()[0]), 0.0
    for name in tree.flatten(sources[0].abstract):
        one, other = (
            np.asarray(source.read([name], {name: here})[name], np.float32)
            for source in sources
        )
        found = max(found, float(np.abs(one - other).max() / np.abs(one).max()))
    return found


if __name__ == "__main__":
    sys.exit(main())
