"""The models of finished steps, straight to the devices, and kept there for the next.

No process reads more than its own devices hold. Steps come in an order in which
neighbours share their experts, so a model is mostly read once.
"""

import collections
import math

import jax
import numpy as np
from jax.sharding import Mesh

from merging import checkpoints, models
from merging.runtime import processes
from merging.sweep import given
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store

KEPT = 2e9  # bytes of one device for models that the step at hand does not need
_restored: collections.OrderedDict[str, models.Params] = collections.OrderedDict()


def make_room(step: Step) -> None:
    """Forget the models that were not needed for longest, but none that a step needs.

    Args:
      step: the next one.
    """
    needed = {need.key for need in step.needs}
    others = [key for key in _restored if key not in needed]
    while others and sum(_bytes(_restored[key]) for key in others) > KEPT:
        del _restored[others.pop(0)]


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
        path = described = experiment.folder(size, base)
        if step.kind == "expert":
            path = experiment.given_experts[size, base, step.settings["what"]]
        return given.load(
            path,
            step.settings["digest"],
            decoder.param_dtype,
            mesh=mesh,
            described=described,
        )
    like, unreadable = models.abstract(decoder, mesh), np.zeros(1, np.int64)
    params, reason = None, "another process can't read its part"
    try:
        params = checkpoints.restore(store.path(step) / "checkpoint", like)
    # Not other errors of the system, such as a missing permission: it is still there.
    except (checkpoints.CorruptCheckpoint, checkpoints.MissingCheckpoint) as error:
        unreadable += 1
        reason = str(error)
    if mesh is not None:
        processes.all_reduce([unreadable])
    if unreadable[0]:
        raise Broken(step.name, step.key, reason)
    return jax.block_until_ready(params)


def _bytes(params: models.Params) -> float:
    """Return the bytes of a model on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )
