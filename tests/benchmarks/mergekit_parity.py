"""Ours beside mergekit on the same YAML files: how far apart the weights come out.

  python tests/benchmarks/mergekit_parity.py --workdir parity
  python tests/benchmarks/mergekit_parity.py --workdir parity --mergekit VENV
  python tests/benchmarks/mergekit_parity.py --workdir parity --random 500 --seed 1

The files are `mergekit_cases.py`'s, on small Llamas. Of float32 every weight must agree
to 1e-6. Where mergekit computes in bfloat16 or float16 it rounds at every step, and
ours once: there every weight must agree to one unit in the last place (or 1e-6) with
what mergekit makes of the same numbers in float32, rounded at the end; how many do not
agree so well with what it makes of the file itself is counted. Of 16 bits a trim's
magnitudes at the threshold are often equal, and each program keeps others: such weights
are counted apart. Adapters are added by PEFT there, in float32.
DARE's masks come from different generators: of each large tensor the share of weights
that move must agree to 0.05, and how far they move together to 10 %. Where a vocabulary
is made, rows are compared token by token. A file that one
refuses, the other must refuse, unless what mergekit makes is not finite. Two hundred
files take 4 minutes on two cores.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import count, repeat
from pathlib import Path

import contenders
import inputs
import mergekit_adapters
import mergekit_random
import mergekit_vocabularies
import ml_dtypes
import numpy as np
import yaml
from merge_speed import table
from mergekit_cases import FAMILIES, Case, cases
from safetensors.numpy import load_file, save_file

from merging import UserError
from merging.merge.streamed import merge_yaml

SHAPE = inputs.SIZES["tiny"]._replace(layers=4)
# How far an expert is from its base, whose weights are 0.02.
MOVED = 0.001
CLOSE, LARGE, SHARE, DISTANCE = 1e-6, 4096, 0.05, 0.1
NAMES = ("base", "expert1", "expert2")
_HEAD = "lm_head.weight"
# What a file comes to, and its column in the table.
_VERDICTS = {
    "equal": "equal",
    "refused by both": "refused by both",
    "alike": "statistics",
    "refused, not finite": "not finite",
    "DIFFERS": "differ",
}

Leaves = dict[str, np.ndarray]


def main() -> int:
    """Merge every case with both, print a table, and return 0 if all agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--mergekit", type=Path, help="a virtual environment with it")
    parser.add_argument("--only", default="", help="cases whose names match this")
    parser.add_argument("--random", type=int, default=0, help="so many random files")
    parser.add_argument("--seed", type=int, default=0, help="of the random files")
    parser.add_argument("--jobs", type=int, default=1, help="of each side at a time")
    options = parser.parse_args()
    workdir = options.workdir.resolve()
    environment = contenders.mergekit_environment(
        (options.mergekit or workdir / "mergekit").resolve()
    )
    print(contenders.versions(environment))
    for family in FAMILIES:
        if family in mergekit_vocabularies.FAMILIES:
            folder, tied = workdir / "models" / family, family.endswith("tied")
            mergekit_vocabularies.make(folder, tied)
        else:
            _make(workdir / "models" / family, family)
            mergekit_adapters.make(workdir / "models" / family, SHAPE)
    folder = workdir / f"run{int(time.time())}"
    random = mergekit_random.cases(options.seed, options.random)
    listed = random if options.random else cases()
    chosen = [case for case in listed if re.search(options.only, case.name)]
    for number, case in enumerate(chosen):
        _write(folder / f"{number}.yml", case, workdir / "models" / case.family)
        if case.reference is not None:
            once = case._replace(yaml=case.reference)
            models = workdir / "models" / (case.narrow or case.family)
            _write(folder / f"{number}.once.yml", once, models)
    begun = _begun(environment, folder, options.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        refused = list(pool.map(_ours, repeat(folder, len(chosen)), count()))
    written = _theirs(begun)
    rows = []
    for number, (case, ours) in enumerate(zip(chosen, refused, strict=True)):
        theirs = written[str(number)]
        row: dict[str, object] = {"method": case.method, "case": case.name}
        if ours or theirs:
            verdict = "refused by both" if ours and theirs else "DIFFERS"
            if not theirs and not _finite(_load(folder / f"{number}.theirs")):
                verdict = "refused, not finite"
            row |= {"verdict": verdict, "note": _note(ours, theirs)}
        else:
            models = workdir / "models" / case.family
            row |= _compared(case, models, folder, number)
        rows.append(row)
    print(table(rows), table(_summary(rows)), sep="\n\n")
    return 1 if any(row["verdict"] == "DIFFERS" for row in rows) else 0


def _summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return a row for each method: how many of its files came to what."""
    found = []
    for method in [*dict.fromkeys(row["method"] for row in rows), "all"]:
        of = [row["verdict"] for row in rows if method in (row["method"], "all")]
        counts = {column: of.count(v) for v, column in _VERDICTS.items()}
        found.append({"method": method, "files": len(of), **counts})
    return found


def _note(ours: str | None, theirs: str | None) -> str:
    if ours and theirs:
        return ours[-60:]
    return f"ours: {ours}" if ours else f"theirs: {theirs}"


def _make(folder: Path, family: str) -> None:
    """Write a base and two experts: the same numbers in every dtype."""
    dtype = _np("float32" if family == "tied" else family)
    config = inputs.config(SHAPE) | {
        "torch_dtype": str(dtype),
        "tie_word_embeddings": family == "tied",
    }
    start: Leaves = {}
    for number, name in enumerate(NAMES):
        random = np.random.default_rng(7 + number)
        leaves = {}
        for path, shape in inputs.tensors(SHAPE):
            noise = random.normal(0, MOVED if number else 0.02, shape)
            leaves[path] = (noise + start.get(path, 0.0)).astype(np.float32)
        start = start or leaves
        (folder / name).mkdir(parents=True, exist_ok=True)
        kept = {
            path: leaf.astype(dtype)
            for path, leaf in leaves.items()
            if family != "tied" or path != _HEAD
        }
        save_file(kept, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config, indent=1))


def _write(path: Path, case: Case, models: Path) -> None:
    """Write a case's file, with the models' folders in place of their names."""

    known = (*NAMES, *mergekit_adapters.NAMES)

    def placed(value: object) -> object:
        if isinstance(value, dict):
            return {k: placed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [placed(v) for v in value]
        if not isinstance(value, str):
            return value
        # A model, or one with an adapter: BASE+ADAPTER.
        return "+".join(
            str(models / part) if part in known else part for part in value.split("+")
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    found = {k: v for k, v in case.yaml.items() if v is not None}
    # No aliases, which ours does not read.
    text = yaml.safe_dump(json.loads(json.dumps(placed(found))), sort_keys=False)
    path.write_text(text)


def _begun(environment: Path, folder: Path, jobs: int) -> dict[Path, subprocess.Popen]:
    """Begin to merge all files with mergekit, in so many processes."""
    files = sorted(folder.glob("*.yml"))
    told = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    side = Path(__file__).with_name("mergekit_side.py")
    begun = {}
    for job in range(jobs):
        pairs = [[str(p), str(p.with_suffix(".theirs"))] for p in files[job::jobs]]
        listed = folder / f"jobs{job}.json"
        listed.write_text(json.dumps(pairs))
        begun[listed] = subprocess.Popen(
            [str(environment / "bin" / "python"), str(side), str(listed)],
            env=told,
            stdout=subprocess.PIPE,
            text=True,
        )
    return begun


def _theirs(begun: dict[Path, subprocess.Popen]) -> dict[str, str | None]:
    """Return of each file why mergekit refused it, or None.

    Raises:
      CalledProcessError: mergekit's side ended in the middle.
    """
    found = {}
    for listed, process in begun.items():
        said, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        paths = [Path(path).stem for path, _ in json.loads(listed.read_text())]
        found |= dict(zip(paths, json.loads(said.splitlines()[-1]), strict=True))
    return found


def _ours(folder: Path, number: int) -> str | None:
    """Merge a file with ours; return why it was refused, if it was."""
    try:
        merge_yaml(folder / f"{number}.yml", str(folder / f"{number}.ours"))
    except UserError as error:
        return " ".join(str(error).split())
    return None


def _compared(case: Case, models: Path, folder: Path, number: int) -> dict[str, object]:
    theirs, ours = (_load(folder / f"{number}.{who}") for who in ("theirs", "ours"))
    configs = [_config(folder / f"{number}.{who}") for who in ("theirs", "ours")]
    if theirs.keys() != ours.keys():
        return {"verdict": "DIFFERS", "note": "other tensors"}
    if "tokenizer" in " ".join(case.yaml):
        places = (folder / f"{number}.{who}" for who in ("theirs", "ours"))
        try:
            theirs = mergekit_vocabularies.in_our_order(theirs, *places)
        except (ValueError, OSError) as error:
            return {"verdict": "DIFFERS", "note": str(error)}
    if any(theirs[n].dtype != ours[n].dtype for n in ours):
        return {"verdict": "DIFFERS", "note": "another dtype"}
    if configs[0] != configs[1]:
        return {"verdict": "DIFFERS", "note": f"config {configs[0]} and {configs[1]}"}
    originals = [_load(models / name) for name in NAMES]
    if case.random:
        return _alike(case, theirs, ours, originals[0])
    if case.reference is None:
        return _equal(case, theirs, ours, originals)
    once = _load(folder / f"{number}.once.theirs")
    narrow = _np(case.narrow or "float32")
    read = [{p: x.astype(narrow) for p, x in leaves.items()} for leaves in originals]
    row = _equal(case, once, ours, read)
    total = sum(leaf.size for leaf in ours.values())
    beyond = sum(int(_beyond(theirs[p], ours[p]).sum()) for p in ours)
    return row | {"rounded at every step": f"{beyond / total:.2%} beyond a unit"}


def _equal(
    case: Case, theirs: Leaves, ours: Leaves, originals: list[Leaves]
) -> dict[str, object]:
    """Compare numbers that both compute in float32."""
    far, tied, furthest = 0, 0, 0.0
    for path, leaf in ours.items():
        off = _beyond(theirs[path], leaf)
        if off.any():
            at_threshold = _at_threshold(case, path, originals)
            tied += int((off & at_threshold).sum())
            off &= ~at_threshold
        far += int(off.sum())
        apart = np.abs(_wide(theirs[path]) - _wide(leaf))
        furthest = max(furthest, float(apart.max()))
    row: dict[str, object] = {"verdict": "DIFFERS" if far else "equal"}
    row["furthest"] = f"{furthest:.1e}"
    if tied or far:
        row["note"] = f"{tied} tied at the threshold, {far} others"
    return row


def _beyond(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Return where they differ by more than 1e-6, and than a last place of 16 bits."""
    apart = np.abs(_wide(theirs) - _wide(ours))
    far = apart > CLOSE
    if ours.dtype == np.float32:
        return far
    larger = np.maximum(np.abs(_wide(theirs)), np.abs(_wide(ours)))
    return far & (apart > 1.001 * _unit(larger, ours.dtype))


def _at_threshold(case: Case, path: str, originals: list[Leaves]) -> np.ndarray:
    """Return where an expert's magnitude is the trim's threshold."""
    start, *experts = (_wide(of[_original(case, path)]) for of in originals)
    if case.method == "arcee_fusion":
        return _near_quantiles(start, experts[0])
    found = np.zeros(start.shape, bool)
    if case.method.startswith("breadcrumbs"):
        for model, expert in zip(case.yaml.get("models", ()), experts, strict=False):
            found |= _at_band(np.abs(expert - start), model["parameters"])
        return found
    if case.method != "ties" or case.densities is None:
        return found
    for expert, density in zip(experts, case.densities, strict=True):
        size = np.abs(expert - start).astype(np.float32)
        k = max(1, int(density * size.size))
        found |= size == np.sort(size.reshape(-1))[::-1][k - 1]
    return found


def _at_band(size: np.ndarray, numbers: dict[str, float]) -> np.ndarray:
    """Return where a magnitude is one of those beside the ends of a band."""
    size = size.astype(np.float32)
    ordered = np.sort(size.reshape(-1))[::-1]
    kept = int(numbers.get("density", 1.0) * size.size)
    above = min(int(numbers.get("gamma", 0.01) * size.size), size.size - kept)
    ends = [above - 1, above, above + kept - 1, above + kept]
    return np.isin(size, [ordered[i] for i in ends if 0 <= i < size.size])


def _near_quantiles(start: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Return where an importance is within 0.2 % of the least that is kept."""
    p, q = (np.exp(np.atleast_2d(x)) for x in (expert, start))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
    importance = np.abs(np.atleast_2d(expert - start)) * divergence
    low, middle, high = np.quantile(importance, (0.25, 0.5, 0.75), method="lower")
    least = middle + 1.5 * (high - low)
    return (np.abs(importance / least - 1) < 0.002).reshape(start.shape)


def _original(case: Case, path: str) -> str:
    """Return what the models call a leaf of the output."""
    match = re.search(r"layers\.(\d+)\.", path)
    if match is None or case.layers is None:
        return path
    layer = case.layers[int(match[1])]
    return f"{path[: match.start(1)]}{layer}{path[match.end(1) :]}"


def _alike(case: Case, theirs: Leaves, ours: Leaves, base: Leaves) -> dict[str, object]:
    """Compare what chance decides: how many weights move, and how far together."""
    share = distance = 0.0
    for path, leaf in ours.items():
        if leaf.size < LARGE:
            continue
        start = _wide(base[_original(case, path)].astype(leaf.dtype))
        moved = [_wide(x[path]) - start for x in (theirs, ours)]
        shares = [np.count_nonzero(m) / m.size for m in moved]
        lengths = [float(np.abs(m).sum()) for m in moved]
        share = max(share, abs(shares[0] - shares[1]))
        apart = abs(lengths[1] - lengths[0]) / max(lengths[0], 1e-30)
        distance = max(distance, apart)
    fits = share <= SHARE and distance <= DISTANCE
    note = f"share moved differs by {share:.3f}, distance by {distance:.1%}"
    return {"verdict": "alike" if fits else "DIFFERS", "note": note}


def _finite(leaves: Leaves) -> bool:
    return all(np.isfinite(_wide(leaf)).all() for leaf in leaves.values())


def _load(folder: Path) -> Leaves:
    found: Leaves = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _config(folder: Path) -> dict[str, object]:
    """Return what a merge may change of the config."""
    found = json.loads((folder / "config.json").read_text())
    # transformers 5 writes dtype, 4 torch_dtype.
    dtype = found.get("dtype") or found.get("torch_dtype")
    words = found["vocab_size"]
    return {"layers": found["num_hidden_layers"], "dtype": dtype, "words": words}


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def _np(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _unit(size: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the last place's unit at a magnitude."""
    smallest = float(ml_dtypes.finfo(dtype).tiny)
    exponent = np.floor(np.log2(np.maximum(size, smallest)))
    return 2.0 ** (exponent - ml_dtypes.finfo(dtype).nmant)


if __name__ == "__main__":
    sys.exit(main())
