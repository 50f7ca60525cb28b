import copy

import pytest
from ml_collections import ConfigDict

TINY = dict(
    family="tiny",
    size="64x",
    vocab_size=400,
    experts=2,
    method=dict(name="ties", density=0.2, scale=1.0, weights=None),
    memory_budget="100MB",
    mesh=dict(fsdp=4, tensor=2),
    storage=dict(read=2.0, write=1.0),
    scoring=dict(batch=8, length=32),
    training=dict(batch=8, length=32, param_dtype="float32", dtype="float32"),
    efficiency=0.5,
)


@pytest.fixture(scope="session")
def make_config():
    """Return a function that makes a plan's config: a tiny model, with changes."""

    def make(**changes):
        return ConfigDict({**copy.deepcopy(TINY), **changes})

    return make


def estimate(found, name):
    return next(p for p in found["estimates"] if p["name"] == name)


@pytest.fixture(scope="session")
def estimate_of():
    return estimate
