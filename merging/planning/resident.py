"""A merge of models that lie in the devices' memory, sharded over a mesh."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from merging.merge import memory_blocks as layouts
from merging.merge import memory_kernels as kernels
from merging.merge.memory_blocks import Block
from merging.merge.memory_counting import drive
from merging.methods import Ballot, Kept, Layout, Method
from merging.planning import collectives, compiling
from merging.planning.collectives import Collective
from merging.planning.compiling import Compiled, Target, TooLarge
from merging.planning.phases import COUNTED, Memory, Phase, Work, repeated, total
from merging.planning.placing import Leaf
from merging.runtime import numerics


def forecast(
    method: Method, experts: Sequence[str], leaves: Mapping[str, Leaf], target: Target
) -> Phase:
    """Return the merge of experts that lie as these leaves do, over the base if any.

    Args:
      method: that merges them.
      experts: their names.
      leaves: of the base and of each expert.
      target: the devices.
    """
    leaves = dict(sorted(leaves.items()))
    layout = Layout(tuple(leaves), tuple(leaf.shape for leaf in leaves.values()))
    search = _searched(method, layout, experts[0])
    models = len(experts) + method.needs_base
    model = sum(leaf.bytes for leaf in leaves.values())
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
    hosts = target.topology.hosts
    work = Work(
        traffic=model * _reads(search, len(experts), models) + model,
        read=models * whole / hosts,
        written=whole / hosts,
    )
    found = _counted(search, len(experts), models, leaves, target.topology.domain)
    source = COUNTED
    if target.compiler:
        try:
            found = _compiled(method, search, len(experts), leaves, target)
            source = target.compiler
        except TooLarge as error:
            memory, exchanged = found
            lacking = error.needed - memory.arguments - memory.outputs
            memory = memory._replace(scratch=max(lacking, memory.scratch))
            found, source = (memory, exchanged), f"{target.compiler}: too large"
    text = f"{models} models, counts: {search.questions} for an expert"
    return Phase("resident merge", text, found[0], source, found[1], work)


class _Search(NamedTuple):
    """What a method asks of the model, if its task vectors are normally distributed.

    Attributes:
      states: of each transform.
      asked: how many trials each question had, by the transform that asks.
      ballots: whether the combiner asks for the votes.
      verdict: what it makes of them.
    """

    states: list[Any]
    asked: dict[int, list[int]]
    ballots: bool
    verdict: Any

    @property
    def questions(self) -> int:
        return sum(map(len, self.asked.values()))


def _searched(method: Method, layout: Layout, expert: str) -> _Search:
    """Return what is asked of one expert; the answers come from the distribution."""
    states: list[Any] = []
    asked: dict[int, list[int]] = {}
    sizes = layout.sizes

    def answer(question: Kept) -> np.ndarray:
        asked.setdefault(len(states), []).append(question.threshold.shape[1])
        total = len(question.threshold) == 1
        elements = sizes.sum(keepdims=True) if total else sizes
        return _normal_counts(question, elements[:, None])

    for transform in method.of(0):
        states.append(drive(transform.inquire(layout, expert, 0), answer))
    ballots: list[Ballot] = []
    verdict = drive(method.combiner.inquire(), lambda q: ballots.append(q) or 0)
    return _Search(states, asked, bool(ballots), verdict)


def _normal_counts(question: Kept, elements: np.ndarray) -> np.ndarray:
    """Return how many of so many normal numbers are above each threshold."""

    def share(keys: np.ndarray) -> np.ndarray:
        bits = np.clip(keys, 0, 0x7F80_0000).astype(np.uint32)
        values = bits.view(np.float32).astype(np.float64)
        return np.vectorize(math.erfc)(values / (1e-3 * math.sqrt(2)))

    kept = share(question.threshold)
    if question.cutoff is not None:
        above = share(question.threshold + 1)
        early = question.cutoff / np.maximum(elements, 1)
        kept = above + (kept - above) * early
    return np.round(kept * elements).astype(np.int64)


def _reads(search: _Search, experts: int, models: int) -> int:
    """Return how many times a model's bytes are read, all passes together."""
    # Looking for NaN, counting (the base again with every expert), votes, merging.
    both = 2 if models > experts else 1
    return models * (2 + search.ballots) + experts * search.questions * both


def _counted(
    search, experts, models, leaves, domain
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
    counts = [4 * n for asked in search.asked.values() for n in asked] * experts
    counts += [4] * (models + search.ballots)
    parts = [
        max(leaf.shape[0], 1) if math.prod(leaf.shape) > numerics.COUNT_LIMIT else 1
        for leaf in leaves.values()
    ]
    sizes = [count * part for count in counts for part in parts]
    moved = sum(collectives.sent("all-reduce", size, devices) for size in sizes)
    summed = Collective("all-reduce", devices > domain, len(sizes), moved, max(sizes))
    return memory, (summed,)


def _compiled(method, search, experts, leaves, target):
    like = [leaf.abstract for leaf in leaves.values()]
    working = [numerics.working_dtype(leaf.dtype) for leaf in like]
    blocks = layouts.plan(like, working, pack=method.cut == "element")
    known: dict[Any, list[tuple[int, Compiled]]] = {}
    memory, exchanged = Memory(0, 0, 0), []
    for block in blocks:
        array = _array(block, like, target)
        key = (array.shape, array.dtype, array.sharding)
        if key not in known:
            programs = _programs(method, search, experts, block, array)
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


def _array(block: Block, like: Sequence[Any], target: Target) -> jax.ShapeDtypeStruct:
    if block.rows is None:
        return like[block.leaves[0]]
    whole = NamedSharding(target.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(block.shape, block.working, sharding=whole)


def _programs(
    method: Method, search: _Search, experts: int, block: Block, array: Any
) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Yield (how often it runs, a function that lowers it) for a block's programs."""
    base = array if method.needs_base else None
    states = [block.spread(state) for state in search.states]
    yield experts + method.needs_base, lambda: numerics.all_finite.lower(array)
    for place, asked in search.asked.items():
        trials = max(asked)
        yield (
            experts * len(asked),
            lambda place=place, trials=trials: kernels.count.lower(
                method.of(0)[:place],
                base,
                array,
                states[:place],
                block.offset,
                np.zeros(trials, np.uint32),
                numerics.as_index(np.zeros(trials), math.prod(array.shape)),
                strides=block.strides,
            ),
        )
    arrays, each = [array] * experts, [states] * experts
    if search.ballots:
        yield (
            1,
            lambda: kernels.ballot.lower(
                method, base, arrays, each, block.offset, strides=block.strides
            ),
        )
    merge = kernels.merge if base is None else kernels.merge_over
    yield (
        1,
        lambda: merge.lower(
            base,
            method,
            arrays,
            each,
            search.verdict,
            block.offset,
            strides=block.strides,
            dtype=block.dtype,
            sharding=array.sharding,
        ),
    )
