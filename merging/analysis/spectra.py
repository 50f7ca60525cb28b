"""Singular spectra and subspaces of task vectors, matrix by matrix.

Each 2-D matrix of a leaf is taken whole, in float64, one vector after the other:
memory is a matrix and its Gram matrix of the shorter side m, and r singular vectors on
either side for each vector. Cost for each: m² n multiplications and an
eigendecomposition, m³; of a 7B model minutes to hours for each vector, so it is asked
for (`spectral_rank`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.analysis import gram
from merging.analysis.kept import Kept, Unkept
from merging.analysis.rows import Row
from merging.analysis.units import Unit
from merging.merge.inputs import Inputs
from merging.runtime import preemption, processes
from merging.runtime.progress import Progress

_RANKS = ("effective_rank", "stable_rank", "participation_ratio")


class Spectrum(NamedTuple):
    """A matrix [m, n] by its largest singular values.

    Attributes:
      squares: its squared singular values, all min(m, n), the largest first.
      left, right: its top r singular vectors, [m, r] and [n, r].
    """

    squares: np.ndarray
    left: np.ndarray
    right: np.ndarray


def spectrum(matrix: np.ndarray, rank: int) -> Spectrum:
    """Return the spectrum of a float64 matrix [m, n] by its shorter side's Gram matrix.

    Squares below 1e-12 of the largest are lost to rounding, which no quantity here
    feels. Directions whose singular value is that small are left out of the subspaces.
    """
    turned = matrix.shape[0] > matrix.shape[1]
    a = matrix.T if turned else matrix
    values, vectors = np.linalg.eigh(a @ a.T)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    squares = np.where(values > gram.ROUNDING * values[0], values, 0.0)
    top = min(rank, int(np.count_nonzero(squares)))
    short = vectors[:, :top]
    long = a.T @ short / np.sqrt(squares[:top])
    return Spectrum(squares, *((long, short) if turned else (short, long)))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return ‖Uᵀ V‖²_F / r: the mean squared cosine of principal angles, in 0..1.

    1 for the same subspace, r / m on average for random ones of R^m. r is the smaller
    of the two dimensions. As in arXiv 2110.06274 and in Gargiulo et al. 2025, TSV
    (arXiv 2412.00081), up to the norm.

    Args:
      one, other: orthonormal columns [m, r] each.
    """
    r = min(one.shape[1], other.shape[1])
    return float(np.sum((one.T @ other) ** 2) / r) if r else 0.0


def measure(
    inputs: Inputs,
    paths: Sequence[str],
    every: Sequence[Unit],
    vectors: Sequence[str],
    rank: int,
    kept: Kept | Unkept,
) -> list[dict[str, Any]]:
    """Return what is found of each matrix, as plain JSON; see `rows`.

    Args:
      inputs: the models.
      paths: of the leaves.
      every: the units.
      vectors: names, in order.
      rank: r of the subspaces.
      kept: where to keep what was done; processes share the matrices out through it.
    """
    matrices = [
        (number, i)
        for number, unit in enumerate(every)
        if len(unit.shape) >= 2 and min(unit.shape[-2:]) > 1
        for i in range(math.prod(unit.shape[:-2]))
    ]
    known = {tuple(found["matrix"]): found for found in kept.records("spectra")}
    mine = matrices[processes.index() :: processes.count()]
    missing = [matrix for matrix in mine if matrix not in known]
    found = []
    work = sum(_work(every[number]) for number, _ in missing) * len(vectors)
    with Progress(work, "singular values", check=preemption.raise_if_asked) as shown:
        for number, i in missing:
            unit = every[number]
            shown.note(paths[unit.leaf])
            found.append(_of(inputs, paths[unit.leaf], unit, i, vectors, rank, shown))
            found[-1]["matrix"] = [number, i]
            kept.keep_record("spectra", found[-1])
    processes.barrier("the spectra are written")
    records = kept.records("spectra") or found
    return sorted(records, key=lambda of: of["matrix"])


def _work(unit: Unit) -> int:
    """Return what one matrix's singular values cost, in multiplications."""
    rows, columns = unit.shape[-2:]
    return rows * columns * min(rows, columns)


def _of(
    inputs: Inputs,
    path: str,
    unit: Unit,
    i: int,
    vectors: Sequence[str],
    rank: int,
    shown: Progress,
) -> dict[str, Any]:
    shape = unit.shape[-2:]
    start = unit.start + i * math.prod(shape)
    base, each = _read(inputs.base, path, start, shape), []
    for name in vectors:
        theirs = _read(inputs.experts[name], path, start, shape)
        each.append(spectrum(theirs - base, rank))
        shown.advance(_work(unit))
    pairs = [(a, b) for a in range(len(each)) for b in range(a + 1, len(each))]
    return {
        "layer": unit.layer,
        "kind": unit.kind,
        "shape": list(shape),
        "ranks": {
            name: [getattr(gram, name)(one.squares) for one in each] for name in _RANKS
        },
        "left": [overlap(each[a].left, each[b].left) for a, b in pairs],
        "right": [overlap(each[a].right, each[b].right) for a, b in pairs],
    }


def _read(source: Any, path: str, start: int, shape: tuple[int, ...]) -> np.ndarray:
    dtype = _dtype(source, path)
    out = np.empty(math.prod(shape), dtype)
    source.read_into(path, start, out)
    return out.astype(np.float64).reshape(shape)


def _dtype(source: Any, path: str) -> np.dtype:
    node = source.abstract
    for key in path.split("/"):
        node = node[key]
    return np.dtype(node.dtype)


def rows(
    records: Sequence[Mapping[str, Any]], vectors: Sequence[str], rank: int
) -> Iterator[Row]:
    """Yield the rows of the matrices: of each, and means over a kind and the model.

    Quantities: matrix_effective_rank, matrix_stable_rank, matrix_participation_ratio
    (`gram`, of a vector's squared singular values); left_overlap, right_overlap
    (`overlap` of the top r left and right singular vectors, `at` = r: of the space that
    columns lie in, as many dimensions as there are rows, and that rows lie in), and
    left_overlap_of_random, right_overlap_of_random, what random subspaces of that size
    have there. Which side is the output's is the checkpoint's: of [fan_in, fan_out], as
    this program's own, the right one; of PyTorch's linear layers the left one.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for one in records:
        by_kind.setdefault(one["kind"], []).append(one)
    groups = [("model", None, "", records)] if records else []
    groups += [("kind", None, kind, of) for kind, of in sorted(by_kind.items())]
    groups += [("unit", one["layer"], one["kind"], [one]) for one in records]
    for by, layer, kind, of in groups:
        where = {"by": by, "layer": layer, "kind": kind}
        for name in _RANKS:
            for v, vector in enumerate(vectors):
                mean = np.mean([one["ranks"][name][v] for one in of])
                row = Row(f"matrix_{name}", float(mean), of=(vector,), **where)
                yield row._replace(unit="directions")
        pairs = [(a, b) for i, a in enumerate(vectors) for b in vectors[i + 1 :]]
        for side in ("left", "right"):
            for p, pair in enumerate(pairs):
                mean = float(np.mean([one[side][p] for one in of]))
                yield Row(f"{side}_overlap", mean, of=pair, at=rank, **where)
        for axis, side in enumerate(("left", "right")):
            chance = [min(rank / one["shape"][axis], 1.0) for one in of]
            mean = float(np.mean(chance))
            yield Row(f"{side}_overlap_of_random", mean, at=rank, **where)
