"""Statistics of one model on a suite, for merges that want some: `merging collect`.

WORKDIR/fisher/         a checkpoint with the model's leaves' names: the mean over
                        examples of the squared gradient of log p of their targets
WORKDIR/gram/           likewise, of each linear map: the mean over tokens of x xᵀ
WORKDIR/…/statistics.json   what they were gathered of, beside each
WORKDIR/collect.json    the same; there when it is done
WORKDIR/data/           the suite's examples, written once
WORKDIR/partial/        sums to go on from, until it is done
WORKDIR/config.json, driver.json   whose run this is, and who works on it

Both are float32 and have the model's own layout: a merge takes them leaf by leaf.
"""

import contextlib
import copy
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from merging import checkpoints, models, tasks
from merging.models import hf as families
from merging.runtime import config as configs
from merging.runtime import (
    config_keys,
    preemption,
    processes,
    sharding,
    storage,
    tree,
    workdir,
)
from merging.runtime.errors import Preempted, UserError, nearest
from merging.runtime.progress import Progress
from merging.runtime.revision import git_revision
from merging.training import statistics
from merging.training.batches import Source
from merging.training.statistics import FISHER, GRAM, Collector, Sums

DONE, RECORD, _PARTIAL = "collect.json", "statistics.json", "partial"
_KEYS = {
    "checkpoint": str,
    "suite": str,
    "data": ConfigDict(),
    "what": str,
    "split": "train",
    "length": 0,
    "statistics": (),
    "examples": 256,
    "batch_size": 32,
    "seed": 0,
    "save_every": 256,
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
}
# Does not change what is gathered, but for rounding.
_HOW = ("mesh", "save_every")


class State(NamedTuple):
    """How far it is: the sums, and of how many examples and tokens."""

    sums: Sums
    examples: int
    tokens: int


def run(config: Any, folder: Path | str) -> Path:
    """Gather what the config says (see configs/collect/expert.py).

    Called by every process of a job. Stopped at any moment and called again with the
    same config and folder, on any number of devices and processes, it goes on.

    Args:
      config: such as `merging.runtime.config.load("configs/collect/expert.py")`.
      folder: the workdir.

    Returns:
      The folder, to be named to a merge.

    Raises:
      UserError: a checkpoint, suite or statistics that can't be used, another config's
        folder, or one in which another process works.
      Preempted: it was asked to stop; the sums are saved.
    """
    folder = Path(storage.supported_path(folder, "--workdir")).absolute()
    config = config_keys.completed(
        config,
        _KEYS,
        "merging collect",
        "collect/expert",
        remote=("checkpoint",),
    )
    processes.initialize(folder / "logs")
    values = config.to_dict()
    _check(values)
    model = families.open_model(values["checkpoint"])
    identity = copy.deepcopy(config)
    with identity.unlocked():
        for name in _HOW:
            del identity[name]
        identity.model_content = processes.broadcast(lambda: families.identity(model))
    digest = configs.config_hash(identity)
    processes.broadcast(lambda: workdir.require_own(folder, digest, "collection"))
    if _is_done(folder):
        return folder
    suite = tasks.suite(values["suite"], **_in_own_tokens(values))
    suite.mixture(values["what"])
    mesh = sharding.make_mesh(values["mesh"])
    sharding.rows_here(mesh, values["batch_size"])  # refused before anything is read
    kinds = tuple(sorted(set(values["statistics"])))
    room = sharding.device_memory()
    statistics.require_room(model.config, kinds, mesh, room, values["checkpoint"])
    with contextlib.ExitStack() as held:
        only = workdir.only_driver(folder)
        processes.broadcast(lambda: held.enter_context(only))
        processes.broadcast(lambda: workdir.require_own(folder, digest, "collection"))
        if not _is_done(folder):
            _collect(values, folder, model, suite, mesh, identity)
    return folder


def _check(values: Mapping[str, Any]) -> None:
    """Refuse numbers and words that can't be."""
    if not values["checkpoint"]:
        raise UserError("name the checkpoint to gather statistics of (checkpoint).")
    if not values["statistics"]:
        raise UserError(f"name what to gather (statistics): {FISHER}, {GRAM} or both.")
    for kind in values["statistics"]:
        if kind not in statistics.KINDS:
            raise nearest("statistics", kind, statistics.KINDS)
    for name in ("examples", "batch_size", "save_every"):
        if values[name] < 1:
            raise UserError(f"{name} = {values[name]} must be at least 1.")
    if values["length"] < 0:
        raise UserError(f"length = {values['length']} must be 0 (the suite's) or more.")


