"""A merge of models that lie in the devices' memory, sharded over a mesh.

The merge's own engine is asked what it would do: `find_states` drives the method's
reductions, answered here as if the task vectors were normally distributed, and the
programs that it would run are lowered from `merging.merge.kernels` and compiled.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from merging.merge import kernels
from merging.merge.cutting import in_memory_blocks
from merging.merge.partition import Block, Partition, RowMetadata
from merging.merge.reduce import LeafGroup, Stage, States, find_states
from merging.methods import CountQuery, Layout, Method, Sums, Threshold, Votes
from merging.models import DecoderConfig
from merging.planning import collectives, compiling
from merging.planning.collectives import Collective
from merging.planning.compiling import Compiled, Target, TooLarge
from merging.planning.estimates import (
    COUNTED,
    CostEstimate,
    Memory,
    Work,
    repeated,
    total,
)
from merging.planning.sharding_layout import Leaf
from merging.runtime import numerics
from merging.training import statistics

# A task vector's standard deviation: what counts is that most magnitudes are distinct.
_DEVIATION = 1e-3


def estimate(
    method: Method,
    experts: Sequence[str],
    leaves: Mapping[str, Leaf],
    target: Target,
    keeps_base: bool = False,
    told: int = 0,
) -> CostEstimate:
    """Return the merge of experts that lie as these leaves do, over the base if any.

    Args:
      method: that merges them.
      experts: their names.
      leaves: of the base and of each expert.
      target: the devices.
      keeps_base: merge over an earlier result, as a sweep does that tries several λ.
      told: bytes of a device that statistics take beside them (`told_bytes`).
    """
    leaves = dict(sorted(leaves.items()))
    asked = _Asked(method, experts, leaves)
    models = len(experts) + method.needs_base
    model = sum(leaf.bytes for leaf in leaves.values())
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
    hosts = target.topology.hosts
    work = Work(
        traffic=model * asked.reads(models) + model,
        read=models * whole / hosts,
        written=whole / hosts,
    )
    found = _counted(asked, len(experts), models, leaves, target.topology.domain)
    if keeps_base:
        memory = found[0]._replace(arguments=(models + 1) * model, outputs=0)
        found = memory, found[1]
    source = COUNTED
    if target.compiler:
        try:
            found = _compiled(asked, leaves, target, keeps_base)
            source = target.compiler
        except TooLarge as error:
            memory, exchanged = found
            lacking = error.needed - memory.arguments - memory.outputs
            memory = memory._replace(scratch=max(lacking, memory.scratch))
            found, source = (memory, exchanged), f"{target.compiler}: too large"
    found = found[0]._replace(scratch=found[0].scratch + told), found[1]
    each = asked.queries // len(experts)
    text = f"{models} models, counts: {each} for an expert"
    return CostEstimate("in-memory merge", text, found[0], source, found[1], work)


def told_bytes(
    method: Method, experts: int, decoder: DecoderConfig, target: Target
) -> int:
    """Return the bytes of a device that one leaf's statistics of all experts take."""
    if method.statistics is None:
        return 0
    kind = method.statistics.name
    return experts * statistics.bytes_beside(decoder, kind, target.mesh)


