"""The pass that merges: each block is computed, checked, written, and journaled."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from merging.checkpoints import Writer
from merging.merge import kernels
from merging.merge.inputs import BASE
from merging.merge.journal import Journal
from merging.merge.partition import Block, Group, Plan
from merging.merge.pipeline import Columns, Few, Loaded, Pipeline, each_piece, marked
from merging.merge.statistics import Section, Surveyor
from merging.methods import Method
from merging.runtime.errors import UserError


class Ready(NamedTuple):
    """A section and its statistics; None where each block has its own."""

    section: Section
    states: list[list[Any]] | None


class BlockMerger:
    """Merges blocks one by one and hands them to the writer.

    Args:
      plan: the merge's.
      pipeline: to read blocks with.
      surveyor: for the statistics of leaves that are in memory whole.
      sections: gives a block's.
      writer: of the output.
      journal: told of every finished block.
      names: of the models that are read, in order.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Pipeline,
        surveyor: Surveyor,
        sections: Callable[[Block], Ready],
        writer: Writer,
        journal: Journal,
        names: Sequence[str],
    ):
        self._plan, self._pipeline, self._surveyor = plan, pipeline, surveyor
        self._sections, self._writer, self._journal = sections, writer, journal
        self._names = names

    def run(self, numbers: Sequence[int], advance: Callable[[int, str], None]) -> None:
        """Merge these blocks of the plan."""
        for block in self._pipeline.each(numbers, self._models, self._merge):
            path = self._plan.paths[block.pieces[0].leaf]
            advance(self._plan.bytes_of(block), path)

    def _models(self, group: Group) -> list[int]:
        """Return which models a group's blocks are read from."""
        everything = list(range(len(group.read)))
        if group.method is None or group.method.needs_base:
            return everything
        return [i for i in everything if self._names[i] != BASE]

    def _merge(self, loaded: Loaded) -> None:
        group = self._plan.groups[loaded.block.group]
        if group.method is None:
            self._require_equal(loaded)
            self._write(loaded, loaded.models[0].astype(group.dtype), 0, _NONE, _NONE)
            return
        ready = self._sections(loaded.block)
        states = ready.states
        if states is None:
            states = self._surveyor.states_in_memory(ready.section, loaded)
        columns = Columns(ready.section.layout, ready.section.leaves, loaded)
        host = _inputs(ready.section.method, columns, loaded, states)
        inputs = self._pipeline.on_devices(host)
        method = dataclasses.replace(ready.section.method, name="")
        dtype = jnp.dtype(group.dtype)
        if not asks_majority(method):
            merged = np.asarray(kernels.merge(method, *inputs, True, dtype=dtype))
            self._require_finite(loaded, merged)
            self._write(loaded, merged, 0, _NONE, _NONE)
            return
        # Elements whose votes cancel are merged as if the majority were positive, and
        # again below as if it were negative; which it is, is known at the end.
        packed = np.asarray(kernels.merge_and_vote(method, *inputs, dtype=dtype))
        merged, codes = kernels.unpacked(packed, dtype)
        self._require_finite(loaded, merged)
        ballot = np.count_nonzero(codes == kernels.POSITIVE)
        ballot -= np.count_nonzero(codes == kernels.NEGATIVE)
        positions, values = marked(codes, kernels.CANCELLED), _NONE
        if len(positions):
            few = Few(columns, positions, loaded.block.columns)
            values = _merged_again(method, host, few, dtype)
        self._write(loaded, merged, int(ballot), positions, values)

    def _write(
        self,
        loaded: Loaded,
        merged: np.ndarray,
        ballot: int,
        positions: np.ndarray,
        values: np.ndarray,
    ) -> None:
        checksum = 0
        for piece, part in each_piece(loaded.block, merged):
            self._writer.write(self._plan.paths[piece.leaf], piece.start, part)
            checksum = _checksum(part, checksum)
        positions = positions.astype(np.uint32)
        self._journal.keep_block(loaded.number, checksum, ballot, positions, values)

    def _require_equal(self, loaded: Loaded) -> None:
        """Integers are copied, and must be the same in all models."""
        first, *rest = (_pieces(loaded.block, model) for model in loaded.models)
        names = self._names
        wrong = [
            f"{self._plan.paths[piece.leaf]}: {names[i + 1]!r} differs from "
            f"{names[0]!r}"
            for i, other in enumerate(rest)
            for piece, a, b in zip(loaded.block.pieces, first, other, strict=True)
            if not np.array_equal(a, b)
        ]
        if wrong:
            raise UserError(
                "integer and boolean leaves must be equal in all models, and are "
                "copied; leave these out of the merge:\n  " + "\n  ".join(wrong)
            )

    def _require_finite(self, loaded: Loaded, merged: np.ndarray) -> None:
        if not _has_nonfinite(merged):
            return
        models = self._names[-len(loaded.models) :]
        wrong = [
            f"{self._plan.paths[piece.leaf]} in {name!r}"
            for name, array in zip(models, loaded.models, strict=True)
            for piece, part in zip(
                loaded.block.pieces, _pieces(loaded.block, array), strict=True
            )
            if _has_nonfinite(part)
        ]
        if wrong:
            raise UserError("NaN or Inf in the weights of:\n  " + "\n  ".join(wrong))
        leaves = [
            self._plan.paths[piece.leaf]
            for piece, part in zip(
                loaded.block.pieces, _pieces(loaded.block, merged), strict=True
            )
            if _has_nonfinite(part)
        ]
        raise UserError(
            f"merged weights are beyond the range of {merged.dtype} in "
            f"{', '.join(leaves)}: choose a wider dtype or a smaller scale."
        )


