"""Every method in every way that a merge can be made: are the bytes the same?

  python tests/benchmarks/method_matrix.py --workdir matrix
  python tests/benchmarks/method_matrix.py --workdir matrix --only ties

Of one base and up to three experts (10M parameters, or 0.9M for methods that see whole
matrices, in bfloat16): in memory on one device
and sharded over eight, streamed by a whole command under a budget, by two processes,
and killed (SIGKILL to a command that has finished some blocks, at a random moment) and
gone on with. Leaves are compared by SHA-256. The streamed merge's peak of anonymous
memory must not be above budget + 0.4 GB, and for a method of matrices four float32
copies of a matrix of each model. Numbers are those of the battery of laws
(tests/methods/cases.py). Every method is a line of DIR/rows.jsonl: what is stopped goes
on. 40 methods take half an hour of processor time.
Of models so small, a merge that held them whole would pass: `method_memory.py` measures
larger ones.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
import cases
import inputs
import jax
import measuring
import merge_trials
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from measuring import Command
from merge_speed import table
from statistics_of import statistics_of

import merging
from merging import checkpoints, methods
from merging.merge.costs import cost
from merging.merge.rules import Spec
from merging.runtime import sharding, storage, tree


class Size(NamedTuple):
    """What is merged, and under which budget.

    Attributes:
      elements: models of methods that see elements, rows or leaves.
      matrices: of those that decompose matrices.
      budget: of the former's merges.
      matrix_budget: of the latter's.
    """

    elements: inputs.Shape
    matrices: inputs.Shape
    budget: str
    matrix_budget: str


# Of matrices that are decomposed, in memory by each of the devices.
SMALL = Size(
    inputs.Shape(256, 6, 1024, 4, 8000),
    inputs.Shape(128, 4, 256, 4, 1000),
    budget="20MB",
    matrix_budget="2MB",
)
ALLOWANCE = 400_000_000
DEVICES = 8
_BEFORE = re.compile(r"(\d+) of (\d+) blocks were finished before")
_LIMIT = 1200


def main() -> int:
    """Merge every method in every way, print the table, return 0 if all holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--only", default="", help="methods whose name matches this")
    parser.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    parser.add_argument("--in_memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    chosen = [name for name in methods.names() if re.search(options.only, name)]
    if options.in_memory:
        in_memory(options.workdir, chosen)
        return 0
    for name in chosen:
        if built(name).statistics:
            gather(options.workdir, name, SMALL)
    # Devices of one process wait for each other in the threads of one pool, of which
    # XLA makes as many as there are devices: too few where a program has more to do.
    # And how XLA cuts a product of matrices depends on how many they are: as many for
    # all, as on one machine.
    os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": str(4 * DEVICES)}
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--in_memory"],
        env=os.environ | {"XLA_FLAGS": flags},
        check=True,
    )
    return each(options.workdir / "rows.jsonl", chosen, row, options)


def each(
    path: Path,
    chosen: Sequence[str],
    find: Callable[[argparse.Namespace, str], dict],
    options: argparse.Namespace,
) -> int:
    """Find the rows that a file lacks, print them all, return 0 if all holds."""
    done = read(path)
    for name in chosen:
        if name not in done:
            done[name] = find(options, name)
            append(path, done[name])
            print(done[name], flush=True)
    rows = [done[name] for name in chosen]
    print(table(rows))
    return 0 if all(one["holds"] for one in rows) else 1


