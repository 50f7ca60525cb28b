"""One merge of checkpoints, from its plan to the published output."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from merging import checkpoints
from merging.checkpoints import Writer
from merging.checkpoints.unfinished import COORDINATES
from merging.merge import (
    blocks,
    card,
    majority,
    manifest,
    spaces,
    speculation,
    statistics,
)
from merging.merge.cutting import partition
from merging.merge.digests import Digesting, Digests
from merging.merge.inputs import Inputs
from merging.merge.journal import STAMPS, Journal
from merging.merge.partition import Partition
from merging.merge.passes import Passes
from merging.merge.pipeline import Loaded, Pipeline
from merging.merge.reduce import LeafGroup, Stage, States, find_states
from merging.merge.speculation import Guess
from merging.methods import CountQuery, Method
from merging.runtime import preemption, processes, storage, text
from merging.runtime.errors import UserError, listed
from merging.runtime.progress import Progress


class Job(NamedTuple):
    """A merge, checked and ready to be planned.

    Attributes:
      inputs: the models.
      recipe: {path of each float leaf: the method that merges it}, its numbers in
        the order of `inputs.experts`; None keeps the base's.
      output: the folder to make.
      format: `safetensors` or `orbax`.
      seed: of random masks.
      budget: bytes of memory for blocks.
      dtype: of the merged leaves; None is the first model's.
      shard_bytes: the most in one safetensors file.
      settings: what was asked for, as plain JSON; for the manifest.
      adapter: what is made of the merged leaves, if not they themselves are the output.
    """

    inputs: Inputs
    recipe: Mapping[str, Method | None]
    output: str
    format: str
    seed: int
    budget: int
    dtype: np.dtype | None
    shard_bytes: int
    settings: Mapping[str, Any]
    adapter: spaces.Output | None = None

    def abstract(self, cut: Partition) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the merged {path: shape and dtype}, in `Inputs.first`'s order."""
        dtypes = {i: kind.dtype for kind in cut.kinds for i in kind.leaves}
        place = {path: i for i, path in enumerate(cut.paths)}
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, dtypes[place[path]])
            for path, leaf in self.inputs.first_leaves.items()
        }

    def partition(self) -> Partition:
        """Return the blocks; reads no weights and makes no files."""
        leaves = self.inputs.first_leaves
        granularity = checkpoints.granularity(self.format, leaves)
        return partition(
            self.inputs.abstracts,
            self.recipe,
            self.budget,
            dtype=self.dtype,
            first=self.inputs.place_of_first,
            granularity=granularity.__getitem__,
            statistics=statistics.dtypes(
                self.inputs.statistics, self.inputs.first_leaves, self.recipe
            ),
        )


def run(
    job: Job,
    extra: Mapping[str, bytes],
    expected: Mapping[str, str] | None = None,
) -> None:
    """Merge, and publish the output with these files beside the weights.

    Stopped at any moment and called again with the same job, it goes on.

    Args:
      job: the merge.
      extra: the files' contents by name.
      expected: the digests that the leaves must have to be published.

    Raises:
      UserError: the inputs' values cannot be merged, the disk is full, or the output's
        unfinished folder belongs to another merge.
    """
    cut = job.partition()
    merged = job.abstract(cut)
    abstract = merged if job.adapter is None else job.adapter.abstract(merged)
    described = processes.broadcast(
        lambda: manifest.describe_inputs(job.inputs.everything, job.output)
    )
    read = list(job.inputs.everything.values())
    before = processes.broadcast(lambda: checkpoints.stamps(read))
    fingerprint = _fingerprint(job, cut, described)
    # Where the files are may be said otherwise the next time.
    fingerprint[STAMPS] = [when for _, *when in before]
    begun = checkpoints.create(
        job.output,
        job.format,
        abstract,
        shard_bytes=job.shard_bytes,
        skeleton=job.inputs.first.skeleton,
        beside=[*extra, card.CARD, manifest.NAME],
    )
    with begun as writer, _merged_into(job, merged, writer) as inner:
        journal = Journal(inner.folder, fingerprint)
        digests = Digests(_my_leaves(abstract), writer.read_into)
        # What went to a store is held against what comes back from there; what an
        # adapter is made of is not the output.
        early = job.adapter is None and not writer.atomic
        into = Digesting(inner, digests) if early else inner
        try:
            _merge(job, cut, into, journal)
            if job.adapter is not None:
                job.adapter.write(merged, inner.read_into, writer)
                processes.barrier("the adapter is made")
            found = journal.keep_digests(digests.finish())
            processes.broadcast(lambda: checkpoints.require_unchanged(before, read))
            _require_expected(found, expected, writer.folder)
            told = card.model_card(job.inputs, job.settings, job.format, described)
            beside = {**extra, card.CARD: told.encode()}
            files = processes.broadcast(writer.own_files)
            files |= {name: checkpoints.recorded(of) for name, of in beside.items()}
            written = [when for _, _, when in before]
            record = _record(job, abstract, described, written, found, files)
            writer.finish({**beside, manifest.NAME: manifest.as_bytes(record)})
        except checkpoints.NotStored:
            journal.forget_blocks()
            raise


