"""Parameters under which every method is put through the battery, and its models."""

import math

import jax.numpy as jnp
import numpy as np

from merging import methods
from merging.merge import cutting
from merging.runtime import tree

# Every method of the registry has an entry; `test_laws` checks that.
CASES = {
    "average": [{}, {"weights": (1.0, 0.5, 2.0)}],
    "task_arithmetic": [{}, {"scale": 0.7, "weights": (1.0, -0.5, 2.0)}],
    "ties": [
        {},
        {"weights": (1.0, 0.5, 2.0), "scale": 0.3},
        {"scope": "global", "ties": "exact", "density": 0.5},
        {"scope": "tensor", "zero": "positive"},
        {"scope": "row", "ties": "exact", "density": 0.4},
    ],
    "dare": [{}, {"density": 0.5, "rescale": False, "weights": (1.0, 0.5, 2.0)}],
    "dare_ties": [{}, {"density": 0.6, "trim_density": 0.3, "zero": "positive"}],
    "rht": [{}, {"density": 0.3, "weights": (1.0, 0.5, 2.0)}],
    "model_stock": [{}, {"scale": 0.5, "scope": "row"}],
    "slerp": [{"t": 0.3}],
    "nuslerp": [
        {"weights": (1.0, 0.5), "along": "row"},
        {"along": "column", "scale": 0.5},
    ],
    "multislerp": [{"weights": (1.0, 0.5, 2.0)}],
    "karcher": [{"weights": (1.0, 0.5, 2.0), "scale": 0.5}],
    "passthrough": [{}],
    "nearswap": [{"t": 0.01, "scale": 0.5}],
    "arcee_fusion": [{}],
    "breadcrumbs": [{"density": 0.4, "gamma": 0.1, "scope": "tensor"}],
    "breadcrumbs_ties": [{"density": 0.4, "gamma": 0.1}],
    "della": [{"density": 0.5, "epsilon": 0.2}],
    "della_linear": [{"weights": (1.0, -0.5, 2.0)}],
    "sce": [{"density": 0.5}],
    "ram": [{"epsilon": 0.015}],
    "ramplus_tl": [{"epsilon": 0.03, "r": 0.5, "alpha": 2.0}],
    "linear@mergekit": [{"weights": (1.0, 0.5, 2.0)}],
    "task_arithmetic@mergekit": [
        {},
        {"weights": (1.0, 0.5, 2.0), "normalize": True},
        {"weights": (0.5, -1.5, 1.0), "normalize": True},
    ],
    "ties@mergekit": [
        {"density": 0.3, "weights": (1.0, 0.5, 2.0)},
        {"density": 0.6, "weights": (1.0, -0.5, 2.0)},
        {"density": 0.001, "normalize": False, "rescale": True},
    ],
    "dare_linear@mergekit": [{"density": 0.5, "weights": (1.0, 0.5, 2.0)}],
    "dare_ties@mergekit": [{"density": 0.6, "normalize": True}],
    "breadcrumbs@mergekit": [{"density": 0.5, "rescale": True}],
    "breadcrumbs_ties@mergekit": [{"density": 0.5, "gamma": 0.1, "normalize": True}],
    "della@mergekit": [{"density": 0.5}],
    "della_linear@mergekit": [{"density": 0.5, "weights": (1.0, -0.5, 2.0)}],
    "sce@mergekit": [{"density": 0.5}],
    "model_stock@mergekit": [{}],
    "fisher": [{}, {"floor": 0.3, "weights": (1.0, 0.5, 2.0)}],
    "regmean": [{}, {"off_diagonal": 0.5, "weights": (1.0, 0.5, 2.0)}],
    "consensus_ta": [
        {},
        {"mask_scale": 0.9, "agree": 1, "scale": 0.7, "weights": (1.0, -0.5, 2.0)},
    ],
    "emr": [{}],
    "iso_c": [{}, {"scale": 0.5, "weights": (1.0, 0.5, 2.0)}],
    "iso_cts": [{}, {"common": 0.3, "weights": (1.0, 0.5, 2.0)}],
    "tsv_m": [{}, {"scale": 0.5, "weights": (1.0, 0.5, 2.0)}],
    "wudi": [{"steps": 5, "learning_rate": 1e-3}],
}
# Held against the reference only.
MORE = [
    ("slerp", {"t": 0.7, "scale": 0.5}),
    ("nuslerp", {"weights": (1.0, 0.5), "scale": 1.0}),
    ("multislerp", {"normalize": False, "scale": 1.0}),
    ("karcher", {}),
    ("nearswap", {}),
    ("breadcrumbs", {}),
    ("sce", {"density": 1.0}),
    ("model_stock@mergekit", {"filter_wise": True}),
]
# One of each kind of what the engine does: for what is the engine's and no method's.
KINDS = ("average", "ties", "dare_ties", "rht", "model_stock", "iso_c", "sce", "slerp")
ALL = [(name, parameters) for name, cases in CASES.items() for parameters in cases]
# The first case of each method, and what compares along something else than it.
WAYS = [
    (name, parameters)
    for name, cases in CASES.items()
    for parameters in cases
    if parameters is cases[0] or {"scope", "along"} & parameters.keys()
]
IDS = [
    name + "".join(f"-{key}={value}" for key, value in parameters.items())
    for name, parameters in ALL
]
SHAPES = {
    "layers/attention": (2, 16, 24),
    "layers/norm": (2, 16),
    "embedding": (40, 16),
    "odd": (63,),
    "scalar": (),
}


