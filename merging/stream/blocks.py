"""The pass that merges: each block is computed, checked, written, and journaled."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging.checkpoints import Writer
from merging.errors import UserError
from merging.methods import Method
from merging.plan import Block, Group, Plan
from merging.stream import kernels
from merging.stream.inputs import BASE
from merging.stream.journal import Journal, crc32
from merging.stream.pipeline import Columns, Loaded, Pipeline, each_piece
from merging.stream.statistics import Section, Surveyor

# Blocks that are being written at a time.
WRITERS = 2


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
        self._threads = ThreadPoolExecutor(WRITERS, "write")

    def run(self, numbers: Sequence[int], advance: Callable[[int, str], None]) -> None:
        """Merge these blocks of the plan."""
        writing: list[Future] = []
        try:
            with self._pipeline.blocks(numbers, self._models) as blocks:
                for loaded in blocks:
                    if len(writing) == WRITERS:
                        writing.pop(0).result()
                    job = self._merge(loaded)
                    writing.append(self._threads.submit(job))
                    size = self._plan.bytes_of(loaded.block)
                    advance(size, self._plan.paths[loaded.block.pieces[0].leaf])
            for job in writing:
                job.result()
        finally:
            self._threads.shutdown()

    def _models(self, group: Group) -> list[int]:
        """Return which models a group's blocks are read from."""
        everything = list(range(len(group.read)))
        if group.method is None or group.method.needs_base:
            return everything
        return [i for i in everything if self._names[i] != BASE]

    def _merge(self, loaded: Loaded) -> Callable[[], None]:
        group = self._plan.groups[loaded.block.group]
        if group.method is None:
            self._require_equal(loaded)
            merged = _pieces(loaded.block, loaded.models[0].astype(group.dtype))
            return lambda: self._write(loaded, merged, 0, _NONE, merged[0][:0])
        ready = self._sections(loaded.block)
        states = ready.states
        if states is None:
            states = self._surveyor.states_in_memory(ready.section, loaded)
        columns = Columns(ready.section.layout, ready.section.leaves, loaded)
        inputs = self._inputs(ready.section.method, columns, loaded, states)
        method = dataclasses.replace(ready.section.method, name="")
        # Elements whose votes cancel are merged as if the majority were positive, and
        # again below as if it were negative; which it is, is known at the end.
        merged = np.asarray(
            kernels.merge(method, *inputs, True, dtype=jnp.dtype(group.dtype))
        )
        self._require_finite(loaded, merged)
        ballot, positions, values = 0, _NONE, merged.reshape(-1)[:0]
        if asks_majority(method):
            codes = np.asarray(kernels.votes(method, *inputs)).reshape(-1)
            ballot = int(np.count_nonzero(codes == kernels.POSITIVE))
            ballot -= int(np.count_nonzero(codes == kernels.NEGATIVE))
            positions = np.flatnonzero(codes == kernels.CANCELLED).astype(np.uint32)
            if len(positions):
                values = _merged_again(method, inputs, columns, positions, group.dtype)
        pieces = _pieces(loaded.block, merged)
        return lambda: self._write(loaded, pieces, ballot, positions, values)

    def _inputs(self, method: Method, columns: Columns, loaded, states) -> tuple:
        experts = list(loaded.models)
        base = experts.pop(0) if method.needs_base else None
        spread = [[columns.spread(state) for state in of] for of in states]
        return self._pipeline.on_devices((base, experts, spread, columns.offset))

    def _write(
        self,
        loaded: Loaded,
        pieces: list[np.ndarray],
        ballot: int,
        positions: np.ndarray,
        values: np.ndarray,
    ) -> None:
        for piece, part in zip(loaded.block.pieces, pieces, strict=True):
            self._writer.write(self._plan.paths[piece.leaf], piece.start, part)
        crc = crc32(pieces)
        self._journal.keep_block(loaded.number, crc, ballot, positions, values)

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
        if crc32(parts) == done.crc:
            found.add(number)
    return found


def asks_majority(method: Method) -> bool:
    """Return whether elements without a sign of their own take the majority's."""
    return getattr(method.combiner, "zero", "") == "majority"


_NONE = np.zeros(0, np.uint32)


def _pieces(block: Block, array: np.ndarray) -> list[np.ndarray]:
    return [flat for _, flat in each_piece(block, array)]


def _merged_again(
    method: Method,
    inputs: tuple,
    columns: Columns,
    positions: np.ndarray,
    dtype: np.dtype,
) -> np.ndarray:
    """Return what single elements become under a negative majority."""
    base, experts, states, _ = inputs
    width = experts[0].shape[1]
    # Few sizes compile; what fills one up is computed for nothing.
    size = 1 << max(len(positions) - 1, 1).bit_length()
    row, column = np.divmod(np.resize(positions, size).astype(np.int64), width)

    def elements(array):
        return np.asarray(array)[row, column][:, None]

    merged = kernels.merge(
        method,
        None if base is None else elements(base),
        [elements(expert) for expert in experts],
        jax.tree.map(lambda x: np.asarray(x)[row], states),
        columns.index(row, column),
        False,
        dtype=jnp.dtype(dtype),
    )
    return np.asarray(merged).reshape(-1)[: len(positions)]


def _has_nonfinite(array: np.ndarray) -> bool:
    """Return whether any element is NaN or infinite, from its exponent's bits."""
    bits = array.view(f"u{array.dtype.itemsize}")
    exponent = np.array(np.inf, array.dtype).view(bits.dtype)
    return bool(((bits & exponent) == exponent).any())
