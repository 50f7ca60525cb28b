"""Parameters as one nested dict: leaf paths, named map, sizes, structural differences.

A leaf's path is its keys joined by ``/``. Leaves may be JAX or NumPy arrays or
anything else with a shape and a dtype, such as ``jax.ShapeDtypeStruct``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from merging.runtime.errors import UserError

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Return ``{path: leaf}`` in the tree's own order.

    Raises:
      UserError: a key is no string, is empty, or holds a ``/``; lists all of them.
    """
    leaves: dict[str, Any] = {}
    wrong: list[str] = []

    def visit(node: Tree, prefix: str) -> None:
        for key, value in node.items():
            if not isinstance(key, str) or not key or "/" in key:
                wrong.append(f"{prefix}{key!r}")
            elif isinstance(value, Mapping):
                visit(value, f"{prefix}{key}/")
            else:
                leaves[f"{prefix}{key}"] = value

    if not isinstance(tree, Mapping):
        raise UserError(f"parameters must be a nested dict, not {type(tree).__name__}.")
    visit(tree, "")
    if wrong:
        raise UserError(
            "parameter keys must be non-empty strings without '/': " + ", ".join(wrong)
        )
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict whose `flatten` is `leaves`.

    Raises:
      UserError: one path is both a leaf and a folder; lists all of them.
    """
    clashes = sorted({p for p in leaves for q in _folders(p) if q in leaves})
    if clashes:
        raise UserError("these paths run through another leaf: " + ", ".join(clashes))
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def map_named(function: Callable[..., Any], tree: Tree, *rest: Tree) -> dict[str, Any]:
    """Return the tree of ``function(path, leaf, *leaves of the rest)``."""
    others = [flatten(other) for other in rest]
    return unflatten(
        {
            path: function(path, leaf, *(other[path] for other in others))
            for path, leaf in flatten(tree).items()
        }
    )


def cast(tree: Tree, to: Any) -> dict[str, Any]:
    """Return the tree with leaves of another dtype; those that have it are the same."""
    wanted = np.dtype(to)
    return map_named(
        lambda _, leaf: leaf if leaf.dtype == wanted else leaf.astype(wanted), tree
    )


def byte_count(tree: Tree) -> int:
    """Return the number of bytes of all leaves, sharding and padding left aside."""
    return sum(
        math.prod(shape(leaf)) * jnp.dtype(dtype(leaf)).itemsize
        for leaf in flatten(tree).values()
    )


def shape(leaf: Any) -> tuple[int, ...]:
    """Return the shape of an array, an abstract array, or a Python number."""
    return tuple(leaf.shape) if hasattr(leaf, "shape") else np.shape(leaf)


def dtype(leaf: Any) -> np.dtype:
    """Return the dtype of an array, an abstract array, or a Python number."""
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def dtype_class(leaf: Any) -> str:
    """Return ``float``, ``integer``, ``bool``, or the dtype's own name."""
    kind = dtype(leaf)
    for name, parent in (("float", jnp.floating), ("integer", jnp.integer)):
        if jnp.issubdtype(kind, parent):
            return name
    return str(kind)


def differences(trees: Mapping[str, Tree]) -> list[str]:
    """Return a line for every leaf in which a tree departs from the first one.

    Reads shapes and dtypes only. Departures are leaves that are missing, extra, or
    of another shape or class of dtype (bfloat16 and float32 are one class).
    """
    (first, reference), *rest = ((name, flatten(t)) for name, t in trees.items())
    lines = []
    for name, leaves in rest:
        for path in sorted(reference.keys() | leaves.keys()):
            if path not in leaves:
                lines.append(f"{path}: missing from {name!r}")
            elif path not in reference:
                lines.append(f"{path}: in {name!r}, but not in {first!r}")
            else:
                ours, theirs = leaves[path], reference[path]
                for what, of in (("shape", shape), ("dtype class", dtype_class)):
                    if of(ours) != of(theirs):
                        lines.append(
                            f"{path}: {what} {of(ours)} in {name!r}, "
                            f"{of(theirs)} in {first!r}"
                        )
    return lines


def require_same_structure(trees: Mapping[str, Tree]) -> None:
    """Raise one UserError that lists every line of `differences`, if there are any."""
    lines = differences(trees)
    if lines:
        raise UserError(
            "the models do not have the same leaves; merge models of one architecture, "
            "or select the leaves they share:\n  " + "\n  ".join(lines)
        )


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]
