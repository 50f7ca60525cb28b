"""The mode `weak` of `merge_speed.py`: P processes merge models P times as large.

Each process has a core to itself where there are enough, and one process has one only,
so that its seconds can be compared with those of several. With more processes than
cores the ideal is not the same time, but as much longer as cores are short: both are in
the table, and the CPU seconds, which no lack of cores changes.
"""

import argparse
import os
import shutil
from typing import Any

import contenders
import inputs
import measuring
import merge_trials
from measuring import Command

GB = 1e9
SLACK = 0.02  # of the bytes that a process reads, over its share of what all read


def weak(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what each number of processes read and took."""
    rows = []
    for method in options.methods:
        alone = None
        for count in options.processes:
            row = _row(options, method, count)
            alone = alone or row
            cores = row["cores"]
            ideal = alone["wall_s"] * count / cores
            row["cpu_per_process_over_one"] = round(
                row["cpu_s"] / count / alone["cpu_s"], 2
            )
            row["efficiency"] = round(alone["wall_s"] / row["wall_s"], 2)
            row["efficiency_on_these_cores"] = round(ideal / row["wall_s"], 2)
            share = sum(row["read_mb"]) / count
            row["holds"] = max(row["read_mb"]) <= share * (1 + SLACK)
            rows.append(row)
            print(row, flush=True)
    return rows


def _row(options: argparse.Namespace, method: str, count: int) -> dict[str, Any]:
    shape = merge_trials.shape_of(options, options.size)
    models = inputs.make(options.workdir, grown(shape, count), options.experts)
    cores = sorted(os.sched_getaffinity(0))
    output = merge_trials.fresh(options.workdir / "out" / "merged")
    command = contenders.ours(
        options.merging, method, models, output, options.memory_budget
    )
    commands = [
        Command(["taskset", "-c", str(cores[i % len(cores)]), *command.arguments], told)
        for i, told in enumerate(merge_trials.together(count))
    ]
    contenders.warm(method, models)
    idle = merge_trials.dry_run(options, method, models).read
    usages = measuring.measure(commands, options.workdir / "logs", interval=0.1)
    for usage in usages:
        merge_trials.require(command, usage, output)
    shutil.rmtree(output)
    return {
        "method": method,
        "processes": count,
        "cores": min(count, len(cores)),
        "model_gb": round(2 * grown(shape, count).parameters / GB, 3),
        "read_mb": [round((usage.read - idle) / 1e6, 1) for usage in usages],
        "anonymous_gb": [round(usage.anonymous / GB, 3) for usage in usages],
        "wall_s": round(max(usage.wall for usage in usages), 2),
        "cpu_s": round(sum(usage.cpu for usage in usages), 2),
        "load": round(usages[0].load, 1),
    }


def grown(shape: inputs.Shape, times: int) -> inputs.Shape:
    """Return a model with so many times the parameters, as nearly as layers allow."""
    layer = shape._replace(layers=1).parameters - shape._replace(layers=0).parameters
    more = (times - 1) * shape.parameters
    return shape._replace(layers=shape.layers + round(more / layer))
