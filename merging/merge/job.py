"""One merge of checkpoints, from its plan to the published output."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from merging import checkpoints
from merging.merge import blocks, manifest
from merging.merge.inputs import Inputs
from merging.merge.journal import Journal
from merging.merge.partition import Block, Plan, make_plan
from merging.merge.pipeline import Pipeline
from merging.merge.statistics import Section, Surveyor
from merging.methods import Method
from merging.runtime import preemption, processes
from merging.runtime.progress import Progress


class Job(NamedTuple):
    """A merge, checked and ready to be planned.

    Attributes:
      inputs: the models.
      treatment: {path of each float leaf: the method that merges it}, its numbers in
        the order of `inputs.experts`; None keeps the base's.
      output: the folder to make.
      format: `safetensors` or `orbax`.
      seed: of random masks.
      budget: bytes of memory for blocks.
      dtype: of the merged leaves; None is the first model's.
      shard_bytes: the most in one safetensors file.
      settings: what was asked for, as plain JSON; for the manifest.
    """

    inputs: Inputs
    treatment: Mapping[str, Method | None]
    output: str
    format: str
    seed: int
    budget: int
    dtype: np.dtype | None
    shard_bytes: int
    settings: Mapping[str, Any]

    def abstract(self, plan: Plan) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the output's {path: shape and dtype}, in the first model's order."""
        dtypes = {i: group.dtype for group in plan.groups for i in group.leaves}
        place = {path: i for i, path in enumerate(plan.paths)}
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, dtypes[place[path]])
            for path, leaf in self.inputs.abstracts[0].items()
        }

    def plan(self) -> Plan:
        """Return the blocks; reads no weights and makes no files."""
        leaves = self.inputs.abstracts[0]
        granularity = checkpoints.granularity(self.format, leaves)
        return make_plan(
            self.inputs.abstracts,
            self.treatment,
            self.budget,
            dtype=self.dtype,
            granularity=granularity.__getitem__,
        )


def run(job: Job, extra: Mapping[str, bytes]) -> None:
    """Merge, and publish the output with these files beside the weights.

    Stopped at any moment and called again with the same job, it goes on.

    Raises:
      UserError: the inputs' values cannot be merged, the disk is full, or the output's
        unfinished folder belongs to another merge.
    """
    plan = job.plan()
    abstract = job.abstract(plan)
    described = processes.broadcast(
        lambda: manifest.describe_inputs(job.inputs.names, job.inputs.sources)
    )
    writer = checkpoints.create(
        job.output, job.format, abstract, shard_bytes=job.shard_bytes
    )
    journal = Journal(writer.folder, _fingerprint(job, plan, described))
    mine = set(plan.share(processes.index(), processes.count()))
    work = sum(plan.bytes_of(plan.blocks[i]) for i in mine)
    with Progress(work, "merge", check=preemption.raise_if_asked) as progress:
        _merge_blocks(job, plan, writer, journal, mine, progress)
        processes.barrier("all blocks are merged")
        _settle_majority(plan, writer, journal, mine)
        processes.barrier("the majority is applied")
        progress.note("checking what was written")
        found = journal.keep_digests(
            manifest.digests(_my_leaves(abstract), writer.read_into)
        )
    record = {
        "version": manifest.VERSION,
        "settings": dict(job.settings),
        "inputs": described,
        "versions": manifest.versions(),
        "leaves": {
            path: {
                "dtype": str(leaf.dtype),
                "shape": list(leaf.shape),
                "sha256": found[path],
            }
            for path, leaf in abstract.items()
        },
    }
    writer.finish({**extra, manifest.NAME: manifest.as_bytes(record)})


def _merge_blocks(job, plan, writer, journal, mine, progress) -> None:
    """Merge the blocks of this process that no earlier run has finished."""
    if journal.negative() is not None:  # then all were finished
        progress.skip(progress.total)
        return
    finished = blocks.verified(plan, writer, journal, mine)
    progress.skip(sum(plan.bytes_of(plan.blocks[i]) for i in finished))
    if finished:
        progress.message(f"{len(finished)} of {len(mine)} blocks were finished before.")
    pipeline = Pipeline(plan, job.inputs.sources, job.budget)
    surveyor = Surveyor(
        plan, pipeline, list(job.inputs.experts), job.seed, journal, mine, progress
    )
    try:
        sections = _Sections(plan, surveyor)
        merger = blocks.BlockMerger(
            plan, pipeline, surveyor, sections.of, writer, journal, job.inputs.names
        )
        merger.run(sorted(mine - finished), progress.advance)
    finally:
        pipeline.close()


