"""What a merge costs, beside mergekit and beside reading and writing alone.

speed      seconds, memory and bytes read, in turns: ours, mergekit, a merge with
           nothing around it (bare_merge.py), and reading and writing alone (floor)
memory     peak memory of ours as models grow and experts are added
processes  bytes that each of P processes reads, and that P changes no bit
weak       P processes, one to a core, merge models P times as large: bytes and seconds
kills      SIGKILL at a random moment, the same command again: the same bytes

examples:
  python tests/benchmarks/merge_speed.py speed --workdir bench
  python tests/benchmarks/merge_speed.py speed --workdir bench --skip_mergekit
  python tests/benchmarks/merge_speed.py memory --workdir bench --cases 2GB:8
  python tests/benchmarks/merge_speed.py processes --workdir bench --methods ties
  python tests/benchmarks/merge_speed.py weak --workdir bench --layers 8
  python tests/benchmarks/merge_speed.py kills --workdir bench --methods ties \\
      --memory_budget 200MB --kills 20
  python tests/benchmarks/merge_speed.py speed --workdir bench --size tiny  # a trial

Inputs are made once and kept in the workdir: 0.7 GB for each model of size 1x. So is
mergekit's environment, of about 2 GB; --mergekit names one that exists. A default run
of `speed` takes about a quarter of an hour on two cores, nearly all of it mergekit's.
Nothing else should run on the machine; each run's load average is in the table.
"""

import argparse
import importlib.metadata
import json
import shlex
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import contenders
import inputs
import measuring
import merge_trials
import weak_scaling
from contenders import CONTESTS
from measuring import Usage

GB = 1e9
BARE = ("average", "task_arithmetic", "ties", "dare_ties")


