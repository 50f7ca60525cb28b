"""The models of finished steps, straight to the devices, and kept there for the next.

No process reads more than its own devices hold. Steps come in an order in which
neighbours share their experts, so a model is mostly read once. Where a base, its
experts and their merge don't fit the devices, experts stay in storage, and are read
leaf by leaf as they are merged; the experts' statistics always are.
"""

import collections
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from merging import checkpoints, models
from merging.merge.stored import StoredLeaf
from merging.runtime import processes, sharding, storage, text, tree
from merging.sweep import given
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store

Read = TypeVar("Read")
KEPT = 2e9  # bytes of one device for models that the step at hand does not need
FILLED = 0.85  # of a device's memory by models; the rest is for what computes
_restored: collections.OrderedDict[str, models.Params] = collections.OrderedDict()


def make_room(step: Step) -> None:
    """Forget the models that were not needed for longest, but none that a step needs.

    Args:
      step: the next one.
    """
    needed = {need.key for need in step.needs}
    others = [key for key in _restored if key not in needed]
    held = sharding.device_bytes
    while others and sum(held(_restored[key]) for key in others) > KEPT:
        del _restored[others.pop(0)]


def fits(
    experiment: Experiment,
    size: str,
    experts: int,
    mesh: Mesh | None,
    beside: float = 0,
) -> bool:
    """Return whether a base, experts and their merge fit the devices together.

    Args:
      experiment: says what a device has.
      size: of the models.
      experts: how many lie on the devices; 0 if they stay in storage.
      mesh: the devices.
      beside: bytes of a device that something else takes at the same time.
    """
    limit = room(experiment)
    needed = (experts + 2) * model_bytes(experiment, size, mesh) + beside
    return not limit or needed <= limit


def notes(experiment: Experiment, mesh: Mesh | None) -> list[str]:
    """Return a line for each size some of whose merges read experts from storage."""
    found = []
    for size in experiment.sizes:
        stay = [
            k for k in experiment.experts_merged if not fits(experiment, size, k, mesh)
        ]
        if stay:
            one = text.size(model_bytes(experiment, size, mesh))
            found.append(
                f"{size}: merges of {min(stay)} experts and more read them from storage"
                f" leaf by leaf: a model takes {one} of a device's"
                f" {text.size(room(experiment) / FILLED)}"
            )
    return found


def forget(steps: Iterable[Step]) -> None:
    """Give back what models of these steps take on the devices."""
    for step in steps:
        _restored.pop(step.key, None)


def room(experiment: Experiment) -> float:
    """Return the bytes of a device for models; 0 where no one knows."""
    if experiment.device_memory:
        size = storage.parse_size(experiment.device_memory, "device_memory")
    else:
        size = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return FILLED * size


def model_bytes(experiment: Experiment, size: str, mesh: Mesh | None) -> float:
    """Return the most that a device holds of a model of some size."""
    decoders = {experiment.decoder(size, base) for base in experiment.bases}
    return max(sharding.device_bytes(models.abstract(d, mesh)) for d in decoders)


def uri(experiment: Experiment, store: Store, step: Step) -> str:
    """Return where a finished step's model is; of a given one, where it was given."""
    if step.given:
        return given.model_of(*_given(experiment, step))
    return str(store.path(step) / "checkpoint")


def restore(
    experiment: Experiment, store: Store, step: Step, mesh: Mesh | None = None
) -> models.Params:
    """Return a finished step's parameters, on the mesh; called by all processes.

    Raises:
      Broken: the checkpoint is damaged; on all processes, if one can't read its part.
      UserError: a given checkpoint has changed.
    """
    if step.key not in _restored:
        _restored[step.key] = _restore(experiment, store, step, mesh)
    _restored.move_to_end(step.key)
    return _restored[step.key]


def _restore(
    experiment: Experiment, store: Store, step: Step, mesh: Mesh | None
) -> models.Params:
    size, base = step.settings["size"], step.settings["base"]
    decoder = experiment.decoder(size, base)
    if step.given:
        path, described = _given(experiment, step)
        return given.load(
            path,
            step.settings["digest"],
            decoder.param_dtype,
            mesh=mesh,
            described=described,
        )
    return restore_like(store, step, models.abstract(decoder, mesh), mesh)


def restore_like(
    store: Store, step: Step, like: tree.Tree, mesh: Mesh | None
) -> tree.Tree:
    """Return what a finished step has written, with these shapes and shardings.

    Raises:
      Broken: as `restore`.
    """
    path = store.path(step) / "checkpoint"
    return _by_all(step, mesh, lambda: checkpoints.restore(path, like))


def stored(
    experiment: Experiment, store: Store, step: Step, mesh: Mesh | None = None
) -> models.Params:
    """Return a finished step's parameters as leaves that stay in storage.

    Raises:
      Broken, UserError: as `restore`; the first also where a leaf is read.
    """
    size, base = step.settings["size"], step.settings["base"]
    if step.given:
        path, described = _given(experiment, step)
        dtype = experiment.decoder(size, base).param_dtype
        digest = step.settings["digest"]
        leaves = given.stored(path, digest, dtype, described=described)
        return tree.unflatten(leaves)
    like = models.abstract(experiment.decoder(size, base))
    return stored_like(store, step, like, mesh)


def stored_like(
    store: Store, step: Step, like: tree.Tree, mesh: Mesh | None
) -> tree.Tree:
    """Return what a finished step has written, of these shapes, as leaves in storage.

    Raises:
      Broken: as `stored`.
    """
    saved = store.path(step) / "checkpoint"
    opened = _by_all(step, mesh, lambda: checkpoints.open_saved(saved))

    def leaf(path: str, of: jax.ShapeDtypeStruct) -> StoredLeaf:
        def read(sharding: jax.sharding.Sharding) -> jax.Array:
            wanted = jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding)
            return _by_all(step, mesh, lambda: opened.restore_leaf(path, wanted))

        return StoredLeaf(of.shape, of.dtype, read)

    return tree.map_named(leaf, like)


def _given(experiment: Experiment, step: Step) -> tuple[str, str]:
    """Return (checkpoint, folder with its config.json) of a given model."""
    size, base = step.settings["size"], step.settings["base"]
    path = described = experiment.folder(size, base)
    if step.kind == "expert":
        path = experiment.given_experts[size, base, step.settings["what"]]
    return path, described


def _by_all(step: Step, mesh: Mesh | None, read: Callable[[], Read]) -> Read:
    """Return what each process reads of a step, if all of them can.

    Raises:
      Broken: one can't.
    """
    unreadable = np.zeros(1, np.int64)
    found, reason = None, "another process can't read its part"
    try:
        found = jax.block_until_ready(read())
    # Not other errors of the system, such as a missing permission: it is still there.
    except (checkpoints.CorruptCheckpoint, checkpoints.MissingCheckpoint) as error:
        unreadable += 1
        reason = str(error)
    if mesh is not None:
        processes.all_reduce([unreadable])
    if unreadable[0]:
        raise Broken(step.name, step.key, reason)
    return found
