"""Ours beside PEFT: what an adapter adds, and what PEFT makes of the adapters we write.

  python tests/benchmarks/peft_parity.py --workdir parity --peft VENV

VENV holds torch, transformers and peft. Of each case of `peft_side.py`, θ₀ + s·BA is
held against PEFT's merge_and_unload: in float32 both round a sum of r products, so they
agree to 1e-6 of weights that are below 1; in bfloat16 PEFT rounds BA and the sum, and
ours the sum alone, so they agree to two units in the last place. Then adapters that we
write (merged in factors, core_space and knots; extracted) are loaded by PEFT, without a
missing or unexpected tensor, and merged: to the model that they should make. Two
minutes on two cores.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

import merging
from merging import checkpoints
from merging.merge import extraction
from merging.runtime.text import table

SIDE = Path(__file__).with_name("peft_side.py")
CLOSE = 1e-6
# Two units in the last place of bfloat16's eight bits.
CLOSE_16 = 2 * 2**-8

Leaves = dict[str, np.ndarray]


def main() -> int:
    """Print both tables; return 0 if all agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--peft", type=Path, required=True, help="an environment")
    options = parser.parse_args()
    python = options.peft.resolve() / "bin" / "python"
    workdir = options.workdir.resolve()
    cases = workdir / "cases"
    subprocess.run([python, SIDE, "make", cases], check=True)
    one = _ours_of_theirs(cases)
    two = _theirs_of_ours(cases, workdir, python)
    return 0 if one and two else 1


def _ours_of_theirs(cases: Path) -> bool:
    """Compare θ₀ + s·BA with what PEFT merged."""
    rows: list[tuple] = [("case", "leaves", "adapted", "farthest", "agrees")]
    for place in sorted(cases.iterdir()):
        ours = _read(f"{place / 'base'}+{place / 'one'}")
        theirs = load_file(place / "merged" / "model.safetensors")
        base = load_file(place / "base" / "model.safetensors")
        moved = sum(not np.array_equal(base[k], theirs[k]) for k in base)
        far, agrees = _distance(ours, theirs)
        rows.append((place.name, len(ours), moved, f"{far:.1e}", agrees))
    print(f"θ₀ + s·BA beside merge_and_unload:\n{table(rows)}\n")
    return all(row[-1] is True for row in rows[1:])


def _theirs_of_ours(cases: Path, workdir: Path, python: Path) -> bool:
    """Write adapters, have PEFT merge them, and compare with what they should be."""
    jobs, expected = [], {}
    made = workdir / "made"
    for name, base, write, wanted in _adapters(cases):
        output = made / name
        if not output.exists():
            write(str(output))
        jobs.append([str(base), str(output), str(made / f"{name} by PEFT")])
        expected[name] = wanted
    listed = workdir / "jobs.json"
    listed.write_text(json.dumps(jobs))
    command = [python, SIDE, "merge", listed]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    warned = json.loads(done.stdout.splitlines()[-1])
    rows: list[tuple] = [("our adapter", "rank", "warnings", "farthest", "agrees")]
    for (name, wanted), (_, adapter, output), texts in zip(
        expected.items(), jobs, warned, strict=True
    ):
        for text in texts:
            print(f"{name}: {text}")
        theirs = load_file(Path(output) / "model.safetensors")
        far, agrees = _distance(wanted(), theirs)
        rank = json.loads((Path(adapter) / "adapter_config.json").read_text())["r"]
        row = (name, rank, len(texts), f"{far:.1e}", agrees and not texts)
        rows.append(row)
    print(f"Our adapters, merged by PEFT:\n{table(rows)}")
    return all(row[-1] is True for row in rows[1:])


def _adapters(cases: Path):
    """Yield (name, base, what writes it, what it should make of the base)."""
    for case in ("plain", "patterns", "embeddings", "modules_to_save"):
        place = cases / case
        base = place / "base"
        experts = {n: str(place / n) for n in ("one", "two")}

        def merged(method: str, space: str, base=base, experts=experts):
            return lambda output: merging.merge_checkpoints(
                base, experts, method, output, space=space
            )

        def summed(base=base, experts=experts) -> Leaves:
            start = load_file(base / "model.safetensors")
            adapted = [_read(f"{base}+{path}") for path in experts.values()]
            return {
                k: start[k] + 0.4 * sum(a[k] - start[k] for a in adapted) for k in start
            }

        def itself(output: Path, base=base) -> Callable[[], Leaves]:
            return lambda: _read(f"{base}+{output}")

        made = cases.parent / "made"
        for space in ("core_space", "knots"):
            name = f"{case}, task arithmetic in {space}"
            yield name, base, merged("task_arithmetic()", space), summed
        for method, space in (("rht()", "factors"), ("ties()", "core_space")):
            name = f"{case}, {method} in {space}"
            yield name, base, merged(method, space), itself(made / name)
        yield (
            f"{case}, extracted",
            base,
            _extracted(base, place / "merged", rank=16, whole="lm_head|embed|norm"),
            lambda place=place: load_file(place / "merged" / "model.safetensors"),
        )
        name = f"{case}, extracted by energy"
        write = _extracted(base, place / "merged", energy=0.8)
        yield name, base, write, itself(made / name)


def _extracted(base: Path, model: Path, **settings) -> Callable[[str], None]:
    def write(output: str) -> None:
        extraction.extract(str(base), str(model), output, **settings)

    return write


def _read(uri: str) -> Leaves:
    source = checkpoints.open_checkpoint(uri)
    found = {}
    for path, leaf in source.abstract.items():
        flat = np.empty(math.prod(leaf.shape), leaf.dtype)
        source.read_into(path, 0, flat)
        found[path] = flat.reshape(leaf.shape)
    return found


def _distance(ours: Leaves, theirs: Leaves) -> tuple[float, bool]:
    """Return how far apart the leaves are at most, and whether that is near enough."""
    if ours.keys() != theirs.keys():
        print(f"leaves of one side only: {sorted(ours.keys() ^ theirs.keys())}")
        return math.inf, False
    far, agrees = 0.0, True
    for path, leaf in theirs.items():
        narrow = leaf.dtype == ml_dtypes.bfloat16
        mine = ours[path].astype(leaf.dtype).astype(np.float64)
        apart = np.abs(mine - leaf.astype(np.float64))
        limit = CLOSE_16 * np.abs(mine) + CLOSE if narrow else CLOSE
        far = max(far, float(apart.max(initial=0)))
        agrees = agrees and bool((apart <= limit).all())
    return far, agrees


if __name__ == "__main__":
    sys.exit(main())