def apply_majority(plan: Plan, writer: Writer, journal: Journal, mine: set[int]) -> int:
    """Write over the elements whose votes cancel, as a negative majority wants them.

    Returns:
      How many there were.
    """
    total = 0
    for number, done in sorted(journal.done().items()):
        if number not in mine or not done.ties:
            continue
        block = plan.blocks[number]
        dtype = plan.groups[block.group].dtype
        positions, values = journal.ties(done, dtype)
        total += len(positions)
        row = 0
        for piece, rows in zip(block.pieces, block.counts, strict=True):
            start, size = row * block.columns, piece.stop - piece.start
            here = (positions >= start) & (positions < start + size)
            row += rows
            if here.any():
                path = plan.paths[piece.leaf]
                part = np.empty(size, dtype)
                writer.read_into(path, piece.start, part)
                part[positions[here] - start] = values[here]
                writer.write(path, piece.start, part)
    return total


def verified(plan: Plan, writer: Writer, journal: Journal, mine: set[int]) -> set[int]:
    """Return the blocks that an earlier run finished and that are still whole."""
    found = set()
    for number, done in journal.done().items():
        if number not in mine:
            continue
        block = plan.blocks[number]
        dtype = plan.groups[block.group].dtype
        parts = [np.empty(p.stop - p.start, dtype) for p in block.pieces]
        for piece, part in zip(block.pieces, parts, strict=True):
            writer.read_into(plan.paths[piece.leaf], piece.start, part)
        checksum = 0
        for part in parts:
            checksum = _checksum(part, checksum)
        if checksum == done.checksum:
            found.add(number)
    return found


def asks_majority(method: Method) -> bool:
    """Return whether elements without a sign of their own take the majority's."""
    return getattr(method.combiner, "zero", "") == "majority"


_NONE = np.zeros(0, np.uint32)
_PART = 2**17


def _pieces(block: Block, array: np.ndarray) -> list[np.ndarray]:
    return [flat for _, flat in each_piece(block, array)]


def _inputs(method: Method, columns: Columns, loaded: Loaded, states) -> tuple:
    """Return what the kernels take: base, experts, states, offset."""
    experts = list(loaded.models)
    base = experts.pop(0) if method.needs_base else None
    spread = [[columns.spread(state) for state in of] for of in states]
    return base, experts, spread, columns.offset


def _merged_again(
    method: Method, inputs: tuple, few: Few, dtype: np.dtype
) -> np.ndarray:
    """Return what single elements become under a negative majority."""
    base, experts, states, _ = inputs
    merged = kernels.merge(
        method,
        None if base is None else few.elements(base),
        [few.elements(expert) for expert in experts],
        few.rows(states),
        few.index,
        False,
        dtype=dtype,
    )
    return few.only(merged)


def _checksum(part: np.ndarray, before: int) -> int:
    """Return a sum over 64-bit words: enough to notice pages that were never stored."""
    words = part.view(np.uint8)
    whole = len(words) // 8 * 8
    found = int(np.add.reduce(words[:whole].view(np.uint64), dtype=np.uint64))
    rest = int.from_bytes(words[whole:].tobytes(), "little")
    return (before * 3 + found + rest + 1) % 2**64


def _has_nonfinite(array: np.ndarray) -> bool:
    """Return whether any element is NaN or infinite, from its bits."""
    unsigned = np.dtype(f"u{array.dtype.itemsize}").type
    infinity = np.array(np.inf, array.dtype).view(unsigned)
    magnitude = unsigned(np.iinfo(unsigned).max >> 1)
    bits = array.reshape(-1).view(unsigned)
    # In parts that stay in the cache.
    return any(
        (bits[at : at + _PART] & magnitude).max() >= infinity
        for at in range(0, len(bits), _PART)
    )