def main() -> int:
    """Run one mode, print its table, and return 0 if what must hold held."""
    options = _parser().parse_args()
    options.workdir = options.workdir.resolve()
    machine = measuring.machine() | {"jax": importlib.metadata.version("jax")}
    if options.mode == "speed" and not options.skip_mergekit:
        folder = options.mergekit or options.workdir / "mergekit"
        options.mergekit = contenders.mergekit_environment(folder.resolve())
        machine["peer"] = contenders.versions(options.mergekit)
    print(", ".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    modes = {
        "speed": speed,
        "memory": merge_trials.memory,
        "processes": merge_trials.processes,
        "weak": weak_scaling.weak,
        "kills": merge_trials.kills,
    }
    try:
        rows = modes[options.mode](options)
    except merge_trials.Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    print(table(rows))
    if options.json:
        settings = {k: str(v) for k, v in vars(options).items()}
        record = {"machine": machine, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row.get("holds", True) for row in rows) else 1


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every contender in turns and return the medians, one row for each."""
    models = inputs.make(
        options.workdir, merge_trials.shape_of(options, options.size), options.experts
    )
    rows = []
    for method in options.methods:
        taken: dict[str, list[Usage]] = {}
        for repeat in range(options.repeats):
            names = ["ours", "mergekit", "bare", "floor", "floor, synced"]
            if method not in BARE:
                names.remove("bare")
            if options.skip_mergekit or CONTESTS[method].peer is None:
                names.remove("mergekit")
            # Whoever runs second may find the machine warmer: they take turns.
            for name in names if repeat % 2 == 0 else names[::-1]:
                usage = _turn(options, method, name, models)
                taken.setdefault(name, []).append(usage)
                print(
                    f"{method}, {name}, {repeat + 1} of {options.repeats}: "
                    f"{usage.wall:.2f} s, {usage.cpu:.2f} s of CPU, "
                    f"{usage.anonymous / GB:.2f} GB, load {usage.load:.1f}",
                    flush=True,
                )
        rows += [_row(method, name, taken) for name in taken]
    return rows


def _turn(
    options: argparse.Namespace, method: str, name: str, models: inputs.Models
) -> Usage:
    output = merge_trials.fresh(options.workdir / "out" / "merged")
    if name == "ours":
        command = contenders.ours(
            options.merging, method, models, output, options.memory_budget
        )
    elif name == "mergekit":
        command = contenders.mergekit(options.mergekit, method, models, output)
    elif name == "bare":
        command = contenders.bare(method, contenders.files(method, models), output)
    else:
        command = contenders.floor(method, models, output, sync="synced" in name)
    contenders.warm(method, models)
    (usage,) = measuring.measure([command], options.workdir / "logs", interval=0.1)
    merge_trials.require(command, usage, output)
    shutil.rmtree(output)
    return usage


def _row(
    method: str, name: str, taken: Mapping[str, Sequence[Usage]]
) -> dict[str, Any]:
    usages = taken[name]

    def middle(field: str) -> float:
        return statistics.median(getattr(usage, field) for usage in usages)

    def times(other: str) -> float | None:
        if other not in taken or other == name:
            return None
        pairs = zip(usages, taken[other], strict=True)
        return round(statistics.median(u.wall / o.wall for u, o in pairs), 3)

    row: dict[str, Any] = {
        "method": method,
        "tool": name,
        "wall_s": round(middle("wall"), 2),
        "runs_s": [round(usage.wall, 2) for usage in usages],
        "cpu_s": round(middle("cpu"), 2),
        "anonymous_gb": round(max(u.anonymous for u in usages) / GB, 3),
        "max_rss_gb": round(max(u.resident for u in usages) / GB, 3),
        "read_gb": round(middle("read") / GB, 3),
        "from_disk_gb": round(middle("from_disk") / GB, 3),
        "load": [round(usage.load, 1) for usage in usages],
        "over_floor": times("floor"),
        "over_bare": times("bare"),
        "over_mergekit": times("mergekit"),
    }
    target = CONTESTS[method].target
    if name == "ours" and target and row["over_mergekit"]:
        row["target"] = f"1/{target:g}"
        row["reached"] = f"1/{1 / row['over_mergekit']:.1f}"
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an aligned table; a column for each key of any of them."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "" if value is None else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merge_speed.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("mode", choices=["speed", "memory", "processes", "weak", "kills"])
    add("--workdir", type=Path, required=True, help="for inputs, outputs and logs")
    methods = ",".join(CONTESTS)
    add("--methods", type=_methods, default=methods, help=f"of {methods} (all)")
    add("--size", choices=inputs.SIZES, default="1x", help="of each model (1x: 334M)")
    for field in inputs.Shape._fields:
        add(f"--{field}", type=int, help="in place of the size's own")
    add("--experts", type=int, default=4, help="how many (4)")
    add("--memory_budget", default="1GB", help="of ours (1GB)")
    add("--repeats", type=int, default=3, help="speed: runs of each (3)")
    add("--skip_mergekit", action="store_true", help="speed: ours and the floor only")
    add(
        "--mergekit",
        type=Path,
        metavar="DIR",
        help="speed: a virtual environment with mergekit (WORKDIR/mergekit, made now)",
    )
    add(
        "--cases",
        type=_cases,
        default="1x:2,1x:4,1x:8,2x:4,4x:4",
        metavar="SIZE:K,...",
        help="memory: sizes, each with a number of experts (1x:2,1x:4,1x:8,2x:4,4x:4)",
    )
    add(
        "--processes",
        type=lambda text: [int(word) for word in text.split(",")],
        default="1,2,4",
        help="processes, weak: how many at a time, 1 first (1,2,4)",
    )
    add("--kills", type=int, default=20, help="kills: how many (20)")
    add("--seed", type=int, default=0, help="kills: of the moments (0)")
    add("--json", type=Path, metavar="FILE", help="write the rows here, too")
    add(
        "--merging",
        default=f"{shlex.quote(sys.executable)} -m merging",
        metavar="COMMAND",
        help="how to start ours, such as another checkout's (this Python -m merging)",
    )
    return parser


def _methods(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in CONTESTS]:
        raise argparse.ArgumentTypeError(f"no such methods: {', '.join(unknown)}")
    return names


def _cases(text: str) -> list[tuple[str, int]]:
    found = []
    for case in text.split(","):
        size, _, count = case.partition(":")
        if size not in inputs.SIZES or not count.isdigit():
            raise argparse.ArgumentTypeError(
                f"{case!r} is not SIZE:K with a size of {', '.join(inputs.SIZES)}"
            )
        found.append((size, int(count)))
    return found


if __name__ == "__main__":
    sys.exit(main())