class _Asked:
    """What a merge asks of normally distributed task vectors (`reduce.Answers`).

    Attributes:
      counts: {(stage, trials of a query): how often all experts ask it}.
      reductions: (stage, reduction, experts) of the sums and votes.
      stages: by name.
    """

    together = False

    def __init__(
        self, method: Method, experts: Sequence[str], leaves: Mapping[str, Leaf]
    ):
        shapes = tuple(leaf.shape for leaf in leaves.values())
        self.layout, self.experts = Layout(tuple(leaves), shapes), experts
        self.method = method
        self.counts: Counter[tuple[str, int]] = Counter()
        self.reductions: list[tuple[str, Any, tuple[int, ...]]] = []
        self.stages: dict[str, Stage] = {}
        every = tuple(range(len(leaves)))
        self.group = LeafGroup("", method, self.layout, every, ())
        self.states: States = find_states(self.group, experts, 0, self)

    @property
    def queries(self) -> int:
        """How many count queries all experts' searches ask."""
        return self.counts.total()

    def reads(self, models: int) -> int:
        """Return how many times a model's bytes are read, all passes together."""
        # Counting (the base again with every expert), sums and votes, merging, and
        # looking for NaN in what was merged.
        both = 2 if models > len(self.experts) else 1
        reduced = sum(len(of) + both - 1 for *_, of in self.reductions)
        return models + 1 + self.queries * both + reduced

    def selected(self, stage: Stage, expert: int, wanted: Threshold) -> None:
        """Select nothing: no host holds sharded leaves."""

    def sample(self, stage: Stage, expert: int) -> None:
        """Give no guess: none is to be had of sharded leaves."""

    def ends(self, stage: Stage, expert: int) -> None:
        """Return nothing: counts tell."""

    def count(
        self, stage: Stage, turn: int, queries: Mapping[int, CountQuery]
    ) -> dict[int, np.ndarray]:
        """Answer as a normal distribution would."""
        self.stages[stage.name] = stage
        replies = {}
        for expert, query in queries.items():
            self.counts[stage.name, query.threshold.shape[1]] += 1
            every = len(query.threshold) == 1
            sizes = self.layout.sizes
            elements = sizes.sum(keepdims=True) if every else sizes
            replies[expert] = _normal_counts(query, elements[:, None])
        return replies

    def sums(self, stage: Stage, reduction: Sums, experts: Sequence[int]) -> np.ndarray:
        """Answer 1: what is done does not depend on it."""
        self.stages[stage.name] = stage
        self.reductions.append((stage.name, reduction, tuple(experts)))
        weights = stage.method(experts).weights
        return np.ones(reduction.init(self.layout, len(experts), weights).shape[:2])

    def votes(self, stage: Stage, reduction: Votes) -> int:
        """Answer 0."""
        self.stages[stage.name] = stage
        everyone = tuple(range(len(self.experts)))
        self.reductions.append((stage.name, reduction, everyone))
        return 0


def _normal_counts(query: CountQuery, elements: np.ndarray) -> np.ndarray:
    """Return how many of so many normal numbers are above each threshold."""

    def share(keys: np.ndarray) -> np.ndarray:
        bits = np.clip(keys, 0, 0x7F80_0000).astype(np.uint32)
        values = bits.view(np.float32).astype(np.float64)
        return np.vectorize(math.erfc)(values / (_DEVIATION * math.sqrt(2)))

    kept = share(query.threshold)
    if query.cutoff is not None:
        above = share(query.threshold + 1)
        early = query.cutoff / np.maximum(elements, 1)
        kept = above + (kept - above) * early
    return np.round(kept * elements).astype(np.int64)


def _counted(
    asked: _Asked, experts: int, models: int, leaves: Mapping[str, Leaf], domain: int
) -> tuple[Memory, tuple[Collective, ...]]:
    """Return the memory at most, and the counts that are summed over all devices."""
    model = sum(leaf.bytes for leaf in leaves.values())
    largest = max(leaf.elements for leaf in leaves.values())
    memory = Memory(
        models * model,
        0 if models > experts else model,
        # TPUs' compiler fuses it all; that of CPUs keeps three arrays in float32.
        largest * 4 * 3,
    )
    devices = math.prod(next(iter(leaves.values())).sharding.mesh.shape.values())
    if devices == 1:
        return memory, ()
    counts = [4 * trials for _, trials in asked.counts.elements()]
    # Whether the merged block is finite, and the votes.
    counts += [4] * (1 + len(asked.reductions))
    parts = [
        max(leaf.shape[0], 1) if math.prod(leaf.shape) > numerics.COUNT_LIMIT else 1
        for leaf in leaves.values()
    ]
    sizes = [count * part for count in counts for part in parts]
    moved = sum(collectives.sent("all-reduce", size, devices) for size in sizes)
    summed = Collective("all-reduce", devices > domain, len(sizes), moved, max(sizes))
    return memory, (summed,)


