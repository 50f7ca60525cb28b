"""The steps of AdaMerging: taken, saved, gone on with; and entropies over all prompts.

Which prompts a step has depends on the seed and the step alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from merging.runtime import preemption, processes, sharding, storage, text
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import Progress
from merging.sweep import entropy
from merging.sweep.entropy import Functions, Prompts
from merging.tasks.sampling import permuted


class State(NamedTuple):
    """The run after some steps: coefficients [G, K], Adam's state, their entropies."""

    values: Any
    optimizer: Any
    entropies: tuple[float, ...]


class Models(NamedTuple):
    """What is on the devices: the functions, base, experts; and the prompts."""

    functions: Functions
    base: Any
    experts: tuple[Any, ...]
    prompts: dict[str, Prompts]
    mesh: Mesh


def take(
    models: Models,
    now: State,
    path: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int,
    save_every: int,
) -> State:
    """Take the steps that are left; return the state after them, which is saved.

    Args:
      models: what is merged, on what prompts.
      now: the state to go on from.
      path: of the file to save in.
      steps: in all.
      seed: of the order of prompts.
      batch_size: prompts of each dataset in a step.
      save_every: so many steps.

    Raises:
      UserError: predictions that are not finite.
      Preempted: it was asked to stop; the steps so far are saved.
    """
    total, saved = steps, len(now.entropies)
    with Progress(total, "adamerge") as shown:
        shown.skip(saved)
        while (step := len(now.entropies)) < total:
            rows = _batch(models, seed, step, batch_size)
            with sharding.on(models.mesh):
                values, state, entropy_now = models.functions.step(
                    now.values, now.optimizer, models.base, models.experts, rows
                )
            told = text.shortest(sharding.to_host(entropy_now))
            if not np.isfinite(told):
                raise UserError(
                    f"the entropy of step {step} is {told}: a model's predictions are "
                    "not finite; look at the inputs, or choose --config.dtype=float32."
                )
            now = State(values, state, (*now.entropies, told))
            shown.advance(note=f"entropy {told:.4f}")
            step += 1
            preempted = processes.preempted()
            if preempted or step == total or step - saved >= save_every:
                _save(path, now)
                saved = step
            if preempted and step < total:
                raise Preempted(f"{preemption.reason()} at step {step} of {total}")
    return now


def _batch(models: Models, seed: int, step: int, size: int) -> Prompts:
    """Return a step's prompts [D, B]: of each dataset the next of a permutation."""
    places = {
        name: permuted(seed, stream, len(of.weights), step * size, (step + 1) * size)
        for stream, (name, of) in enumerate(models.prompts.items())
    }
    return _placed(models, places, size)


def _placed(models: Models, places: Mapping[str, np.ndarray], size: int) -> Prompts:
    rows = entropy.dealt(models.prompts, places, size)
    mine = sharding.rows_here(models.mesh, size)
    return Prompts(
        *(sharding.place_rows(models.mesh, x[:, mine], size, 1) for x in rows)
    )


def entropies(models: Models, values: np.ndarray, size: int) -> dict[str, float]:
    """Return the mean entropy of each dataset's prompts, all of them."""
    counts = {name: len(of.weights) for name, of in models.prompts.items()}
    totals = np.zeros(len(counts))
    for first in range(0, max(counts.values()), size):
        places = {n: np.arange(first, min(first + size, c)) for n, c in counts.items()}
        with sharding.on(models.mesh):
            sums = models.functions.totals(
                values, models.base, models.experts, _placed(models, places, size)
            )
        totals += sharding.to_host(sums)
    return {
        name: text.shortest(total / counts[name])
        for name, total in zip(counts, totals, strict=True)
    }


def _save(path: Path, now: State) -> None:
    values, *state = map(
        sharding.to_host, (now.values, *jax.tree.leaves(now.optimizer))
    )
    record = {
        "coefficients": values.tolist(),
        "optimizer": [leaf.tolist() for leaf in state],
        "entropies": now.entropies,
    }
    processes.broadcast(lambda: bool(storage.write_json(path, record)))


def restored(path: Path, like: State) -> State:
    """Return the state that was saved, or else the first."""
    kept = processes.broadcast(lambda: path.read_text() if path.exists() else "")
    if not kept:
        return like
    try:
        record = json.loads(kept)
        stored = [record["coefficients"], *record["optimizer"]]
        leaves, structure = jax.tree.flatten((like.values, like.optimizer))
        both = zip(leaves, stored, strict=True)
        # Where those are that a step returns, or the next would be compiled anew.
        values, state = jax.tree.unflatten(
            structure,
            [
                sharding.place(
                    np.array(of, leaf.dtype).reshape(leaf.shape), leaf.sharding
                )
                for leaf, of in both
            ],
        )
        found = tuple(map(float, record["entropies"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is no state of an adamerge; remove it.") from None
    return State(values, state, found)
