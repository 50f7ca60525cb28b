"""Statistics such as `merging collect` gathers, made up for any experts."""

import zlib

import numpy as np

from merging.merge.cutting import matrices
from merging.runtime import tree


def statistics_of(method, experts):
    """Return {expert: statistics} such as a method wants, or None if it wants none.

    They follow from the expert's name and the leaf's path, whatever else is there.
    """
    kind = method.statistics
    if kind is None:
        return None

    def of(name, path, leaf):
        rng = np.random.default_rng(zlib.crc32(f"{name} {path}".encode()))
        if kind.of == "element":
            return rng.uniform(0, 1, leaf.shape) ** 4
        n = matrices(path, leaf.shape).inputs
        inputs = rng.normal(size=(*leaf.shape[:-2], 2 * n, n)) * rng.uniform(0.1, 2, n)
        inputs[..., 0] = 0 if n % 2 else inputs[..., 0]
        return np.swapaxes(inputs, -1, -2) @ inputs / (2 * n)

    def is_linear(path, leaf):
        return kind.of == "element" or (
            matrices(path, leaf.shape) is not None and "embed" not in path
        )

    return {
        name: tree.unflatten(
            {
                path: of(name, path, leaf).astype(np.float32)
                for path, leaf in tree.flatten(expert).items()
                if tree.dtype_class(leaf) == "float" and is_linear(path, leaf)
            }
        )
        for name, expert in experts.items()
    }
