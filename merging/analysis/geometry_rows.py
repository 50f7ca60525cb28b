"""The numbers of a geometry, as rows.

Quantities, all of task vectors Δᵢ = θᵢ − θ₀ (of merged models Δ_m likewise), n the
coordinates of the part of the model that a row is about:

  norm                      ‖Δᵢ‖₂, in the weights' units; of each vector
  cosine                    ⟨Δᵢ, Δⱼ⟩ / (‖Δᵢ‖ ‖Δⱼ‖); of each pair
  sign_disagreement         of the coordinates that both move, the share in which they
                            differ in sign (Yadav et al. 2023, section 3); of each pair
  kept_overlap              |A ∩ B| / |A ∪ B| of the supports that the global trim keeps
                            at the density `at`; of each pair
  touched                   share of the n coordinates that a vector moves
  coordinates               (Σ v²)² / Σ v⁴: how many coordinates carry a merged vector
  effective_rank,           of the stack, the K × n matrix of experts (`gram`)
  stable_rank,
  participation_ratio
  stack_touched             share of coordinates that any expert moves
  stack_coordinates         (Σ e)² / Σ e², e the energy Σᵢ Δᵢ² of a coordinate: how many
                            carry the stack
"""

from collections.abc import Iterator

import numpy as np

from merging.analysis import gram
from merging.analysis.rows import Row
from merging.analysis.task_vectors import Geometry, Group


def rows(found: Geometry, level: tuple[str, ...] = ("model", "layer", "kind")):
    """Return the rows of a geometry.

    Args:
      found: of `geometry.measure`.
      level: which groups get rows of their own.
    """
    groups = [group for group in found.groups if group.by in level]
    return [row for group in groups for row in _rows(found, group)]


def _rows(found: Geometry, group: Group) -> Iterator[Row]:
    s, names, k = group.statistics, found.names, len(found.experts)
    where = {"by": group.by, "layer": group.layer, "kind": group.kind}
    moved = np.diag(s.moved)
    for i, name in enumerate(names):
        yield Row("norm", gram.norms(s.gram)[i], of=(name,), unit="weight", **where)
        yield Row("touched", moved[i] / s.elements, of=(name,), **where)
    cosines = gram.cosines(s.gram)
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            of = (names[i], names[j])
            yield Row("cosine", cosines[i, j], of=of, **where)
            opposed = _share(s.opposed[i, j], s.moved[i, j])
            yield Row("sign_disagreement", opposed, of=of, **where)
            for density, kept in s.kept.items():
                union = kept[i, i] + kept[j, j] - kept[i, j]
                overlap = _share(kept[i, j], union)
                yield Row("kept_overlap", overlap, of=of, at=density, **where)
    energy = np.diag(s.gram)
    for m, name in enumerate(found.merged):
        carrying = _share(energy[k + m] ** 2, s.fourth[m])
        yield Row("coordinates", carrying, of=(name,), unit="coordinates", **where)
    spectrum, of = gram.eigenvalues(s.gram[:k, :k]), found.experts
    for name in ("effective_rank", "stable_rank", "participation_ratio"):
        value = getattr(gram, name)(spectrum)
        yield Row(name, value, of=of, unit="directions", **where)
    yield Row("stack_touched", s.touched / s.elements, of=of, **where)
    carrying = _share(energy[:k].sum() ** 2, s.energy_squared)
    yield Row("stack_coordinates", carrying, of=of, unit="coordinates", **where)


def _share(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole > 0 else None


def matrices(found: Geometry) -> list[dict]:
    """Return the matrices behind the rows, as plain JSON, a group each.

    {"by", "layer", "kind", "elements", "gram", "moved", "opposed", "kept": {density:
    …}}: [K + M, K + M] each, vectors in the order of `Geometry.names`.
    """
    return [
        {
            "by": group.by,
            "layer": group.layer,
            "kind": group.kind,
            "elements": group.statistics.elements,
            "gram": group.statistics.gram.tolist(),
            "moved": group.statistics.moved.tolist(),
            "opposed": group.statistics.opposed.tolist(),
            "kept": {
                str(density): kept.tolist()
                for density, kept in group.statistics.kept.items()
            },
        }
        for group in found.groups
    ]
