"""What `merging analyze --config analyze/geometry` costs, beside reading its inputs.

  python tests/benchmarks/geometry_speed.py --workdir bench
  python tests/benchmarks/geometry_speed.py --workdir bench --size tiny  # a trial

A base and eight experts of merge_speed.py's shapes in bfloat16 (0.7 GB each at 1x),
read once by one thread, and analysed in one pass by the whole command, in turns: from
the disk, after the kernel was told to forget the files, and from the page cache. The
aim is 2.5 times reading. Nothing else should run on the machine.
"""

import argparse
import mmap
import os
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path

import inputs
import measuring
import read_write_floor
from merge_speed import table


def main() -> int:
    """Time both in turns and print the medians; return 0 if every run ended well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--size", choices=inputs.SIZES, default="1x")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory_budget", default="1GB")
    parser.add_argument("--merging", default=f"{sys.executable} -m merging")
    options = parser.parse_args()
    workdir = options.workdir.resolve()
    models = inputs.make(workdir, inputs.SIZES[options.size], options.experts)
    print(", ".join(f"{key}: {value}" for key, value in measuring.machine().items()))
    rows = []
    for place in ("disk", "page cache"):
        reading, passes = [], []
        for repeat in range(options.repeats):
            _settle(models, place)
            reading.append(_read(models))
            _settle(models, place)
            out = workdir / "geometry"
            shutil.rmtree(out, ignore_errors=True)
            command = measuring.Command(_command(options, models, out))
            (usage,) = measuring.measure([command], workdir / "logs", interval=0.1)
            if usage.status:
                print(usage.output, file=sys.stderr)
                return 1
            passes.append(usage)
            print(
                f"{place}, {repeat + 1} of {options.repeats}: reading "
                f"{reading[-1]:.2f} s, a pass {usage.wall:.2f} s, "
                f"load {usage.load:.1f}",
                flush=True,
            )
        wall = statistics.median(usage.wall for usage in passes)
        read = statistics.median(reading)
        rows.append(
            {
                "from": place,
                "reading_s": round(read, 2),
                "pass_s": round(wall, 2),
                "times_reading": round(wall / read, 2),
                "cpu_s": round(statistics.median(u.cpu for u in passes), 2),
                "anonymous_gb": round(max(u.anonymous for u in passes) / 1e9, 2),
            }
        )
    print(table(rows))
    return 0


def _files(models: inputs.Models) -> list[Path]:
    return [folder / "model.safetensors" for folder in (models.base, *models.experts)]


def _settle(models: inputs.Models, place: str) -> None:
    """Have the kernel forget the files, or read them into its cache."""
    os.sync()
    if place == "page cache":
        _read(models)
        return
    for path in _files(models):
        source = os.open(path, os.O_RDONLY)
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(source)


def _read(models: inputs.Models) -> float:
    """Return the seconds that reading every file once takes."""
    start = time.perf_counter()
    with mmap.mmap(-1, read_write_floor.PIECE) as buffer:
        for path in _files(models):
            read_write_floor.read(path, buffer)
    return time.perf_counter() - start


def _command(
    options: argparse.Namespace, models: inputs.Models, out: Path
) -> list[str]:
    settings = {
        "base": models.base,
        "experts": ",".join(map(str, models.experts)),
        "densities": "",
        "memory_budget": options.memory_budget,
    }
    start = [*shlex.split(options.merging), "analyze", "--config", "analyze/geometry"]
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    return [*start, "--workdir", str(out), *overrides]


if __name__ == "__main__":
    sys.exit(main())
