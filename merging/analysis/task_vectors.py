"""The geometry of task vectors, in one pass over checkpoints of any size.

A pass reads every block of every model once, turns it into task vectors in float32 (or
float64), and adds up dot products and counts (`totals`). Where the overlap of kept
supports is asked for, one pass before it finds the thresholds, exactly, over the whole
model, as TIES' trim does. Blocks are shared out over the processes; memory is the
budget, 2.2 KB for each unit and pair of vectors, and about 0.4 GB.
"""

import bisect
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from merging import methods
from merging.analysis.kept import Kept, Unkept
from merging.analysis.totals import Statistics, Totals
from merging.analysis.units import PIECE, Unit, cut
from merging.merge import checks, kernels
from merging.merge.inputs import Inputs
from merging.merge.partition import Block, Kind, Partition, Piece
from merging.merge.passes import Passes
from merging.merge.pipeline import Loaded, Pipeline
from merging.merge.reduce import LeafGroup, find_states
from merging.runtime import numerics, preemption, processes
from merging.runtime.progress import Progress

# Seconds between two times that totals are written down.
KEEP_EVERY = 20.0


class Group(NamedTuple):
    """Units that are looked at together.

    Attributes:
      by: ``model``, ``layer``, ``kind`` (of matrix), or ``unit`` (one of a layer).
      layer: the layer's number, for a layer and for a unit that lies in one.
      kind: the leaf's path without the layer's number, for a kind and for a unit.
      statistics: what was found; vectors in the order of `Geometry.names`.
    """

    by: str
    layer: int | None
    kind: str
    statistics: Statistics


class Geometry(NamedTuple):
    """What `measure` found.

    Attributes:
      experts: names of the K experts, in the order they were given.
      merged: of the merged models, likewise; they come after the experts.
      groups: the model, then layers, kinds and units.
      densities: whose kept supports were counted.
    """

    experts: tuple[str, ...]
    merged: tuple[str, ...]
    groups: tuple[Group, ...]
    densities: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all vectors, the experts' first."""
        return self.experts + self.merged

    @property
    def model(self) -> Statistics:
        """The statistics of the whole model."""
        return self.groups[0].statistics


def measure(
    inputs: Inputs,
    experts: Sequence[str],
    merged: Sequence[str] = (),
    *,
    densities: Sequence[float] = (),
    only: Callable[[str], bool] = lambda path: True,
    budget: int = 10**9,
    kept: Kept | Unkept | None = None,
) -> Geometry:
    """Return the geometry of the task vectors of models.

    Cost: K + M + 1 models are read once, and once more (as a rule) for each density;
    (K + M)² multiplications in float64 for each coordinate.

    Args:
      inputs: the models; experts and merged ones alike are `Inputs.experts`.
      experts: names of the K experts, in the order that counts.
      merged: names of the M merged models.
      densities: of trims whose kept supports are compared, each in 0..1.
      only: whether a leaf takes part, by its path.
      budget: bytes of memory for blocks; changes no bit of the result.
      kept: where to keep what was done, and to go on from; nowhere by default.

    Raises:
      UserError: the budget is too small, a weight is NaN or Inf.
      Preempted: the system asked to stop; what is finished is in `kept`.
    """
    kept = kept or Unkept()
    partition, every = cut(inputs.abstracts, only, budget)
    order = [list(inputs.experts).index(name) for name in (*experts, *merged)]
    sizes = [unit.size for unit in every]
    totals = Totals(sizes, len(order), len(experts), densities)
    done = kept.resume(totals)
    share = partition.share(processes.index(), processes.count())
    mine = [number for number in share if number not in done]
    pipeline = Pipeline(partition, inputs.sources, True, budget)
    each = [_read_for(partition, block) for block in partition.blocks]
    asked = tuple(densities) if len(done) < len(each) else ()
    work = sum(each[i] for i in mine) + len(asked) * sum(each[i] for i in share)
    try:
        with Progress(work, "analyze", check=preemption.raise_if_asked) as shown:
            if done:
                text = f"{len(done)} of {len(each)} blocks were finished before."
                shown.message(text)
            passes = Passes(partition, pipeline, inputs.names, kept, share, shown)
            trims = [_thresholds(inputs, partition, passes, d)[order] for d in asked]
            blocks = _Pass(partition, every, inputs.names, order, totals, trims, kept)
            blocks.run(pipeline, mine, shown)
    finally:
        pipeline.close()
    kept.join(totals)
    groups = tuple(_groups(every, totals))
    return Geometry(tuple(experts), tuple(merged), groups, tuple(densities))


def _read_for(partition: Partition, block: Block) -> int:
    """Return the bytes that are read for a block."""
    read = partition.kinds[block.kind].read
    return sum(dtype.itemsize for dtype in read) * block.elements


