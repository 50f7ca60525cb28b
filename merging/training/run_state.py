"""Checkpoints of a training run: written whole, found again, checked to be its own."""

import functools
import logging
import os
import re
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from merging import checkpoints
from merging.runtime import processes, storage, tree
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder
from merging.training.batches import Source

KEPT = 2  # the newest, and the one before should the newest be damaged
_STEP = re.compile(r"step_(\d+)")


class RunState(NamedTuple):
    """Everything a training run is, after some steps.

    Attributes:
      state: parameters and optimizer.
      best: the best parameters so far; those of the state without validation.
      losses: float32 [steps so far].
      validations: float32 [validations so far, 2], step and loss.
    """

    state: Any
    best: Any
    losses: np.ndarray
    validations: np.ndarray

    @property
    def step(self) -> int:
        """Steps so far."""
        return len(self.losses)


def fingerprint(identity: Any, examples: Source) -> int:
    """Return a number that tells this run from one of other hyperparameters or data."""
    return zlib.crc32(repr((identity, examples.digest)).encode())


def save(workdir: os.PathLike, run: RunState, identity: int) -> Folder:
    """Write a checkpoint, then forget all but the newest ones; return its path."""
    path = storage.place(workdir) / f"step_{run.step:08d}"
    record = {
        "identity": np.asarray(identity, np.uint32),
        "state": _named(run.state),
        "losses": run.losses,
    }
    if run.best is not run.state.params:
        record["best"] = run.best
    if len(run.validations):
        record["validations"] = run.validations
    checkpoints.save(path, record)
    if processes.is_first():
        for old in _steps(workdir)[:-KEPT]:
            storage.remove(storage.place(workdir) / f"step_{old:08d}")
    return path


def restore(
    workdir: os.PathLike, state: Any, identity: int
) -> tuple[RunState, Folder] | None:
    """Return the newest checkpoint that can be read, or None where there is none.

    Args:
      workdir: where they are.
      state: a state of the right structure and shardings.
      identity: the run's fingerprint.

    Raises:
      UserError: the newest one belongs to other hyperparameters, another model or data.
    """
    for step in reversed(processes.broadcast(lambda: _steps(workdir))):
        path = storage.place(workdir) / f"step_{step:08d}"
        found, unreadable = None, np.zeros(1, np.int64)
        try:
            found = _read(path, state, identity)
        except checkpoints.CorruptCheckpoint as error:
            logging.getLogger(__name__).warning("%s Going one back.", error)
            unreadable += 1
        processes.all_reduce([unreadable])  # what one can't read, none goes on from
        if not unreadable[0]:
            return found, path
    return None


def _read(path: Folder, state: Any, identity: int) -> RunState:
    source = checkpoints.open_saved(path)
    stored = source.abstract
    params = tree.map_named(lambda _, leaf: leaf, state.params)
    like = {"identity": stored.get("identity"), "losses": stored.get("losses")}
    like["state"] = _named(state)
    like |= {"best": params} if "best" in stored else {}
    like |= {k: stored[k] for k in ("validations",) if k in stored}
    if None in like.values() or tree.differences({"run": like, "stored": stored}):
        raise _another(path)
    record = source.restore(like)
    if int(record["identity"]) != identity:
        raise _another(path)
    leaves = tree.flatten(record["state"])
    leaves = [leaves[name] for name in tree.flatten(_named(state))]
    state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    return RunState(
        state,
        record.get("best", state.params),
        np.asarray(record["losses"]),
        np.asarray(record.get("validations", np.zeros((0, 2), np.float32))),
    )


def _another(path: Folder) -> UserError:
    return UserError(
        f"{path} is of a training with other hyperparameters, model or examples; "
        "continue that one, or choose another workdir."
    )


def _named(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return tree.unflatten({name(path): leaf for path, leaf in leaves})


def _steps(workdir: os.PathLike) -> list[int]:
    folder = storage.place(workdir)
    if not folder.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)
