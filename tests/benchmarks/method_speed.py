"""mergekit's methods in both programs, of one YAML file: seconds, ratio.

    python tests/benchmarks/method_speed.py --workdir bench
    python tests/benchmarks/method_speed.py --workdir bench --methods sce,della --runs 5
    python tests/benchmarks/method_speed.py --workdir bench --size tiny   # a trial

Base and four experts of 334M parameters in bfloat16 (fewer where the method takes
fewer); the file is mergekit's, and so are the rules: `merging merge --config
merge/mergekit`. Programs take turns, after one run of ours that compiles and is not
counted; medians. All but passthrough, which merges nothing. The target is a third of
mergekit's time. Results are kept in WORKDIR/method_speed.jsonl: a stopped run goes on.
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
import measuring
from inputs import Models
from measuring import Command
from merge_speed import table

TARGET = 3.0
BARE = ("nuslerp", "model_stock")  # beside a merge with nothing around it
_BAND = {"weight": 0.4, "density": 0.4, "gamma": 0.05}
_CHANCE = {"weight": 0.4, "density": 0.4, "epsilon": 0.2}
# {method: (experts, parameters of each, of all, whether it takes a base)}
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any], bool]] = {
    "linear": (4, {"weight": 0.25}, {}, False),
    "slerp": (1, {}, {"t": 0.3}, True),
    "nuslerp": (2, {"weight": 0.5}, {}, True),
    "multislerp": (4, {"weight": 0.25}, {}, True),
    "karcher": (4, {}, {}, False),
    "model_stock": (4, {}, {}, True),
    "arcee_fusion": (1, {}, {}, True),
    "nearswap": (1, {}, {"t": 0.0005}, True),
    "task_arithmetic": (4, {"weight": 0.4}, {}, True),
    "ties": (4, {"weight": 1.0, "density": 0.2}, {"normalize": True}, True),
    "dare_linear": (4, {"weight": 0.4, "density": 0.2}, {}, True),
    "dare_ties": (4, {"weight": 0.4, "density": 0.2}, {}, True),
    "breadcrumbs": (4, _BAND, {}, True),
    "breadcrumbs_ties": (4, _BAND, {}, True),
    "della": (4, _CHANCE, {}, True),
    "della_linear": (4, _CHANCE, {}, True),
    "sce": (4, {}, {"select_topk": 0.2}, True),
    "ram": (4, {}, {}, True),
    "ramplus_tl": (4, {}, {}, True),
}


def yaml_of(method: str, models: Models) -> str:
    """Return the file, which both programs read; JSON is YAML."""
    count, own, shared, base = METHODS[method]
    said: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    said["models"] = [
        {"model": str(path), "parameters": own} for path in models.experts[:count]
    ]
    if base:
        said["base_model"] = str(models.base)
    if shared:
        said["parameters"] = shared
    return json.dumps(said, indent=1)


def main() -> int:
    """Run what is left, print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--size", choices=inputs.SIZES, default="1x")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mergekit", type=Path, help="an environment that has it")
    parser.add_argument("--program", default=f"{sys.executable} -m merging")
    chosen = parser.parse_args()
    folder = chosen.workdir.resolve()
    peer = contenders.mergekit_environment(chosen.mergekit or folder / "mergekit")
    models = inputs.make(folder, inputs.SIZES[chosen.size], 4)
    kept = folder / "method_speed.jsonl"
    rows = (
        [json.loads(line) for line in kept.read_text().splitlines()]
        if (kept.exists())
        else []
    )
    known = {(row["method"], row["size"]) for row in rows}
    for method in chosen.methods.split(","):
        if (method, chosen.size) in known:
            continue
        row = {"method": method, "size": chosen.size}
        row |= contest(method, models, folder, peer, chosen.program, chosen.runs)
        print(row, flush=True)
        with open(kept, "a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    print(table([_shown(row) for row in rows if row["size"] == chosen.size]))
    return any(not row["ratio"] >= TARGET for row in rows if row["ratio"])


def contest(
    method: str, models: Models, folder: Path, peer: Path, program: str, runs: int
) -> dict[str, Any]:
    """Return the seconds of both programs, in turns."""
    out, file = folder / "method_speed_out", folder / "method_speed.yml"
    file.write_text(yaml_of(method, models))
    words = [*shlex.split(program), "merge", "--config", "merge/mergekit"]
    words += [f"--config.merge_yaml={file}", f"--config.output={out}"]
    commands = {
        "ours": Command(words),
        "mergekit": contenders.mergekit_yaml(peer, file, out),
    }
    if method in BARE:
        read = (models.base, *models.experts[: METHODS[method][0]])
        weights = [path / "model.safetensors" for path in read]
        commands["bare"] = contenders.bare(method, weights, folder / "bare")
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory, failed = 0.0, {}
    for turn in range(runs + 1):
        for name, command in commands.items():
            if name in failed or (turn == 0 and name == "mergekit"):
                continue
            shutil.rmtree(out, ignore_errors=True)
            (used,) = measuring.measure([command], folder / "logs")
            if used.status:
                failed[name] = used.output.strip().splitlines()[-1][:200]
                continue
            if turn:
                seconds[name].append(round(used.wall, 2))
            if name == "ours":
                memory = max(memory, used.anonymous / 1e9)
    shutil.rmtree(out, ignore_errors=True)
    both = seconds["ours"] and seconds["mergekit"]
    middle = {name: statistics.median(s) for name, s in seconds.items() if s}
    ratio = round(middle["mergekit"] / middle["ours"], 2) if both else None
    return {**seconds, "ratio": ratio, "memory_GB": round(memory, 2), "failed": failed}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    shown = {"method": row["method"]}
    for name in ("ours", "mergekit", "bare"):
        own = row.get(name, [])
        shown[name] = statistics.median(own) if own else row["failed"].get(name, "")
    return shown | {"times as fast": row["ratio"], "ours, GB": row["memory_GB"]}


if __name__ == "__main__":
    sys.exit(main())