def _thresholds(
    inputs: Inputs, partition: Partition, passes: Passes, density: float
) -> np.ndarray:
    """Return the magnitude key from which each vector's global trim keeps: [n]."""
    trimmed = methods.compose(
        "trimmed",
        methods.trim(density, "global", "keep_all"),
        combiner=methods.combiners.sum(),
        scale=1.0,
    )
    leaves = tuple(range(len(partition.paths)))
    blocks = tuple(range(len(partition.blocks)))
    layout = partition.layout(leaves)
    group = LeafGroup(f"density {density!r}", trimmed, layout, leaves, blocks)
    states = find_states(group, list(inputs.experts), 0, passes)
    return np.array([of[0].threshold[0] for of in states.transforms], layout.key_dtype)


class _Pass:
    """The pass that adds up: blocks are worked on in threads, one of them adds."""

    def __init__(
        self,
        partition: Partition,
        every: Sequence[Unit],
        names: Sequence[str],
        order: Sequence[int],
        totals: Totals,
        trims: Sequence[np.ndarray],
        kept: Kept | Unkept,
    ):
        self._partition, self._names, self._kept = partition, names, kept
        self._order, self._totals, self._trims = list(order), totals, trims
        self._starts: dict[int, list[tuple[int, int]]] = {}
        for number, unit in enumerate(every):
            self._starts.setdefault(unit.leaf, []).append((unit.start, number))
        self._lock, self._done = threading.Lock(), set()

    def run(self, pipeline: Pipeline, numbers: Sequence[int], shown: Progress) -> None:
        """Work on these blocks, and write down now and then what was found."""
        written = time.monotonic()
        try:
            for block in pipeline.each(numbers, _every_model, self._work):
                path = self._partition.paths[block.pieces[0].leaf]
                shown.advance(_read_for(self._partition, block), path)
                if time.monotonic() - written > KEEP_EVERY:
                    self._keep()
                    written = time.monotonic()
        finally:
            self._keep()

    def _keep(self) -> None:
        with self._lock:
            self._kept.keep(self._totals, self._done)

    def _work(self, loaded: Loaded) -> None:
        block, (base, *rest) = loaded.block, loaded.models
        base, *models = (m.reshape(-1) for m in (base, *(rest[i] for i in self._order)))
        partials, row = [], 0
        for piece, rows in zip(block.pieces, block.counts, strict=True):
            start = row * block.columns
            part = slice(start, start + piece.stop - piece.start)
            deltas = _deltas(base[part], [model[part] for model in models])
            found = self._totals.partial(self._unit(piece), deltas, self._trims)
            if not np.isfinite(found.sums).all():
                self._refuse(loaded)
            partials.append(found)
            row += rows
        with self._lock:
            self._totals.add(partials)
            self._done.add(loaded.number)

    def _unit(self, piece: Piece) -> int:
        starts = self._starts[piece.leaf]
        return starts[bisect.bisect_right(starts, (piece.start, math.inf)) - 1][1]

    def _refuse(self, loaded: Loaded) -> None:
        wrong = [
            (self._partition.paths[piece.leaf], name)
            for name, array in zip(self._names, loaded.models, strict=True)
            for piece, part in loaded.block.parts(array)
            if kernels.nonfinite(part)
        ]
        leaves = [self._partition.paths[piece.leaf] for piece in loaded.block.pieces]
        checks.refuse_nonfinite(wrong, leaves, "float32 (differences)")


def _every_model(kind: Kind) -> range:
    return range(len(kind.read))


def _deltas(base: np.ndarray, models: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the task vectors of neighbours, `PIECE` at a time: [models, m].

    By NumPy, in pieces that stay in a cache with all that is made of them. Each is a
    difference in the precision that a merge would take it in, and widened if another
    model's is wider.
    """
    each = [numerics.working_dtype(base.dtype, model.dtype) for model in models]
    widest = np.result_type(*each)
    for at in range(0, len(base), PIECE):
        part = slice(at, at + PIECE)
        origins = {dtype: base[part].astype(dtype) for dtype in set(each)}
        deltas = np.empty((len(models), len(base[part])), widest)
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the sums
            for delta, model, dtype in zip(deltas, models, each, strict=True):
                np.subtract(model[part].astype(dtype), origins[dtype], out=delta)
        yield deltas


def _groups(every: Sequence[Unit], totals: Totals) -> Iterator[Group]:
    yield Group("model", None, "", totals.of(range(len(every))))
    for layer in sorted({unit.layer for unit in every} - {None}):
        chosen = [i for i, unit in enumerate(every) if unit.layer == layer]
        yield Group("layer", layer, "", totals.of(chosen))
    for kind in sorted({unit.kind for unit in every}):
        chosen = [i for i, unit in enumerate(every) if unit.kind == kind]
        yield Group("kind", None, kind, totals.of(chosen))
    for i, unit in enumerate(every):
        yield Group("unit", unit.layer, unit.kind, totals.of([i]))
