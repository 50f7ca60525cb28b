"""`merging analyze --config analyze/geometry`, and the same of models in memory."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from merging.analysis import (
    figures,
    geometry_rows,
    place,
    rows,
    spectra,
    task_vectors,
    units,
)
from merging.analysis.kept import Kept
from merging.analysis.task_vectors import Geometry
from merging.analysis.totals import DEPTH
from merging.checkpoints import Source, open_checkpoint
from merging.merge import manifest
from merging.merge.inputs import (
    BASE,
    Inputs,
    expert_names,
    open_inputs,
    require_mergeable,
)
from merging.merge.partition import Partition
from merging.runtime import config_keys, memory, processes, storage, text, tree
from merging.runtime.errors import UserError
from merging.runtime.tree import Tree

KEYS = {
    "analysis": "geometry",
    "base": str,
    "experts": tuple,
    "merged": (),
    "densities": (0.2,),
    "spectral_rank": 0,
    "only": "",
    "memory_budget": "1GB",
}
_SHOWN = ("settings", "inputs")
Models = Mapping[str, Tree | str | os.PathLike]


def geometry(
    base: Tree | str | os.PathLike,
    experts: Models,
    merged: Models | None = None,
    *,
    densities: Sequence[float] = (0.2,),
) -> Geometry:
    """Return the geometry of task vectors, of models in memory or checkpoints.

    Args:
      base: θ₀, a nested dict of arrays, or a checkpoint's folder.
      experts: θᵢ by name, likewise; their order is that of the result.
      merged: merged models by name.
      densities: see `geometry.measure`.

    Raises:
      UserError: the models can't be compared, names that occur twice, a NaN or Inf.

    >>> import jax.numpy as jnp, merging
    >>> found = merging.analysis.geometry(
    ...     {"w": jnp.zeros(2)},
    ...     {"qa": {"w": jnp.array([3.0, 4.0])}, "nli": {"w": jnp.array([4.0, -3.0])}},
    ... )
    >>> found.model.gram.tolist()
    [[25.0, 0.0], [0.0, 25.0]]
    """
    merged = dict(merged or {})
    _require_some(experts)
    named = _together(list(experts), list(merged), {**experts, **merged})
    opened = {name: _opened(model) for name, model in named.items()}
    inputs = Inputs(
        _opened(base), {n: opened[n] for n in sorted(opened)}, tuple(range(len(opened)))
    )
    require_mergeable(inputs)
    return task_vectors.measure(
        inputs, list(experts), list(merged), densities=densities
    )


class _InMemory:
    """A model in memory as a source of blocks."""

    uri, format, skeleton = "", "memory", None

    def __init__(self, leaves: Tree):
        self._leaves = {p: np.asarray(a) for p, a in tree.flatten(leaves).items()}
        self.abstract = tree.unflatten(
            {
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                for path, leaf in self._leaves.items()
            }
        )

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements from `start` on."""
        out[:] = self._leaves[path].reshape(-1)[start : start + len(out)]


def _opened(model: Any) -> Any:
    if isinstance(model, str | os.PathLike):
        return open_inputs(None, {"model": os.fspath(model)}).experts["model"]
    return _InMemory(model)


def run(config: ConfigDict, workdir: Path) -> bool:
    """Do what a config says (see configs/analyze/geometry.py), into a workdir.

    Returns:
      Whether there was something to do.

    Raises:
      UserError: as `geometry`, or the workdir is another run's.
      Preempted: the system asked to stop; the same call goes on.
    """
    config = config_keys.completed(
        config,
        KEYS,
        "merging analyze",
        "analyze/geometry",
        remote=("base", "experts", "merged"),
    )
    memory.settle_process()
    processes.initialize(workdir / "logs")
    values = config.to_dict()
    only, budget = _check(values), storage.parse_size(values.pop("memory_budget"))
    with place.held(workdir, values):
        inputs, experts, merged = open_models(values)
        of = identity(inputs.everything, values)
        if is_done(workdir, "geometry", of):
            return False
        partition, every = units.cut(inputs.abstracts, only, budget)
        place.claim(workdir, values)
        cut = {"blocks": block_digest(partition), "pieces": [units.PIECE, DEPTH]}
        kept = Kept(workdir, of | cut)
        found = task_vectors.measure(
            inputs,
            experts,
            merged,
            densities=values["densities"],
            only=only,
            budget=budget,
            kept=kept,
        )
        made = geometry_rows.rows(found)
        if rank := values["spectral_rank"]:
            records = spectra.measure(
                inputs, partition.paths, every, found.names, rank, kept
            )
            made += spectra.rows(records, found.names, rank)
        if processes.is_first():
            rows.write(
                workdir,
                "geometry",
                made,
                settings=of["settings"],
                inputs=of["inputs"],
                experts=experts,
                merged=merged,
                groups=geometry_rows.matrices(found),
            )
            figures.write(workdir, figures.of_geometry(made))
        processes.barrier("the analysis is written")
        kept.forget()
    return True