def _compiled(
    asked: _Asked, leaves: Mapping[str, Leaf], target: Target, keeps_base: bool
) -> tuple[Memory, tuple[Collective, ...]]:
    """Return what the compiler says of the programs, block by block."""
    like = [leaf.abstract for leaf in leaves.values()]
    working = [numerics.working_dtype(leaf.dtype) for leaf in like]
    cut = in_memory_blocks(asked.layout.paths, like, asked.method, working)
    known: dict[Any, list[tuple[int, Compiled]]] = {}
    memory, exchanged = Memory(0, 0, 0), []
    for block in cut.blocks:
        array = _array(cut, block, like, target)
        key = (array.shape, array.dtype, array.sharding)
        if key not in known:
            programs = _programs(asked, cut, block, array, keeps_base)
            known[key] = [
                (times, compiling.compiled(target, lower)) for times, lower in programs
            ]
        # The merge comes last, and is given all that is there of this block.
        last = known[key][-1][1]
        memory = Memory(
            memory.arguments + last.arguments,
            memory.outputs + last.outputs,
            max(memory.scratch, *(c.scratch for _, c in known[key])),
        )
        exchanged += [repeated(c.collectives, times) for times, c in known[key]]
    return memory, total(exchanged)


def _array(cut: Partition, block: Block, like: Sequence[Any], target: Target) -> Any:
    if block.shape is not None:
        return like[block.pieces[0].leaf]
    (working,) = cut.kinds[block.kind].read
    rows = sum(block.counts)
    whole = jax.sharding.NamedSharding(target.mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct((rows, block.columns), working, sharding=whole)


def _programs(
    asked: _Asked, cut: Partition, block: Block, array: Any, keeps_base: bool
) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Yield (how often it runs, a function that lowers it) for a block's programs."""
    method = dataclasses.replace(asked.method, name="")
    base = array if method.needs_base else None
    metadata = RowMetadata(block, asked.layout, asked.group.leaves)
    size = block.pieces[0].stop

    def spread(stage: Stage, experts: Sequence[int]) -> list[Any]:
        done = len(stage.before[0])
        return [
            [metadata.spread(state) for state in stage.states[i][:done]]
            for i in experts
        ]

    def selected(stage: Stage) -> list[Any]:
        return [metadata.spread(state) for state in stage.selected]

    def count(stage: Stage, trials: int) -> Any:
        experts = stage.experts(0)
        return kernels.count.lower(
            stage.method(experts),
            stage.selection,
            base,
            [array] * len(experts),
            spread(stage, experts),
            selected(stage),
            metadata.offset,
            np.zeros(trials, np.uint32),
            numerics.as_index(np.zeros(trials), size),
            strides=block.strides,
        )

    def reduced(stage: Stage, reduction: Any, experts: Sequence[int]) -> Any:
        return kernels.reduced.lower(
            reduction,
            stage.method(experts),
            base,
            [array] * len(experts),
            spread(stage, experts),
            selected(stage),
            metadata.offset,
            strides=block.strides,
        )

    def merge() -> Any:
        run = kernels.merge if base is None else kernels.merge_over
        over = []
        if keeps_base:
            run, over = kernels.merge_into, [array]
        transforms = asked.states.transforms
        return run.lower(
            *over,
            base,
            method,
            [array] * len(asked.experts),
            [[metadata.spread(s) for s in of] for of in transforms],
            metadata.spread(asked.states.combined),
            metadata.offset,
            strides=block.strides,
            dtype=cut.kinds[block.kind].dtype,
            matrix=block.matrix,
            sharding=array.sharding,
        )

    for (name, trials), times in asked.counts.items():
        stage = asked.stages[name]
        yield times, lambda stage=stage, trials=trials: count(stage, trials)
    for name, reduction, experts in asked.reductions:
        stage = asked.stages[name]
        yield 1, lambda s=stage, r=reduction, e=experts: reduced(s, r, e)
    yield 1, lambda: numerics.all_finite.lower(array)
    yield 1, merge
