"""Tiny models that transformers made, with the logits it found for them.

tests/benchmarks/family_parity.py makes them again, with the transformers of its day.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from merging import models
from merging.models import hf as families

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.name for path in GOLDENS.iterdir())
CLOSE = 1e-4

logits = jax.jit(models.logits, static_argnums=0)


@functools.cache
def load(folder):
    """Return a case's decoder, its parameters, and what transformers was given."""
    config, params = families.load(folder)
    return config, params, load_file(Path(folder) / "case.safetensors")


def padded_error(config, params, case):
    """Return max |Δ logit| over the real tokens of rows padded on the right."""
    return _errors(config, params, case)[1]


def error(config, params, case):
    """Return max |Δ logit| over rows without padding."""
    return _errors(config, params, case)[0]


def _errors(config, params, case):
    """Return both errors, by one program: a compilation is what a case costs."""
    width = max(case["ids"].shape[1], case["padded_ids"].shape[1])
    rows = [
        np.pad(ids, ((0, 0), (0, width - ids.shape[1])))
        for ids in (case["ids"], case["padded_ids"])
    ]
    ours = np.split(
        np.asarray(logits(config, params, np.concatenate(rows))), [len(rows[0])]
    )
    expected = case["logits"], case["padded_logits"]
    return [
        float(np.abs(a[:, : b.shape[1]] - b).max())
        for a, b in zip(ours, expected, strict=True)
    ]


def wrong_norm(config, params):
    """Take gains as their distance from one where they are not, or the reverse."""
    change = -1 if config.unit_offset else 1
    moved = [
        (path, leaf + change if "norm" in str(path[-1]) else leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    structure = jax.tree.structure(params)
    return config, jax.tree.unflatten(structure, [leaf for _, leaf in moved])


def wrong_rotary(config, params):
    """Give queries and keys as if neighbours, not halves, were turned together."""

    def interleaved(leaf):
        halves = leaf.reshape(*leaf.shape[:2], -1, 2, config.head_dim // 2)
        return halves.swapaxes(-1, -2).reshape(leaf.shape)

    layers = dict(params["layers"])
    layers |= {name: interleaved(layers[name]) for name in ("query", "key")}
    return config, {**params, "layers": layers}
