"""A plan as plain data, and that data as tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from merging.planning import estimates
from merging.planning.estimates import CostEstimate
from merging.planning.grids import Cost
from merging.planning.settings import Settings
from merging.planning.topologies import Topology

_LIMITS = ("hbm", "compute", "interconnect", "network", "storage", "host")


def estimate_record(
    estimate: CostEstimate, topology: Topology, settings: Settings
) -> dict:
    """Return one estimate as plain data: bytes, seconds, chip-hours."""
    terms = estimates.times(estimate, topology, settings.storage)
    expected = estimates.expected(terms, settings.efficiency)
    memory = estimate.memory
    return {
        "name": estimate.name,
        "what": estimate.what,
        "source": estimate.source,
        "fits": estimates.fits(estimate, topology),
        "bytes_per_device": None
        if memory is None
        else {**memory._asdict(), "peak": memory.peak},
        "collectives": [c._asdict() for c in estimate.collectives],
        "bytes_sent_per_device": sum(c.sent for c in estimate.collectives),
        "bytes_per_host": {
            "read": estimate.work.read,
            "written": estimate.work.written,
        },
        "flops_per_device": estimate.work.flops,
        "memory_traffic_per_device": estimate.work.traffic,
        "seconds": terms,
        "bottleneck": estimates.bottleneck(terms),
        "bound_seconds": estimates.bound(terms),
        "expected_seconds": expected,
        "chip_hours": None
        if expected is None or topology.chip.platform == "cpu"
        else expected * topology.devices / 3600,
    }


def grid_record(costs: Sequence[Cost], notes: Sequence[str]) -> dict:
    """Return a grid as plain data."""
    return {
        "merges": sum(cost.merges for cost in costs),
        "chip_hours": sum(cost.total for cost in costs),
        "sizes": [{**cost._asdict(), "total": cost.total} for cost in costs],
        "assumptions": list(notes),
    }


def as_text(record: dict[str, Any]) -> str:
    """Return a plan's data as tables for a person."""
    where, model = record["topology"], record["model"]
    mesh = " x ".join(f"{n} {size}" for n, size in record["mesh"].items())
    compiler = record["compiler"] or f"counted: {record['missing']}"
    head = (
        f"{model['name']}: {model['parameters']:,} parameters;"
        f" {model['models']} models merged by {model['method']}\n"
        f"{where['name']}: devices {where['devices']:,}, hosts {where['hosts']:,};"
        f" mesh {mesh}; {compiler}"
    )
    blocks = [head, _memory(record), _times(record), _exchanges(record)]
    if record["grid"]:
        blocks.append(_grid(record["grid"]))
    if record["notes"]:
        blocks.append("\n".join(f"Note: {note}." for note in record["notes"]))
    return "\n\n".join(filter(None, blocks))


def size(count: float | None) -> str:
    """Return bytes for a person, with three digits: `8.8 GB`."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def seconds(value: float | None) -> str:
    """Return a time for a person: `1.2 ms`, `18 s`."""
    if value is None:
        return "-"
    for scale, unit in ((1e-6, "us"), (1e-3, "ms")):
        if value < 999.5 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{number(value)} s" if value < 7200 else f"{number(value / 3600)} h"


def number(value: float) -> str:
    """Return a number with three digits, or all before the point: `1.39`, `2,771`."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _memory(record: dict[str, Any]) -> str:
    room = record["topology"]["memory_per_device"]
    parts = ("arguments", "outputs", "scratch")
    lines: list[tuple[str, ...]] = [
        ("bytes on a device", "fits", *parts, "of its memory")
    ]
    for estimate in record["estimates"]:
        found = estimate["bytes_per_device"]
        if found is None:
            continue
        share = "-" if room is None else f"{found['peak'] / room:.1%} of {size(room)}"
        fits = {None: "-", True: "yes", False: "NO"}[estimate["fits"]]
        sizes = [size(found[name]) for name in parts]
        lines.append((estimate["name"], fits, *sizes, share))
    return _table(lines)


def _times(record: dict[str, Any]) -> str:
    estimates = record["estimates"]
    limits = [n for n in _LIMITS if any(n in one["seconds"] for one in estimates)]
    lines: list[tuple[str, ...]] = [
        (
            "time allowed by",
            "of what",
            *limits,
            "bottleneck",
            "expected",
            "chip-hours",
            "host reads",
            "writes",
        )
    ]
    for estimate in estimates:
        hours, host = estimate["chip_hours"], estimate["bytes_per_host"]
        lines.append(
            (
                estimate["name"],
                estimate["what"],
                *(seconds(estimate["seconds"].get(name)) for name in limits),
                estimate["bottleneck"] or "-",
                seconds(estimate["expected_seconds"]),
                "-" if hours is None else number(hours),
                size(host["read"] or None),
                size(host["written"] or None),
            )
        )
    return _table(lines)


def _exchanges(record: dict[str, Any]) -> str:
    lines: list[tuple[str, ...]] = [
        ("exchanges", "of a device", "times", "sent", "largest", "by", "says")
    ]
    for estimate in record["estimates"]:
        for one in estimate["collectives"]:
            lines.append(
                (
                    estimate["name"],
                    one["kind"],
                    f"{one['times']:,}",
                    size(one["sent"]),
                    size(one["largest"]),
                    "network" if one["network"] else "interconnect",
                    estimate["source"],
                )
            )
    return _table(lines) if len(lines) > 1 else "No exchanges between devices."


def _grid(grid: dict[str, Any]) -> str:
    parts = ("training", "merging", "evaluation", "total")
    lines: list[tuple[str, ...]] = [("chip-hours", "merges", *parts, "bounded by")]
    for one in grid["sizes"]:
        hours = [number(one[name]) for name in parts]
        limits = ", ".join(one["limits"])
        lines.append((one["size"], str(one["merges"]), *hours, limits))
    sums = [number(sum(one[name] for one in grid["sizes"])) for name in parts]
    lines.append(("all", str(grid["merges"]), *sums, ""))
    rests = "\n".join(f"- {line}" for line in grid["assumptions"])
    return f"{_table(lines)}\n{rests}"


def _table(lines: Iterable[Sequence[str]]) -> str:
    rows = list(lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