def open_each(
    values: Mapping[str, Any],
) -> tuple[dict[str, Source], list[str], list[str]]:
    """Open a config's models, which are not held against each other.

    Returns:
      {name: model}, the base first, and the names of experts and of merged models.

    Raises:
      UserError: one can't be opened, or names occur twice; there is no base, or
        nothing beside it.
    """
    if not values["base"]:
        raise UserError("name the base (base).")
    experts = expert_names(values["experts"])
    merged = expert_names(values["merged"])
    if not merged:
        _require_some(experts)
    named = _together(list(experts), list(merged), {**experts, **merged})
    base = open_checkpoint(values["base"])
    others = {name: open_checkpoint(uri, base) for name, uri in named.items()}
    return {BASE: base, **others}, list(experts), list(merged)


def open_models(values: Mapping[str, Any]) -> tuple[Inputs, list[str], list[str]]:
    """Open a config's base, experts and merged models.

    Returns:
      All of them, the experts' names and the merged models', in the order given.
    """
    experts = expert_names(values["experts"])
    merged = expert_names(values["merged"])
    _require_some(experts)
    named = _together(list(experts), list(merged), {**experts, **merged})
    return open_inputs(values["base"], named), list(experts), list(merged)


def identity(
    sources: Mapping[str, Source], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the results of an analysis depend on, as plain JSON."""
    described = processes.broadcast(lambda: manifest.describe_inputs(sources, ""))
    return {
        "settings": dict(values),
        "inputs": described,
        "versions": manifest.versions(),
        "x64": bool(jax.config.jax_enable_x64),
    }


def block_digest(partition: Partition) -> str:
    """Return a hash of where the blocks are cut: what a block's number means."""
    return storage.digest(repr(partition.blocks))


def is_done(workdir: Path, analysis: str, of: Mapping[str, Any]) -> bool:
    """Return whether a workdir holds this very analysis."""

    def look() -> bool:
        try:
            found = rows.read(workdir, analysis)
        except UserError:
            return False
        plain = json.loads(json.dumps({key: of[key] for key in _SHOWN}))
        return all(found[key] == value for key, value in plain.items())

    return processes.broadcast(look)


def _require_some(experts: Collection[str]) -> None:
    if not experts:
        raise UserError("no experts: name at least one checkpoint (experts).")


def _together(
    experts: Sequence[str], merged: Sequence[str], named: Mapping[str, Any]
) -> dict[str, Any]:
    twice = sorted(set(experts) & set(merged) | {BASE} & set(named))
    if twice:
        raise UserError(
            f"{', '.join(twice)}: the name of an expert and of a merged model; write "
            "NAME=PATH to give another."
        )
    return dict(named)


def _check(values: Mapping[str, Any]) -> Any:
    """Return whether a leaf takes part, as a function; refuse what can't be."""
    faults = []
    if not values["base"]:
        faults.append("name the base (base): task vectors are differences from it")
    wrong = [d for d in values["densities"] if not 0 < d <= 1]
    if wrong:
        faults.append(f"densities must lie in 0..1, not {wrong}")
    if values["spectral_rank"] < 0:
        faults.append("spectral_rank must be 0 or more")
    try:
        pattern = re.compile(values["only"])
    except re.error as error:
        faults.append(f"only = {values['only']!r} is no pattern: {error}")
    if faults:
        raise UserError("\n".join(faults))
    return lambda path: pattern.search(path) is not None


def summary(made: Sequence[rows.Row]) -> str:
    """Return the model's numbers as a table."""
    return as_table([row for row in made if row.by == "model"])


def as_table(made: Sequence[rows.Row]) -> str:
    """Return rows as a table."""
    lines: list[tuple[object, ...]] = [("quantity", "of", "at", "value", "from", "to")]
    for row in made:
        of = ", ".join(row.of) if len(row.of) <= 2 else f"{len(row.of)} experts"
        numbers = (row.at, row.value, row.low, row.high)
        cells = ("" if x is None else f"{x:.4g}" for x in numbers)
        lines.append((row.quantity, of, *cells))
    return text.table(lines)