@contextlib.contextmanager
def _merged_into(job: Job, merged, writer: Writer) -> Iterator[Writer]:
    """Give what merged leaves are written to: the output, or a folder inside of it.

    The folder goes when the output is published.
    """
    if job.adapter is None:
        yield writer
        return
    place = os.path.join(writer.folder, COORDINATES)
    inner = checkpoints.begin_safetensors(place, merged, 5 * 10**9)
    try:
        yield inner
    finally:
        inner.close()


def _merge(job: Job, cut: Partition, writer, journal) -> None:
    """Write all merged leaves."""
    mine = set(cut.share(processes.index(), processes.count()))
    every = [cut.blocks[i] for i in mine]
    work = sum(cut.read_for(block) + cut.written_for(block) for block in every)
    with Progress(work, "merge", check=preemption.raise_if_asked) as progress:
        _merge_blocks(job, cut, writer, journal, mine, progress)
        processes.barrier("all blocks are merged")
        majority.settle(cut, writer, journal, mine)
        processes.barrier("the majority is applied")
        progress.note("checking what was written")


def _require_expected(
    found: Mapping[str, str], expected: Mapping[str, str] | None, folder: str
) -> None:
    """Raise if a merge that was to be repeated gave other bytes."""
    wrong = [p for p in found if expected is not None and found[p] != expected.get(p)]
    if wrong or (expected is not None and expected.keys() != found.keys()):
        raise UserError(
            f"{len(wrong)} of {len(found)} leaves are not what the manifest records "
            f"({listed(wrong)}): an input is not what it was, or another version"
            f" computes otherwise. Nothing was published; {folder} holds the result."
        )


def _record(
    job: Job,
    abstract,
    described: list,
    written: list[int],
    found: Mapping[str, str],
    files: Mapping[str, Mapping[str, Any]],
) -> dict:
    """Return the manifest."""
    return {
        "version": manifest.VERSION,
        "settings": dict(job.settings),
        "inputs": described,
        "written": written,
        "versions": manifest.versions(),
        "leaves": {
            path: {
                "dtype": str(leaf.dtype),
                "shape": list(leaf.shape),
                "sha256": found[path],
            }
            for path, leaf in abstract.items()
        },
        "files": dict(files),
    }


def _merge_blocks(job: Job, cut: Partition, writer, journal, mine, progress) -> None:
    """Merge the blocks of this process that no earlier run has finished."""
    journal.done |= blocks.verified(cut, writer, journal, mine)
    finished = set(journal.done)
    progress.skip(sum(cut.bytes_of(cut.blocks[i]) for i in finished))
    if finished:
        progress.message(f"{len(finished)} of {len(mine)} blocks were finished before.")
    # Statistics are found by all processes together, also by one that has no block;
    # and those that a finished block was merged under may be others.
    guessed = sum(bool(done.states) for done in journal.done.values())
    left = np.array([len(mine - finished) + guessed])
    processes.all_reduce([left])
    if not left[0]:
        return
    has_base = job.inputs.base is not None
    told = {kind: list(of.values()) for kind, of in job.inputs.statistics.items()}
    pipeline = Pipeline(cut, job.inputs.sources, has_base, job.budget, told)
    names = job.inputs.names
    merger = blocks.BlockMerger(cut, pipeline, writer, journal, names)

    def bytes_left() -> int:
        left = mine - set(journal.done)
        return sum(cut.bytes_of(cut.blocks[i]) for i in left)

    def speculate(stage: Stage, queries: Mapping[int, CountQuery]) -> Guess | None:
        return speculation.guess(stage, queries, list(job.inputs.experts), job.seed)

    passes = Passes(
        *(cut, pipeline, names, journal, mine, progress),
        after=bytes_left,
        speculate=speculate,
        merger=merger,
    )
    try:
        states = _States(job, cut, passes)
        merger.settle()  # what is on its way is neither done nor to be done
        if again := sum(merger.keep_only(*known) for known in states.known()):
            progress.message(f"A threshold is another: {again} blocks once more.")
        progress.remains(bytes_left())  # how many passes it took was a guess
        merger.run(sorted(mine - set(journal.done)), states.of, progress.advance)
    finally:
        merger.close()
        pipeline.close()


