"""Orbax checkpoints as its own checkpointers leave them: tiny, of one training."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
from orbax.checkpoint import v1 as ocp


def params(seed=0):
    """Return a tree with a list, a None and an empty dict in it."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    layers = [{"w": leaf(2, 3), "bias": None} for _ in range(11)]
    return {"embed": leaf(4, 2), "layers": layers, "unused": {}}


def state(seed=0):
    """Return a training's state: parameters, Adam's moments and the step."""
    weights = params(seed)
    moments = jax.tree.map(lambda leaf: leaf * 100, weights)
    opt_state = ({"count": jnp.asarray(3), "mu": moments, "nu": moments}, None)
    return {"params": weights, "opt_state": opt_state, "step": jnp.asarray(3)}


def standard(path, tree):
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def pytree(path, tree):
    v0.PyTreeCheckpointer().save(path, tree)
    return path


def plain_files(path, tree):
    v0.PyTreeCheckpointer(use_ocdbt=False).save(path, tree)
    return path


def by_v1(path, tree):
    ocp.save(path, tree)
    return path


def by_v1_trainer(path, tree):
    with ocp.training.Checkpointer(path) as checkpointer:
        checkpointer.save(5, tree)
    return path


def run(path, trees, **options):
    """Save {step: tree} by a CheckpointManager, under its default item."""
    with v0.CheckpointManager(
        path, options=v0.CheckpointManagerOptions(**options)
    ) as manager:
        for step, tree in trees.items():
            manager.save(step, args=v0.args.StandardSave(tree))
        manager.wait_until_finished()
    return path


def one_run(path, tree):
    return run(path, {7: tree})


def run_of_items(path, tree):
    """Save one step, each part of the tree an item of its own, and JSON beside them."""
    with v0.CheckpointManager(path, item_names=(*tree, "about")) as manager:
        items = {name: v0.args.PyTreeSave(part) for name, part in tree.items()}
        about = v0.args.JsonSave({"seed": 0})
        manager.save(7, args=v0.args.Composite(about=about, **items))
        manager.wait_until_finished()
    return path


def v1_items(path, tree):
    ocp.save_checkpointables(path, tree)
    return path