def shapes_for(name, parameters):
    """Return `SHAPES`, or fewer where leaves are not packed and each is compiled."""
    kind = methods.get(name, **parameters).granularity
    if kind == "element":
        return SHAPES
    kinds = {
        "row": ("layers/attention", "odd", "scalar"),
        "matrix": ("layers/attention", "layers/norm", "embedding", "scalar"),
    }
    return {path: SHAPES[path] for path in kinds[kind]}


def one_leaf_for(name, parameters):
    """Return one leaf that divides over devices, of a block's shape in `SHAPES`.

    A merge of it on one device is programs that a merge of `shapes_for` has compiled.
    """
    if methods.get(name, **parameters).granularity == "element":
        rows = sum(-(-math.prod(s) // cutting.PACKED_ROW) for s in SHAPES.values())
        return {"layers/attention": (rows, 16, cutting.PACKED_ROW // 16)}
    return {"layers/attention": SHAPES["layers/attention"]}


def experts_for(name):
    """Return how many experts a method is put through the battery with."""
    return methods.get(name).takes or 3


def models(count=3, seed=0, dtype=jnp.float32, shapes=None):
    """Return (base, experts) whose task vectors are exact in bfloat16 and often tie.

    Task vectors are odd multiples of 2**-8 from a small pool and the base multiples
    of 2**-7 below 1/8, so every difference is exact, three never sum to zero, and
    many magnitudes are equal.
    """
    shapes = SHAPES if shapes is None else shapes
    rng = np.random.default_rng(seed)
    base = {p: rng.integers(-15, 16, s) / 128 for p, s in shapes.items()}

    def expert():
        return {
            p: base[p] + (2 * rng.integers(0, 6, s) + 1) * rng.choice([-1, 1], s) / 256
            for p, s in shapes.items()
        }

    experts = {name: expert() for name in ("law", "code", "math", "chat")[:count]}

    def params(leaves):
        return tree.unflatten({p: jnp.asarray(x, dtype) for p, x in leaves.items()})

    return params(base), {name: params(e) for name, e in experts.items()}


def as_float64(params):
    return {p: np.asarray(x, np.float64) for p, x in tree.flatten(params).items()}


def bits(params):
    """Return every leaf's raw bytes, to compare without tolerance."""
    return {p: np.asarray(x).tobytes() for p, x in tree.flatten(params).items()}