class _States:
    """The states of every leaf group: those that take passes are found at once."""

    def __init__(self, job: Job, cut: Partition, passes: Passes):
        self._cut, self._passes = cut, passes
        self._experts, self._seed = list(job.inputs.experts), job.seed
        self._found: dict[Method, tuple[LeafGroup, States]] = {}
        for number, method in enumerate(cut.methods):
            held = tuple(
                i
                for i, block in enumerate(cut.blocks)
                if cut.kinds[block.kind].method == method and not block.whole
            )
            leaves = sorted({p.leaf for i in held for p in cut.blocks[i].pieces})
            if held:
                group = self._group(str(number), method, leaves, held)
                self._found[method] = group, self._states(group, passes)
        passes.forget()

    def known(self) -> list[tuple[tuple[int, ...], str]]:
        """Return the blocks of each group that took passes, and its states' digest."""
        return [
            (group.blocks, speculation.digest(states))
            for group, states in self._found.values()
        ]

    def of(self, loaded: Loaded) -> tuple[LeafGroup, States]:
        """Return a loaded block's group, and its leaves' states."""
        method = self._cut.kinds[loaded.block.kind].method
        if not loaded.block.whole:
            return self._found[method]
        leaves = [piece.leaf for piece in loaded.block.pieces]
        group = self._group("", method, leaves, ())
        return group, self._states(group, self._passes.in_memory(group, loaded))

    def _group(self, name: str, method: Method, leaves, held) -> LeafGroup:
        return LeafGroup(name, method, self._cut.layout(leaves), tuple(leaves), held)

    def _states(self, group: LeafGroup, answers: Any) -> States:
        return find_states(group, self._experts, self._seed, answers)


def _my_leaves(abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Return this process's part of the leaves, of about equal bytes."""
    sizes = [int(np.prod(a.shape)) * a.dtype.itemsize for a in abstract.values()]
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    owner = (middles * processes.count() / max(sum(sizes), 1)).astype(int)
    owner = np.minimum(owner, processes.count() - 1)  # of an empty leaf at the end
    mine = owner == processes.index()
    return {p: a for (p, a), own in zip(abstract.items(), mine, strict=True) if own}


def _fingerprint(job: Job, cut: Partition, described: list) -> dict[str, Any]:
    """Return everything that the output's bytes, and their order, depend on."""
    return {
        "settings": {k: v for k, v in job.settings.items() if k != "output"},
        "inputs": [
            [file["name"], file["size"], file["digest"]]
            for model in described
            for file in model["files"]
        ],
        "memory_budget": [job.budget, storage.digest(repr(cut.blocks))],
        "versions": manifest.versions(),
        "x64": bool(jax.config.jax_enable_x64),
        "platform": jax.default_backend(),
    }


def summary(job: Job, cut: Partition) -> str:
    """Return the partition in words: what a dry run prints."""
    shared_by = processes.count()
    # A small model does not take a large budget.
    most = min(job.budget, sum(map(cut.bytes_of, cut.blocks)))
    rows: list[tuple[object, ...]] = [
        ("method", "leaves", "elements", "blocks", "passes", "read", "written")
    ]
    for number, kind in enumerate(cut.kinds):
        of = [b for b in cut.blocks if b.kind == number]
        rows.append(
            (
                "kept" if kind.method is None else kind.method.name,
                len(kind.leaves),
                f"{sum(b.elements for b in of):,}",
                len(of),
                max(map(cut.passes_over, of), default=1),
                text.size(sum(map(cut.read_for, of)) / shared_by),
                text.size(sum(map(cut.written_for, of)) / shared_by),
            )
        )
    return (
        f"{len(cut.blocks)} blocks under {text.size(job.budget)} of memory. Bytes for "
        f"each of {shared_by} processes:\n{text.table(rows)}\n"
        f"Peak memory: {text.size(most)} of blocks, and about 0.4 GB for Python "
        "and JAX."
    )
