"""Statistics as further inputs of a merge: those of each expert, leaf by leaf."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from merging import checkpoints
from merging.merge.cutting import matrices
from merging.methods import Method, Statistics
from merging.runtime import tree
from merging.runtime.errors import UserError


def wanted(methods: Iterable[Method | None]) -> list[Statistics]:
    """Return the kinds that some methods want, each once, in the order of names."""
    kinds = {method.statistics for method in methods if method is not None}
    return sorted(kinds - {None})


def require(
    methods: Iterable[Method | None], experts: Iterable[str], given: Mapping[str, Any]
) -> None:
    """Raise unless there are statistics of every expert, where some are wanted.

    Raises:
      UserError: of some there are none; of others that are not merged there are; or no
        method wants any.
    """
    methods, experts = list(methods), list(experts)
    names = sorted({m.name for m in methods if m is not None and m.statistics})
    missing = [name for name in experts if name not in given]
    if names and missing:
        raise UserError(
            f"{', '.join(names)} needs statistics of every expert, and there are none"
            f" of {', '.join(missing)}: gather them by `merging collect`, and give "
            f"statistics={missing[0]}=FOLDER,…"
        )
    if given and not names:
        raise UserError(
            "statistics are given, and no method uses them: leave them out, or take one"
            " that does, such as fisher."
        )
    if strange := [name for name in given if name not in experts]:
        raise UserError(
            f"statistics of {', '.join(strange)}, which is no expert; the experts are "
            f"{', '.join(experts)}."
        )


def covered(
    kind: Statistics, leaves: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    """Return the paths of the leaves that have statistics.

    Args:
      kind: of the statistics.
      leaves: {path: anything with a shape} of those that are merged by them.
      given: {expert: {path: likewise}}.

    Raises:
      UserError: leaves of which some expert has none, or of another shape; all of them.
    """
    found, lines = set(), []
    every = {path for of in given.values() for path in of}
    for path, leaf in leaves.items():
        shape = tree.shape(leaf)
        expected = kind.shape(shape, matrices(path, shape))
        has = [name for name, of in given.items() if path in of]
        if kind.of == "element" or path in every:
            lines += [f"{path}: none of {n}" for n in given if n not in has]
            lines += [
                f"{path}: those of {n} have shape {tree.shape(given[n][path])}, not "
                f"{expected}"
                for n in has
                if tuple(tree.shape(given[n][path])) != expected
            ]
        if has:
            found.add(path)
    if lines:
        raise UserError(
            f"the statistics ({kind.name}) are not those of these models:\n  "
            + "\n  ".join(lines)
        )
    return found


def dtypes(
    opened: Mapping[Statistics, Mapping[str, checkpoints.Source]],
    leaves: Mapping[str, Any],
    recipe: Mapping[str, Method | None],
) -> dict[str, tuple[np.dtype, ...]]:
    """Return the dtypes of the experts' statistics of each leaf that has some.

    Args:
      opened: of each kind those of every expert.
      leaves: {path: anything with a shape} of the models.
      recipe: {path: the method that merges it}.

    Raises:
      UserError: as `covered`.
    """
    found = {}
    for kind, sources in opened.items():
        given = {name: tree.flatten(s.abstract) for name, s in sources.items()}
        merged = {
            path: leaf
            for path, leaf in leaves.items()
            if (of := recipe.get(path)) is not None and of.statistics == kind
        }
        for path in covered(kind, merged, given):
            found[path] = tuple(tree.dtype(of[path]) for of in given.values())
    return found


def open_statistics(
    kind: Statistics, folders: Mapping[str, str]
) -> dict[str, checkpoints.Source]:
    """Return each expert's checkpoint of a kind of statistics, in its folder or itself.

    Raises:
      UserError: one can't be opened.
    """
    opened = {}
    for name in sorted(folders):
        place = folders[name].rstrip("/")
        inside = f"{place}/{kind.name}"
        if "://" in place or os.path.isdir(inside):
            place = inside
        opened[name] = checkpoints.open_checkpoint(place)
    return opened


def label(kind: Statistics, expert: str) -> str:
    """Return what to call an expert's statistics in messages and manifests."""
    return f"{kind.name} of {expert}"