def row(options: argparse.Namespace, name: str) -> dict:
    """Return what came of a method, in every way."""
    moments = random.Random(f"{options.seed} {name}")
    kept = read(options.workdir / "memory.jsonl")[name]
    output = merge_trials.fresh(options.workdir / "out" / "merged")
    command = command_of(options.workdir, name, SMALL, output)
    expected, usage = streamed(options, command, output)
    again, _ = streamed(options, command, output, processes=2)
    blocks, before, resumed = killed(options, command, output, moments, usage.wall)
    found = {
        "in memory": kept["one"] == expected,
        f"{DEVICES} devices": kept["several"] == expected,
        "2 processes": again == expected,
        "killed, resumed": resumed == expected,
    }
    shape, budget = size_of(name, SMALL)
    matrices = 4 * 4 * shape.vocab * shape.hidden * (1 + cases.experts_for(name))
    allowed = storage.parse_size(budget) + ALLOWANCE + matrices * sees_matrices(name)
    return {
        "method": name,
        "passes": cost(built(name)).passes,
        **found,
        "blocks before the kill": f"{before} of {blocks}",
        "anonymous GB": round(usage.anonymous / 1e9, 3),
        "allowed": round(allowed / 1e9, 3),
        "seconds": round(usage.wall, 1),
        "holds": all(found.values()) and usage.anonymous <= allowed,
    }


def streamed(
    options: argparse.Namespace, command: list[str], output: Path, processes: int = 1
) -> tuple[dict[str, str], measuring.Usage]:
    """Merge by a whole command; return the leaves' digests, and what it took."""
    merge_trials.fresh(output)
    told = merge_trials.together(processes)
    usages = measuring.measure(
        [Command(command, one) for one in told],
        options.workdir / "logs",
        limit=_LIMIT,
    )
    for usage in usages:
        merge_trials.require(Command(command), usage, output)
    return digests(output), usages[0]


def killed(
    options: argparse.Namespace,
    command: list[str],
    output: Path,
    moments: random.Random,
    wall: float,
) -> tuple[int, int, dict[str, str]]:
    """Kill a merge that has finished some blocks, and let it go on.

    Returns:
      How many blocks there are, how many of them were finished before and are not done
      again, and the leaves' digests.
    """
    for _ in range(20):
        merge_trials.fresh(output)
        with open(options.workdir / "logs" / "killed.log", "wb") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log)
            while not _finished(output) and started.poll() is None:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, wall / 20))
            started.send_signal(signal.SIGKILL)
            started.wait()
        if output.exists():
            continue  # it was over
        (usage,) = measuring.measure(
            [Command(command)], options.workdir / "logs", limit=_LIMIT
        )
        merge_trials.require(Command(command), usage, output)
        if told := _BEFORE.search(usage.output):
            return int(told[2]), int(told[1]), digests(output)
    raise merge_trials.Failed(f"never killed between two blocks: {command}")


def _finished(output: Path) -> bool:
    """Return whether an unfinished output's journal speaks of a block."""
    journal = output.with_name(output.name + ".partial") / ".merge"
    return any(path.stat().st_size for path in journal.glob("blocks.*.jsonl"))


def command_of(workdir: Path, name: str, size: Size, output: Path) -> list[str]:
    """Return the command that merges by a method."""
    models = models_of(workdir, name, size)
    experts = models.experts[: cases.experts_for(name)]
    settings = {
        "method.name": text_of(name),
        "base": models.base,
        "experts": ",".join(map(str, experts)),
        "output": output,
        "memory_budget": size_of(name, size)[1],
    }
    if told := statistics(workdir, name, size):
        given = (f"{expert}={folder}" for expert, folder in told.items())
        settings["statistics"] = ",".join(given)
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    words = "-m merging merge --config merge/method".split()
    return [sys.executable, *words, *flags]


def size_of(name: str, size: Size) -> tuple[inputs.Shape, str]:
    """Return the shape of the models that a method merges, and the budget."""
    if sees_matrices(name):
        return size.matrices, size.matrix_budget
    return size.elements, size.budget


def models_of(workdir: Path, name: str, size: Size) -> inputs.Models:
    """Return the models that a method merges; made now if they are not there."""
    return inputs.make(workdir, size_of(name, size)[0], 3)


def statistics(workdir: Path, name: str, size: Size) -> dict[str, Path]:
    """Return {expert: folder of its statistics}, for a method that wants some."""
    kind = built(name).statistics
    if kind is None:
        return {}
    models = models_of(workdir, name, size)
    place = workdir / "statistics" / models.base.parent.name
    return {
        path.name: place / path.name / kind.name
        for path in models.experts[: cases.experts_for(name)]
    }


