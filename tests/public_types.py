"""What a user of the package writes, for the type checker: `pyrefly check`.

Nothing here runs. That `merging.merge` is both a function and a room is for people;
a type checker has to see the function.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import merging
from merging.merge import merge_scales, verify
from merging.runtime import config
from merging.runtime.storage import Folder


def in_memory() -> dict[str, Any]:
    """Merge nested dicts of arrays."""
    base = {"w": jnp.zeros(3)}
    method = merging.methods.ties(density=0.2, scale=1)
    merges: Iterator[dict[str, Any]] = merge_scales(base, [base], method, [0.5, 1.0])
    assert next(merges)
    return merging.merge(base, {"qa": base, "nli": base}, method, seed=1)


def from_storage() -> Folder:
    """Merge folders, and look at what came out."""
    merging.merge_checkpoints("base", ["qa"], "ties(density=0.2)", "merged")
    merging.merge_checkpoints(None, {"qa": Path("a")}, merging.methods.average(), "b")
    scores = merging.evaluate("merged", "miniworld", datasets=["copa"])
    assert all(score.value >= score.chance for score in scores)
    wrong: list[str] = verify("merged")
    assert not wrong
    merging.train(config.load("train/pretrain", {"size": "1x"}), "base")
    merging.sweep(config.load("scaling_curves/smoke"), "curves", shard=(0, 4))
    plan: dict[str, Any] = merging.plan(config.load("plan/palm_64b"), "v5p:4x4x8")
    assert plan
    return merging.report(["curves"], "report")


@merging.methods.register("an example")
def own(scale: float = 1.0) -> merging.methods.Method:
    """Half the sum."""
    total = merging.methods.combiners.sum()
    return merging.methods.compose("own", combiner=total, scale=scale)
