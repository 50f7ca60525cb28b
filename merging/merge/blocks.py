"""A block's merge: it is computed, checked, written, and journaled."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from merging.checkpoints import Writer
from merging.merge import checks, kernels, majority, on_host, votes
from merging.merge.behind import Behind
from merging.merge.inputs import BASE
from merging.merge.journal import Done, Elected, Guessed, Journal, checksum_of
from merging.merge.kernels import Gathered
from merging.merge.magnitudes import Put, put_block
from merging.merge.partition import Block, Kind, Partition
from merging.merge.pipeline import Loaded, Pipeline
from merging.merge.reduce import LeafGroup, States
from merging.merge.statistics import label
from merging.methods import Method


class BlockMerger:
    """Merges blocks one by one and hands them to the writer.

    Args:
      cut: the merge's partition.
      pipeline: to read blocks with.
      writer: of the output.
      journal: told of every finished block.
      names: of the models that are read, in order.
    """

    def __init__(
        self,
        cut: Partition,
        pipeline: Pipeline,
        writer: Writer,
        journal: Journal,
        names: Sequence[str],
    ):
        self._cut, self._pipeline = cut, pipeline
        self._writer, self._journal, self._names = writer, journal, names
        self._behind = Behind(at_once=not writer.atomic)
        # Each method's votes so far. They are for a guess: one may miss a block's.
        self._ballots: Counter[Method | None] = Counter()
        for number, done in journal.done.items():
            self._ballots[self._method(number)] += done.ballot

    def run(
        self,
        numbers: Sequence[int],
        states: Callable[[Loaded], tuple[LeafGroup, States]],
        advance: Callable[[int, str], None],
    ) -> None:
        """Merge these blocks of the partition.

        Args:
          numbers: their places.
          states: gives the group and the states of a loaded block's leaves.
          advance: told the bytes that were read and written, and of which leaf.
        """

        def merge(loaded: Loaded) -> None:
            if self._cut.kinds[loaded.block.kind].method is None:
                self._copy(loaded)
            else:
                group, found = states(loaded)
                self.merge(put_block(self._pipeline, loaded, group), group, found)

        for block in self._pipeline.each(numbers, self._models, merge, told=True):
            path = self._cut.paths[block.pieces[0].leaf]
            advance(self._cut.bytes_of(block), path)
        self._behind.finish()

    def close(self) -> None:
        """Write no more than what is being written."""
        self._behind.close()

    def settle(self) -> None:
        """Wait until all blocks so far are written, and the journal has them."""
        self._behind.settle()

    def counted(self, number: int, states: str) -> Sequence[Sequence[int]] | None:
        """Return what a block, merged under guessed states, adds to their pass.

        None if it is not merged, or was under others.
        """
        done = self._journal.done.get(number)
        return done.counted if done and done.states == states else None

    def keep_only(self, numbers: Sequence[int], states: str) -> int:
        """Have those of these blocks merged again whose guessed states were others.

        Args:
          numbers: blocks' places.
          states: the digest of the states that were found.

        Returns:
          How many those are.
        """
        done = self._journal.done
        merged = [done[number] for number in numbers if number in done]
        wrong = [of for of in merged if of.states not in ("", states)]
        for of in wrong:
            self._ballots[self._method(of.number)] -= of.ballot
            del done[of.number]
        return len(wrong)

    def _method(self, number: int) -> Method | None:
        return self._cut.kinds[self._cut.blocks[number].kind].method

    def _models(self, kind: Kind) -> list[int]:
        """Return which models a kind's blocks are read from."""
        everything = list(range(len(kind.read)))
        if kind.method is None or kind.method.needs_base:
            return everything
        return [i for i in everything if self._names[i] != BASE]

    def _copy(self, loaded: Loaded) -> None:
        """Write a block as it is in the first model."""
        self._require_equal(loaded)
        dtype = self._cut.kinds[loaded.block.kind].dtype
        with np.errstate(over="ignore"):  # found, and named, just below
            copied = loaded.models[0].astype(dtype)
        if jnp.issubdtype(dtype, jnp.floating) and kernels.nonfinite(copied):
            self._refuse(loaded, copied)
        self._write(loaded, copied)

    def merge(
        self,
        put: Put,
        group: LeafGroup,
        states: States,
        guessed: Guessed = Guessed(),  # noqa: B008
    ) -> None:
        """Merge a block that is read, and write it.

        One that is not finite under guessed states is left: it may be under others.

        Args:
          put: the block.
          group: of its leaves.
          states: theirs.
          guessed: says so, if the states are not known yet.
        """
        loaded, metadata, block = put.loaded, put.metadata, put.loaded.block
        kind = self._cut.kinds[block.kind]
        dtype = jnp.dtype(kind.dtype)
        method = dataclasses.replace(group.method, name="")
        spread = [[metadata.spread(s) for s in of] for of in states.transforms]
        positive = self._ballots[kind.method] >= 0
        asks = majority.is_asked(method)
        combined = metadata.spread(states.combined)
        if asks:
            combined = np.full(metadata.offset.low.shape, positive)
        placed, combined = put.place((spread, combined))
        told = loaded.statistics
        known = combined, told and self._pipeline.on_devices(block, told)
        split = _split(method, put.models)
        inputs = method, *split, placed, known, put.offset
        how = {"strides": block.strides, "dtype": dtype}

        def merge(base, experts, states, known, offset):
            combined, told = known
            others = experts, states, combined, offset
            how_told = {**how, "matrix": block.matrix, "statistics": told}
            return kernels.merge(base, method, *others, **how_told)

        if not asks:
            merged = np.asarray(on_host.merged(merge, block, *inputs))
            if not kernels.nonfinite(merged):
                self._write(loaded, merged, guessed=guessed)
            elif not guessed.states:
                self._refuse(loaded, merged)
            return

        def merge_and_vote(base, experts, states, known, offset):
            others = experts, states, known[0], offset, np.True_
            return votes.merge_and_vote(base, method, *others, **how, fold=put.fold)

        found = on_host.merged(merge_and_vote, block, *inputs)
        merged, finite, ballot, positions = votes.voted(*found, put.fold)
        values = np.zeros(0, dtype)
        if len(positions):
            few = Gathered(metadata, positions, block.columns)
            if method.granularity == "element":
                chosen = method, *_split(method, loaded.models), spread
                values = _merged_again(*chosen, few, dtype, not positive)
            else:  # an element's rank in its row needs the row
                other = np.full(metadata.offset.low.shape, not positive)
                again = method, *split, placed, (other, None), put.offset
                whole = on_host.computed(merge, block, *again)
                values = few.only(few.elements(np.asarray(whole)))
        if not finite:
            if len(positions) and not kernels.nonfinite(values):
                # Whether that is the majority nobody knows yet; with the other it goes.
                merged, positive = merged.copy(), not positive
                flat = merged.reshape(-1)
                flat[positions], values = values, flat[positions]
            if kernels.nonfinite(merged):
                if not guessed.states:
                    self._refuse(loaded, merged)
                return
        self._ballots[kind.method] += ballot
        elected = Elected(positive, ballot, positions, values)
        self._write(loaded, merged, elected, guessed)

    def _write(
        self,
        loaded: Loaded,
        merged: np.ndarray,
        elected: Elected = Elected(),  # noqa: B008
        guessed: Guessed = Guessed(),  # noqa: B008
    ) -> None:
        kind = self._cut.kinds[loaded.block.kind]
        if merged.dtype != kind.dtype:  # its bytes would go to the wrong places
            raise TypeError(f"merged as {merged.dtype}, to be stored as {kind.dtype}")
        if self._writer.atomic:
            # What is merged may be an input's own memory, which is the next block's.
            merged = merged.copy()
        number, parts = loaded.number, loaded.block.parts(merged)

        def store() -> None:
            checksum = 0
            for piece, part in parts:
                self._writer.write(self._cut.paths[piece.leaf], piece.start, part)
                checksum = checksum_of(part, checksum)
            self._journal.keep_block(number, checksum, elected, guessed)

        held = merged.nbytes + elected.positions.nbytes + elected.values.nbytes
        self._behind.call(store, held)

    def _require_equal(self, loaded: Loaded) -> None:
        """Integers are copied, and must be the same in all models."""
        (first, start), *rest = zip(
            self._names, map(loaded.block.parts, loaded.models), strict=False
        )
        checks.refuse_unequal(
            f"{self._cut.paths[piece.leaf]}: {name!r} differs from {first!r}"
            for name, parts in rest
            for (piece, ours), (_, theirs) in zip(start, parts, strict=True)
            if not np.array_equal(ours, theirs)
        )

    def _refuse(self, loaded: Loaded, merged: np.ndarray) -> None:
        """Say where a block, or what it was merged of, is not finite."""
        kind = self._cut.kinds[loaded.block.kind]
        names = [self._names[i] for i in self._models(kind)]
        models = zip(names, loaded.models, strict=True)
        inputs = [(leaf, n) for n, array in models for leaf in self._bad(loaded, array)]
        inputs += self._bad_statistics(loaded)
        checks.refuse_nonfinite(inputs, self._bad(loaded, merged), merged.dtype)

    def _bad_statistics(self, loaded: Loaded) -> list[tuple[str, str]]:
        """Return (leaf, what they are called) of statistics that are not finite."""
        kind = self._cut.kinds[loaded.block.kind]
        if loaded.statistics is None:
            return []
        experts = [name for name in self._names if name != BASE]
        paths = [self._cut.paths[piece.leaf] for piece in loaded.block.pieces]
        return [
            (", ".join(paths), label(kind.method.statistics, name))
            for name, array in zip(experts, loaded.statistics, strict=True)
            if kernels.nonfinite(array)
        ]

    def _bad(self, loaded: Loaded, array: np.ndarray) -> list[str]:
        """Return the leaves of a block that are not finite in an array of it."""
        return [
            self._cut.paths[piece.leaf]
            for piece, part in loaded.block.parts(array)
            if kernels.nonfinite(part)
        ]


