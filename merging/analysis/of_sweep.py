"""Every analysis of every group of experts of a sweep, and their numbers together.

`merging analyze --config analyze/sweep`. A group is a base with the experts of one run;
WORKDIR/parts has a workdir for each analysis of each group, which continues alone.
WORKDIR/analysis.json has of all of them what describes a whole model, with the group's
name in `group`: no layers, no pair with a merge in it, of paths the barriers and the
means over the datasets along them. And of each group

  params   parameters of its models

Models in a family's own layout are converted where others of their group have the
decoder's leaves, into WORKDIR/models: a given base whose experts the sweep trained.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging import sweep
from merging.analysis import connectivity, describing, place, rows, saturation
from merging.analysis.rows import Row
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.runtime import config_keys, preemption, processes, text
from merging.runtime.errors import UserError, nearest
from merging.sweep.finished import Group

_KEYS = {
    "analysis": "sweep",
    "sweep": str,
    "sizes": (),
    "bases": (),
    "parts": ("geometry", "saturation", "connectivity"),
    "geometry": ConfigDict(),
    "saturation": ConfigDict(),
    "connectivity": ConfigDict(),
    "merges": (),
}
_PARTS = {"geometry": describing, "saturation": saturation}
_PARTS["connectivity"] = connectivity


def run(config: Any, workdir: Path) -> bool:
    """Do what a config says (see configs/analyze/sweep.py), into a workdir.

    Returns:
      Whether there was something to do.

    Raises:
      UserError: no finished sweep, models that can't be analysed, settings that an
        analysis does not have.
      Preempted: the system asked to stop; what is finished is kept.
    """
    config = config_keys.completed(
        config, _KEYS, "merging analyze", "analyze/sweep", remote=("sweep",)
    )
    processes.initialize(workdir / "logs")
    if processes.count() > 1:
        raise UserError("the analysis of a sweep runs in one process.")
    values = config.to_dict()
    groups, suite = _chosen(values)
    for name in values["parts"]:
        # Before the workdir is this config's: a corrected one would be refused.
        asked = _config(groups[0], name, values, suite)
        example = f"analyze/{name}"
        config_keys.completed(asked, _PARTS[name].KEYS, "merging analyze", example)
    with place.held(workdir, values):
        place.claim(workdir, values)
        alike = [_alike(group, workdir / "models") for group in groups]
        parts = [(g, name) for g in alike for name in values["parts"]]
        worked, made = False, []
        for number, (group, name) in enumerate(parts, 1):
            preemption.raise_if_asked()
            print(f"{number} of {len(parts)}: {name} of {group.name}", file=sys.stderr)
            folder = workdir / "parts" / group.name.replace("/", "_") / name
            asked = _config(group, name, values, suite)
            shared = {} if name == "geometry" else {"data": workdir / "data"}
            worked |= _PARTS[name].run(asked, folder, **shared)
            found = rows.read(folder, name)["rows"]
            made += [row._replace(group=group.name) for row in found if _whole(row)]
        sizes = [
            Row("params", g.params, unit="parameters", group=g.name) for g in groups
        ]
        rows.write(workdir, "sweep", [*sizes, *made], settings=values)
    return worked


def _chosen(values: Mapping[str, Any]) -> tuple[list[Group], dict[str, Any]]:
    """Return the groups that a config asks for, and the suite."""
    if not values["sweep"]:
        raise UserError("name the workdir of a sweep: --config.sweep=DIR.")
    if not values["parts"]:
        raise UserError(f"parts is empty; name some of {', '.join(_PARTS)}.")
    for name in values["parts"]:
        if name not in _PARTS:
            raise nearest("analysis", name, _PARTS)
    groups, suite = sweep.groups(values["sweep"])
    for key, of in (("sizes", "size"), ("bases", "base")):
        have = list(dict.fromkeys(getattr(group, of) for group in groups))
        for name in values[key]:
            if name not in have:
                raise nearest(f"{of} of {values['sweep']}", name, have)
    chosen = [
        group
        for group in groups
        if (not values["sizes"] or group.size in values["sizes"])
        and (not values["bases"] or group.base in values["bases"])
    ]
    if values["merges"] and not any(group.merges for group in chosen):
        raise UserError(
            f"{values['sweep']} kept no merges: sweep with --config.keep_merges=true, "
            "or analyse the experts alone, with --config.merges= (nothing)."
        )
    for name in values["merges"]:
        have = [merge for group in chosen for merge in group.merges]
        if name not in have:
            raise nearest("kept merge", name, list(dict.fromkeys(have)))
    return chosen, suite


def _alike(group: Group, folder: Path) -> Group:
    """Return the group with all models in one layout: the decoder's, if any has it."""

    def stacked(path: str) -> bool:
        return families.open_model(path, group.start).stacked

    # What a sweep makes has the decoder's; a base and experts that were given may not.
    given = {"": group.start, **group.experts}
    own = {name: path for name, path in given.items() if not stacked(path)}
    if len(own) == len(given) and not (group.merges or group.multitask):
        return group
    for name, path in own.items():
        of = group.name if name else f"{group.size}/{group.base}"  # all seeds' base
        at = folder / of.replace("/", "_") / (name or "base")
        described = group.start  # an adapter has no config.json of its own
        made = convert(path, str(at), format="orbax", auxiliary_files=described)
        own[name] = str(made)
    start = own.pop("", group.start)
    return group._replace(start=start, experts={**group.experts, **own})


def _config(
    group: Group, name: str, values: Mapping[str, Any], suite: Mapping[str, Any]
) -> ConfigDict:
    """Return the config of one analysis of one group."""
    found = {
        "analysis": name,
        "base": group.start,
        "experts": tuple(f"{c}={path}" for c, path in group.experts.items()),
        **values[name],
    }
    merges = dict(group.merges)
    if name == "connectivity":
        merges = {m: merges[m] for m in values["merges"] if m in merges}
        merges |= {"multitask": group.multitask} if group.multitask else {}
    if name != "saturation":
        found["merged"] = tuple(f"{m}={path}" for m, path in merges.items())
    if name != "geometry":
        found["suite"] = dict(suite)
    return ConfigDict(found)


def _whole(row: Row) -> bool:
    """Return whether a row is about whole models, and no pair with a merge in it."""
    if row.by not in ("", "model"):
        return False
    if row.quantity in ("loss", "error"):
        return len(row.of) == 2  # no dataset's
    pair = len(row.of) == 2 and row.by == "model"
    return not (pair and any("_K" in name for name in row.of))


def summary(made: Sequence[Row]) -> str:
    """Return what is found of each group, as a table."""
    lines = [("group", "effective rank", "K*", "mean barrier", "disentanglement error")]
    groups = dict.fromkeys(row.group for row in made)
    lines += [(g, *_line([row for row in made if row.group == g])) for g in groups]
    return text.table(lines, right=range(1, 5))


def _line(of: Sequence[Row]) -> Iterator[str]:
    def mean(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{sum(known) / len(known):.4g}" if known else "–"

    ranks = [r for r in of if r.quantity == "effective_rank" and r.by == ""]
    yield mean([ranks[-1].value] if ranks else [])
    stars = [r for r in of if r.quantity == "threshold" and r.of == ("parameters",)]
    yield mean([r.value for r in stars])
    yield mean([r.value for r in of if r.quantity == "loss_barrier"])
    total = [r for r in of if r.quantity == "disentanglement_error" and not r.of]
    yield ", ".join(f"{r.value:.3g} at α {r.at:g}" for r in total) or "–"
