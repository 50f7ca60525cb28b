"""λ of each expert for groups of leaves: which leaves share one, and as a merge."""

import re
from typing import NamedTuple

import numpy as np

from merging.merge import rules
from merging.merge.rules import Spec
from merging.models import hf
from merging.runtime import text
from merging.runtime.errors import UserError, nearest
from merging.sweep.space import Recipe

KINDS = ("layer", "tensor", "task")
_METHOD = "task_arithmetic"


class Groups(NamedTuple):
    """G groups of leaves, with a coefficient for each expert each.

    Attributes:
      names: of the groups.
      patterns: of the leaves' paths in the checkpoint, likewise; none where all leaves
        are one group.
      of: (path of a decoder's leaf, its group's number, or those of its layers).
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    of: tuple[tuple[str, int | tuple[int, ...]], ...]


def groups(model: hf.Model, kind: str) -> Groups:
    """Return the groups of a model's leaves.

    Args:
      model: whose checkpoint's names tell the layers.
      kind: `layer`, the leaves of a layer together and each leaf outside of layers;
        `tensor`, each leaf by itself, as AdaMerging's authors have it; `task`, all.

    Raises:
      UserError: another kind, or leaves that hold all layers together.
    """
    if kind not in KINDS:
        raise nearest("coefficients", kind, KINDS)
    tensors = {
        path: (path,) if model.stacked else leaf.tensors
        for path, leaf in model.leaves.items()
    }
    names = [name for of in tensors.values() for name in of]
    if kind == "layer" and not any(map(rules.layer_leaf, names)):
        raise UserError(
            f"{model.source.uri}: its leaves hold all layers together, so that no rule "
            "can tell them apart. Write it and the experts as safetensors first "
            "(merging convert --config convert/to_safetensors), or choose "
            "--config.coefficients=tensor or task."
        )
    label = {name: _label(name, kind) for name in names}
    found = list(dict.fromkeys(label.values()))
    number = {name: found.index(of) for name, of in label.items()}
    of = tuple(
        (path, tuple(number[name] for name in own))
        if model.leaves[path].stacked and not model.stacked
        else (path, number[own[0]])
        for path, own in tensors.items()
    )
    patterns = () if kind == "task" else tuple(pattern for _, pattern in found)
    return Groups(tuple(name for name, _ in found), patterns, of)


def _label(name: str, kind: str) -> tuple[str, str]:
    """Return the name and the pattern of a checkpoint's leaf's group."""
    if kind == "task":
        return "all", ""
    leaf = rules.layer_leaf(name) if kind == "layer" else None
    if leaf is None:
        return name, f"^{re.escape(name)}$"
    layer = f"{leaf.before}{leaf.number}"
    return layer, f"^{re.escape(layer)}(?![0-9])"


def recipe(found: Groups, values: np.ndarray, start: float) -> Recipe:
    """Return the merge by coefficients [G, K], of the experts as they were given.

    Args:
      found: the groups.
      values: float32.
      start: λ of leaves that no group has, such as buffers.
    """
    merges = [str(_spec(row)) for row in values]
    if not found.patterns:
        return Recipe(merges[0], ())
    lines = zip(found.patterns, merges, strict=True)
    others = str(Spec(_METHOD, {"scale": start}))
    return Recipe(others, tuple(f"{p} {rules.ARROW} {merge}" for p, merge in lines))


def _spec(row: np.ndarray) -> Spec:
    return Spec(_METHOD, {"scale": 1.0, "weights": tuple(map(text.shortest, row))})