def sees_matrices(name: str) -> bool:
    """Return whether a method sees whole matrices."""
    return built(name).granularity == "matrix"


def built(name: str) -> methods.Method:
    """Return a method under the numbers of the battery."""
    return methods.get(name, **_numbers(name))


def text_of(name: str) -> str:
    """Return the same as text."""
    return str(Spec(name, _numbers(name)))


def _numbers(name: str) -> dict[str, Any]:
    found = dict(cases.CASES[name][0])
    if "weights" in found:
        found["weights"] = found["weights"][: cases.experts_for(name)]
    return found


def digests(output: Path) -> dict[str, str]:
    """Return the SHA-256 of each leaf, as the manifest has it and `verify` finds it."""
    if lines := merging.merge.verify(str(output)):
        raise merge_trials.Failed("\n".join(lines))
    leaves = json.loads((output / "manifest.json").read_text())["leaves"]
    return {path: leaf["sha256"] for path, leaf in leaves.items()}


def gather(workdir: Path, name: str, size: Size) -> None:
    """Write made-up statistics of every expert, as `merging collect` would."""
    models = models_of(workdir, name, size)
    for expert, folder in statistics(workdir, name, size).items():
        if folder.exists():
            continue
        source = checkpoints.open_checkpoint(str(models.base.parent / expert))
        found = statistics_of(built(name), {expert: source.abstract})[expert]
        leaves = tree.flatten(found)
        abstract = {p: _abstract(leaf) for p, leaf in leaves.items()}
        with checkpoints.create(str(folder), "safetensors", abstract) as writer:
            for path, leaf in leaves.items():
                writer.write(path, 0, np.ascontiguousarray(leaf).reshape(-1))
            writer.finish({})


def _abstract(leaf: np.ndarray) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def in_memory(workdir: Path, chosen: list[str]) -> None:
    """Merge in memory, on one device and over several, and keep the digests."""
    mesh = sharding.make_mesh({"data": DEVICES})
    done = read(workdir / "memory.jsonl")
    for name in (name for name in chosen if name not in done):
        models, method, found = models_of(workdir, name, SMALL), built(name), {}
        given = statistics(workdir, name, SMALL)
        told = {expert: _read(path) for expert, path in given.items()}
        for way, where in (("one", None), ("several", mesh)):
            base = _read(models.base, where)
            experts = models.experts[: cases.experts_for(name)]
            named = {path.name: _read(path, where) for path in experts}
            merged = merging.merge(base, named, method, statistics=told or None)
            found[way] = {p: _digest(leaf) for p, leaf in tree.flatten(merged).items()}
        append(workdir / "memory.jsonl", {"method": name, **found})
        same = found["one"] == found["several"]
        print(f"{name}: in memory, the same over {DEVICES} devices: {same}", flush=True)


def _read(path: Path, mesh: Any = None) -> dict[str, Any]:
    """Return a checkpoint's leaves, split over a mesh by the first axis that can be."""
    source = checkpoints.open_checkpoint(str(path))
    leaves = tree.flatten(source.abstract)
    here = SingleDeviceSharding(jax.devices()[0])
    where = dict.fromkeys(leaves, here)
    for name, leaf in leaves.items() if mesh is not None else ():
        axes = [i for i, size in enumerate(leaf.shape) if size % DEVICES == 0]
        spec = [None] * (axes[0] if axes else 0) + ["data"] * bool(axes)
        where[name] = NamedSharding(mesh, PartitionSpec(*spec))
    return tree.unflatten(source.read(list(leaves), where))


def _digest(leaf: Any) -> str:
    return hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return {method: line} of a file of lines."""
    text = path.read_text() if path.exists() else ""
    lines = map(json.loads, text.splitlines())
    return {line["method"]: line for line in lines}


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a file of them."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
