"""Planning: what merging, scoring and fine-tuning need on chips that are not there.

Programs are compiled ahead of time for the topology where there is a compiler for it,
else their bytes are counted from shapes; the times are bounds from what the chips'
makers say. No weight is read and no array is made.
"""

from collections.abc import Sequence
from typing import Any

from merging.planning import (
    child,
    compiling,
    decoding,
    grids,
    memory_merge,
    rendering,
    streamed_merge,
)
from merging.planning.compiling import Target, use_no_accelerator
from merging.planning.estimates import CostEstimate
from merging.planning.rendering import as_text
from merging.planning.settings import Settings, settings
from merging.planning.sharding_layout import sharding_layout
from merging.planning.topologies import Topology, topology
from merging.planning.workloads import Workload, workload
from merging.runtime.errors import nearest

__all__ = ["PARTS", "as_text", "plan", "topology", "use_no_accelerator"]


# What there is to plan.
PARTS = ("merge", "scoring", "training", "grid")


def plan(
    config: Any,
    where: Topology | str,
    *,
    compile: bool = True,
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """Return what a config's work needs on a topology, as plain data.

    Args:
      config: of a sweep (configs/scaling_curves), a plan (configs/plan) or a merge
        (configs/merge).
      where: the chips, `topology(…)` or its name, such as "v5p:4x4x8".
      compile: False counts everything, which takes a second.
      parts: of `PARTS`.

    Raises:
      UserError: an unknown part, an impossible config, a mesh that does not fit.

    >>> import merging
    >>> from merging.runtime import config
    >>> palm = config.load("configs/plan/palm_64b.py")
    >>> found = merging.plan(palm, "v5p:4x4x8", compile=False, parts=["merge"])
    >>> [estimate["name"] for estimate in found["estimates"]]
    ['streamed merge', 'in-memory merge']
    """
    for part in parts:
        if part not in PARTS:
            raise nearest("part of a plan", part, PARTS)
    chips = topology(where) if isinstance(where, str) else where
    apart = compile and chips.chip.platform == "tpu" and compiling.has_libtpu()
    found = plan_here(config, chips, compile=compile and not apart, parts=parts)
    if apart:
        _compile_apart(found, config, chips, parts)
    return found


# What is compiled, and the estimate of it.
_COMPILED = {"merge": "in-memory merge", "scoring": "scoring"}
_COMPILED |= {"training": "training step"}


def _compile_apart(
    found: dict[str, Any], config: Any, chips: Topology, parts: Sequence[str]
) -> None:
    """Put what a compiler says, in a process of its own, in the place of counts."""
    counted = {estimate["name"] for estimate in found["estimates"]}
    for part in (p for p in parts if _COMPILED.get(p) in counted):
        try:
            compiled = child.planned(config, chips, part)
        except child.Failed as failed:
            found["notes"].append(
                f"{_COMPILED[part]} is counted: compiling it for {chips.label} failed "
                f"({failed})"
            )
            found["missing"] = "the compiler failed (see the notes)"
            continue
        better = {estimate["name"]: estimate for estimate in compiled["estimates"]}
        found["estimates"] = [better.get(e["name"], e) for e in found["estimates"]]
        found["compiler"] = compiled["compiler"] or found["compiler"]
        found["missing"] = compiled["missing"]
        new = [note for note in compiled["notes"] if note not in found["notes"]]
        found["notes"] += new


def plan_here(
    config: Any, chips: Topology, *, compile: bool, parts: Sequence[str]
) -> dict[str, Any]:
    """Return a plan as `plan` does, compiled in this very process."""
    config, about = workload(config)
    chosen = settings(config.to_dict(), chips.slices)
    target = compiling.target(chips, chosen.mesh, compile=compile)
    notes = list(about.notes)
    found = _estimates(about, chosen, target, parts)
    if any("too large" in estimate.source for estimate in found):
        notes.append("what a compiler found too large was counted for the rest")
    return {
        "topology": {
            "name": chips.label,
            "devices": chips.devices,
            "hosts": chips.hosts,
            "memory_per_device": chips.chip.memory,
        },
        "model": {
            "name": about.name,
            "parameters": about.parameters,
            "models": about.models,
            "method": about.method.name if about.method else "several methods",
        },
        "mesh": dict(target.mesh.shape),
        "compiler": target.compiler,
        "missing": target.missing,
        "estimates": [rendering.estimate_record(p, chips, chosen) for p in found],
        "grid": _grid(about, chosen, chips, notes) if "grid" in parts else None,
        "notes": notes,
    }


def _estimates(
    about: Workload, chosen: Settings, target: Target, parts: Sequence[str]
) -> list[CostEstimate]:
    found = []
    if "merge" in parts:
        found.append(streamed_merge.estimate(about, target.topology))
    if about.decoder is None:
        return found
    leaves = sharding_layout(about.decoder, target.mesh)
    if "merge" in parts and about.method is not None:
        what = about.method, about.experts, leaves, target
        told = memory_merge.told_bytes(
            about.method, len(about.experts), about.decoder, target
        )
        how = {"keeps_base": about.grid is not None, "told": told}
        found.append(memory_merge.estimate(*what, **how))
    if "scoring" in parts:
        found.append(decoding.score(about.decoder, leaves, chosen.scoring, target))
    if "training" in parts:
        found.append(decoding.train(about.decoder, chosen.training, target))
    return found


def _grid(
    about: Workload, chosen: Settings, topology: Topology, notes: list[str]
) -> dict[str, Any] | None:
    if about.grid is None:
        return None
    target = compiling.target(topology, chosen.mesh, compile=False)
    notes += grids.warnings(about.grid, chosen, target)
    costs = grids.costs(about.grid, chosen, target)
    if costs is None:
        notes.append("no hours for the grid, as nothing is known of the chips' speed")
        return None
    return rendering.grid_record(costs, grids.assumptions(about.grid, chosen))