def _is_done(folder: Path) -> bool:
    """Return whether a workdir's statistics are gathered, and say so."""
    if not processes.broadcast((folder / DONE).exists):
        return False
    if processes.is_first():
        _forget_sums(folder)  # a kill may have left them
        print(f"Nothing to do, they are gathered: {folder}")
    return True


def _forget_sums(folder: Path) -> None:
    """Remove the sums, and what a kill left of some that were being replaced."""
    for left in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def _in_own_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data's settings, with the model's own tokenizer if none is named."""
    files = checkpoints.auxiliary_files(values["checkpoint"])
    if not values["data"].get("tokenizer") and tasks.holds_tokenizer(files):
        return values["data"] | {"tokenizer": values["checkpoint"]}
    return values["data"]


def _collect(
    values: dict[str, Any],
    folder: Path,
    model: families.Model,
    suite: tasks.Suite,
    mesh: Mesh,
    identity: ConfigDict,
) -> None:
    """Gather, write, and tell."""
    if len(suite.tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the suite's tokenizer has {len(suite.tokenizer)} ids, and the model's "
            f"embedding {model.config.vocab_size} rows: they do not belong together."
        )
    length = values["length"] or suite.max_length
    examples = tasks.store(
        suite, values["what"], values["split"], length, folder / "data"
    )
    digest = configs.config_hash(identity)
    processes.broadcast(
        lambda: workdir.claim(folder, identity.to_dict(), digest, "collection")
    )
    decoder, params = families.load(values["checkpoint"], dtype="float32", mesh=mesh)
    decoder = dataclasses.replace(decoder, bos_id=suite.tokenizer.bos_id)
    kinds = tuple(sorted(set(values["statistics"])))
    functions = statistics.collector(decoder, params, kinds, mesh)
    of = int(storage.digest(identity.model_content, examples.digest)[:8], 16)
    count = min(values["examples"], examples.count)
    with Progress(count, "collect") as shown:
        done = gathered(
            *(functions, params, examples, mesh, folder / _PARTIAL, of),
            count=count,
            told=lambda done, new: shown.advance(new) if new else shown.skip(done),
            **{key: values[key] for key in ("batch_size", "seed", "save_every")},
        )
    record = {
        "model": values["checkpoint"],
        "model_content": identity.model_content,
        **{key: values[key] for key in ("suite", "data", "what", "split", "seed")},
        "length": length,
        "examples": done.examples,
        "tokens": done.tokens,
        "git_revision": git_revision(),
    }
    for kind, counted in ((FISHER, done.examples), (GRAM, done.tokens)):
        if kind in kinds:
            _write(folder, kind, counted, model, record)
    processes.broadcast(lambda: bool(storage.write_json(folder / DONE, record)))
    if processes.is_first():
        _forget_sums(folder)
        print(
            f"Gathered: {folder} ({', '.join(kinds)} of {done.examples} examples, "
            f"{done.tokens:,} tokens)"
        )
    processes.barrier("statistics are gathered")


def gathered(
    functions: Collector,
    params: models.Params,
    examples: Source,
    mesh: Mesh | None,
    folder: storage.Folder,
    of: int,
    *,
    count: int,
    batch_size: int,
    seed: int,
    save_every: int,
    told: Callable[[int, int], object],
) -> State:
    """Go through the first examples drawn, from where an earlier run was.

    Args:
      functions: of `statistics.collector`, for the parameters and the mesh.
      params: float32.
      examples: of which `count` are drawn by `seed`.
      mesh: the devices; None for one.
      folder: where the sums are saved, and left.
      of: a number of 32 bits that tells this model and its examples from others.
      count: at most as many as there are.
      batch_size: of a call.
      seed: of the draw.
      save_every: so many examples.
      told: how many are done and how many of them are new, at first and after every
        batch.

    Raises:
      UserError: the folder has sums of another model, or of other examples.
      Preempted: it was asked to stop; the sums are saved.
    """
    now = _restored(folder, functions, of)
    now = now or State(functions.start(), 0, 0)
    mine = sharding.rows_here(mesh, batch_size)
    saved = now.examples
    told(saved, 0)
    while now.examples < count:
        stop = min(now.examples + batch_size, count)
        rows = now.examples + mine
        drawn = examples.draw(seed, now.examples, now.examples + batch_size)
        tokens, weights = examples.take(drawn[mine])
        weights = weights * (rows < stop)[:, None]
        batch = [sharding.place_rows(mesh, x, batch_size) for x in (tokens, weights)]
        sums, counted = functions.add(params, now.sums, *batch)
        told(stop, stop - now.examples)
        now = State(sums, stop, now.tokens + int(counted))
        preempted = processes.preempted()
        if preempted or stop == count or stop - saved >= save_every:
            _save(folder, now, of)
            saved = stop
        if preempted and stop < count:
            raise Preempted(f"{preemption.reason()} at example {stop} of {count}")
    return now


def _save(path: storage.Folder, now: State, of: int) -> None:
    counts = np.array([now.examples, now.tokens, of], np.uint32)
    checkpoints.save(path, {"counts": counts, "sums": now.sums})


def _restored(path: storage.Folder, functions: Collector, of: int) -> State | None:
    """Return the state that was saved, if one was.

    Raises:
      UserError: it is of another model, or of other examples.
    """
    if not processes.broadcast(lambda: checkpoints.exists(path)):
        return None
    counts = jax.ShapeDtypeStruct((3,), np.uint32)
    kept = checkpoints.restore(path, {"counts": counts, "sums": functions.abstract})
    examples, tokens, was = map(int, np.asarray(kept["counts"]))
    if was != of:
        raise UserError(
            f"{path} is of another model or other examples than are there now; choose "
            "another --workdir."
        )
    return State(kept["sums"], examples, tokens)


def _write(
    folder: Path, kind: str, counted: int, model: families.Model, record: dict
) -> None:
    """Write the means of one kind as a checkpoint, from the sums that were saved."""
    output = os.fspath(folder / kind)
    if processes.broadcast(lambda: os.path.isdir(output)):
        return
    source = checkpoints.open_saved(folder / _PARTIAL)
    stored = tree.flatten(source.abstract["sums"][kind])
    format = model.source.format if model.stacked else "safetensors"
    with checkpoints.create(output, format, _abstract(kind, model, stored)) as writer:
        for path in list(stored)[processes.index() :: processes.count()]:
            for start, part in _means(source, kind, path, stored[path].shape, counted):
                _put(writer, kind, model, path, start, part, stored[path].shape)
        text = json.dumps({"kind": kind} | record, indent=1, ensure_ascii=False)
        writer.finish({RECORD: (text + "\n").encode()})


def _abstract(
    kind: str, model: families.Model, stored: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {name: shape and dtype} of the output, as the model calls its leaves."""

    def float32(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(shape), np.float32)

    if model.stacked:
        return {path: float32(leaf.shape) for path, leaf in stored.items()}
    found = {}
    for path, leaf in stored.items():
        own = model.leaves[path]
        shape = own.tensor_shape if kind == FISHER else leaf.shape[-2:]
        found |= dict.fromkeys(own.tensors, float32(shape))
    return found


