"""Tiny models that transformers made, with the logits it found for them.

tests/benchmarks/family_parity.py makes them again, with the transformers of its day.
"""

import dataclasses
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

_logits = jax.jit(models.logits, static_argnums=0)


@functools.cache
def load(folder):
    """Return a case's decoder, its parameters, and what transformers was given."""
    config, params = families.load(folder)
    return config, params, load_file(Path(folder) / "case.safetensors")


def padded_error(config, params, case):
    """Return max |Δ logit| over the real tokens of rows padded on the right."""
    expected = case["padded_logits"]
    ours = np.asarray(_logits(config, params, case["padded_ids"]))
    return float(np.abs(ours[:, : expected.shape[1]] - expected).max())


def error(config, params, case):
    """Return max |Δ logit| over rows without padding."""
    ours = np.asarray(_logits(config, params, case["ids"]))
    return float(np.abs(ours - case["logits"]).max())


def wrong_norm(config, params):
    """Take gains as their distance from one where they are not, or the reverse."""
    return dataclasses.replace(config, unit_offset=not config.unit_offset), params


def wrong_rotary(config, params):
    """Give queries and keys as if neighbours, not halves, were turned together."""

    def interleaved(leaf):
        halves = leaf.reshape(*leaf.shape[:2], -1, 2, config.head_dim // 2)
        return halves.swapaxes(-1, -2).reshape(leaf.shape)

    layers = dict(params["layers"])
    layers |= {name: interleaved(layers[name]) for name in ("query", "key")}
    return config, {**params, "layers": layers}
