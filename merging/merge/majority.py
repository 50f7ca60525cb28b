"""The majority of signs that TIES asks for, and what is written over when it is known.

Where the votes on an element's sign cancel, TIES takes the sign that most elements of
the *model* lean to, and that is known only when every block was merged. A pass to find
it first would read every input once more. Instead each block counts its votes, and is
merged as if the majority were that of the blocks before it; the few elements whose
votes cancel are merged again as if it were the other, and kept in the journal with
their positions. When all blocks are done, the votes are added up, and in blocks that
took the wrong sign, often the first few alone, those values are written over.
"""

import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from merging.checkpoints import Writer
from merging.merge import checks, kernels
from merging.merge.journal import Journal, checksum_of
from merging.merge.partition import Partition
from merging.methods import Method, Votes
from merging.runtime import processes


def is_asked(method: Method) -> bool:
    """Return whether elements without a sign of their own take the majority's."""
    return isinstance(method.combiner.reduction(), Votes)


def settle(
    cut: Partition, writer: Writer, journal: Journal, mine: Collection[int]
) -> None:
    """Find the majority sign under each method, and write what depends on it.

    Args:
      cut: the merge's partition.
      writer: of the output.
      journal: has all of this process's blocks.
      mine: these.
    """
    asking = [method for method in cut.methods if is_asked(method)]
    if not asking:
        return

    def method_of(number: int) -> Method | None:
        return cut.kinds[cut.blocks[number].kind].method

    negative = journal.negative()
    if negative is None:
        votes = np.zeros(len(asking), np.int64)
        for number, done in journal.done.items():
            if method_of(number) in asking:
                votes[asking.index(method_of(number))] += done.ballot
        processes.all_reduce([votes])
        negative = [
            i
            for i, (method, total) in enumerate(zip(asking, votes, strict=True))
            if not method.combiner.reduction().finish(int(total))
        ]
        journal.keep_negative(negative)
    losing = {asking[i] for i in negative}
    voted = [number for number in mine if method_of(number) in asking]
    positive = {number: method_of(number) not in losing for number in voted}
    _apply(cut, writer, journal, positive)


def _apply(
    cut: Partition, writer: Writer, journal: Journal, positive: Mapping[int, bool]
) -> None:
    """Write over elements whose votes cancel, in blocks that took the wrong majority.

    `positive` is the majority, for each of this process's blocks that depend on one.
    """
    held = threading.local()  # one buffer a thread: new pages cost as much as reading

    def write_over(number: int) -> None:
        pieces = cut.blocks[number].pieces
        size = max(piece.stop - piece.start for piece in pieces)
        size *= cut.kinds[cut.blocks[number].kind].dtype.itemsize
        if not hasattr(held, "buffer") or len(held.buffer) < size:
            held.buffer = np.empty(size, np.uint8)
        checksum = _written_over(cut, writer, journal, number, held.buffer)
        journal.keep_settled(number, checksum)

    threads = ThreadPoolExecutor(2, "majority")
    try:
        done = (journal.done[number] for number in sorted(positive))
        wrong = [of for of in done if of.ties and of.positive != positive[of.number]]
        list(threads.map(write_over, (of.number for of in wrong)))
    finally:
        threads.shutdown(cancel_futures=True)


def _written_over(
    cut: Partition, writer: Writer, journal: Journal, number: int, buffer: np.ndarray
) -> int:
    """Give a block the other majority; return the checksum of what it is then."""
    done, block = journal.done[number], cut.blocks[number]
    dtype = cut.kinds[block.kind].dtype
    positions, values = journal.ties(done, dtype)  # in order
    row = checksum = 0
    for piece, rows in zip(block.pieces, block.counts, strict=True):
        start, size = row * block.columns, piece.stop - piece.start
        first, last = np.searchsorted(positions, [start, start + size])
        row += rows
        path = cut.paths[piece.leaf]
        part = buffer[: size * dtype.itemsize].view(dtype)
        writer.read_into(path, piece.start, part)
        if first < last:
            part[positions[first:last] - start] = values[first:last]
            # The inputs were seen to be finite.
            if kernels.nonfinite(values[first:last]):
                checks.refuse_nonfinite((), [path], dtype)
            writer.write(path, piece.start, part)
        checksum = checksum_of(part, checksum)
    return checksum