class _Sections:
    """What each method merges, with the statistics that take passes over it."""

    def __init__(self, plan: Plan, surveyor: Surveyor):
        self._plan = plan
        self._ready: dict[Method, blocks.Ready] = {}
        for number, method in enumerate(_methods(plan)):
            held = tuple(
                i
                for i, block in enumerate(plan.blocks)
                if plan.groups[block.group].method == method and not block.whole
            )
            leaves = {p.leaf for i in held for p in plan.blocks[i].pieces}
            if held:
                section = self._section(str(number), method, sorted(leaves), held)
                self._ready[method] = blocks.Ready(section, surveyor.states(section))

    def of(self, block: Block) -> blocks.Ready:
        """Return a block's section."""
        method = self._plan.groups[block.group].method
        if not block.whole:
            return self._ready[method]
        leaves = [piece.leaf for piece in block.pieces]
        return blocks.Ready(self._section("", method, leaves, ()), None)

    def _section(self, name: str, method: Method, leaves, held) -> Section:
        layout = self._plan.layout(leaves)
        return Section(name, method, layout, tuple(leaves), held)


def _methods(plan: Plan) -> list[Method]:
    """Return the different methods, in the order of the plan."""
    return list(dict.fromkeys(g.method for g in plan.groups if g.method is not None))


def _settle_majority(plan, writer, journal, mine) -> None:
    """Find the majority sign under each method, and write what depends on it."""
    asking = [m for m in _methods(plan) if blocks.asks_majority(m)]
    if not asking:
        return
    negative = journal.negative()
    if negative is None:
        votes = np.zeros(len(asking), np.int64)
        for number, done in journal.done().items():
            method = plan.groups[plan.blocks[number].group].method
            if number in mine and method in asking:
                votes[asking.index(method)] += done.ballot
        processes.all_reduce([votes])
        negative = [i for i, vote in enumerate(votes) if vote < 0]
        journal.keep_negative(negative)
    losing = {asking[i] for i in negative}
    chosen = {i for i in mine if plan.groups[plan.blocks[i].group].method in losing}
    blocks.apply_majority(plan, writer, journal, chosen)


def _my_leaves(abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Return this process's part of the leaves, of about equal bytes."""
    sizes = [int(np.prod(a.shape)) * a.dtype.itemsize for a in abstract.values()]
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    owner = (middles * processes.count() / max(sum(sizes), 1)).astype(int)
    mine = owner == processes.index()
    return {p: a for (p, a), own in zip(abstract.items(), mine, strict=True) if own}


def _fingerprint(job: Job, plan: Plan, described: list) -> dict[str, Any]:
    """Return everything that the output's bytes, and their order, depend on."""
    cuts = hashlib.sha256(repr(plan.blocks).encode()).hexdigest()
    digests = [
        [file["name"], file["size"], file["digest"]]
        for model in described
        for file in model["files"]
    ]
    return {
        "settings": {k: v for k, v in job.settings.items() if k != "output"},
        "inputs": digests,
        "memory_budget": [job.budget, cuts],
        "jax": jax.__version__,
    }


def summary(job: Job, plan: Plan) -> str:
    """Return the plan in words: what a dry run prints."""
    shared_by = processes.count()
    lines: list[tuple[object, ...]] = [
        ("group", "leaves", "elements", "blocks", "passes", "read", "written")
    ]
    for number, group in enumerate(plan.groups):
        of = [b for b in plan.blocks if b.group == number]
        lines.append(
            (
                "kept" if group.method is None else group.method.name,
                len(group.leaves),
                f"{sum(b.elements for b in of):,}",
                len(of),
                max(map(plan.passes_over, of), default=1),
                _bytes(sum(map(plan.read_for, of)) / shared_by),
                _bytes(sum(map(plan.written_for, of)) / shared_by),
            )
        )
    return (
        f"{len(plan.blocks)} blocks under {_bytes(job.budget)} of memory. Bytes for "
        f"each of {shared_by} processes:\n{manifest.table(lines)}\n"
        f"Peak memory: {_bytes(job.budget)} of blocks, and about 0.4 GB for Python "
        "and JAX."
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