def _means(
    source: checkpoints.Source, kind: str, path: str, shape: tuple, counted: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, means): layer by layer, whole chunks of what is written."""
    like = jax.ShapeDtypeStruct(shape, np.float32)
    layer = math.prod(shape[1:]) if len(shape) > 2 else math.prod(shape)
    chunk = checkpoints.granularity("orbax", {path: like})[path]
    step, size = math.lcm(layer, chunk), math.prod(shape)
    for start in range(0, size, step):
        part = np.empty(min(step, size - start), np.float32)
        source.read_into(f"sums/{kind}/{path}", start, part)
        yield start, part / np.float32(counted)


def _put(
    writer: checkpoints.Writer,
    kind: str,
    model: families.Model,
    path: str,
    start: int,
    part: np.ndarray,
    shape: tuple[int, ...],
) -> None:
    """Write a range of a leaf's means under the names that the model has for it."""
    if model.stacked:
        writer.write(path, start, part)
        return
    own = model.leaves[path]
    if kind == FISHER:
        leaf = own._replace(dtype=np.dtype(np.float32))
        families.scatter(writer, leaf, start, part)
        return
    each = shape[-1] * shape[-2]
    for i, gram in enumerate(part.reshape(-1, each)):
        writer.write(own.tensors[start // each + i], 0, gram)