def _split(method: Method, models: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return the base's array, or None, and those of the experts."""
    if not method.needs_base:
        return None, list(models)
    base, *experts = models
    return base, experts


def verified(
    cut: Partition, writer: Writer, journal: Journal, mine: set[int]
) -> dict[int, Done]:
    """Return the blocks that earlier runs finished and that are still whole.

    As they were merged, or with the majority applied; of one that was killed halfway
    between the two, or whose ties were lost, nothing is of use.
    """
    settled = journal.settled()
    stored: dict[int, int] = {}
    found = {}
    for done in journal.records():
        if (number := done.number) not in mine:
            continue
        block = cut.blocks[number]
        # What may change after it was written is read again, wherever it is.
        whole = writer.atomic and not done.ties
        if not whole and number not in stored:
            stored[number] = _stored(cut, block, writer)
        whole = whole or stored[number] in (done.checksum, settled.get(number))
        dtype = cut.kinds[block.kind].dtype
        if whole and journal.ties(done, dtype) is not None:
            found[number] = done
    return found


def _stored(cut: Partition, block: Block, writer: Writer) -> int:
    """Return the checksum of what is stored of a block."""
    dtype, checksum = cut.kinds[block.kind].dtype, 0
    for piece in block.pieces:
        part = np.empty(piece.stop - piece.start, dtype)
        writer.read_into(cut.paths[piece.leaf], piece.start, part)
        checksum = checksum_of(part, checksum)
    return checksum


def _merged_again(
    method: Method,
    base,
    experts,
    spread,
    few: Gathered,
    dtype: np.dtype,
    positive: bool,
) -> np.ndarray:
    """Return what single elements become under a majority."""
    merged = kernels.merge(
        None if base is None else few.elements(base),
        method,
        [few.elements(expert) for expert in experts],
        few.rows(spread),
        np.full(few.offset.low.shape, positive),
        few.offset,
        strides=(0, 1),
        dtype=dtype,
    )
    return few.only(merged)
