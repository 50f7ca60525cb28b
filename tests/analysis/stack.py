"""A base, experts and a merged model on disk, and their task vectors in NumPy."""

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

SHAPES = {
    "embed.weight": (1100, 150),
    "layers.0.mlp.up.weight": (450, 330),
    "layers.0.norm.weight": (330,),
    "layers.1.mlp.up.weight": (450, 330),
    "layers.1.norm.weight": (330,),
    "blocks.stacked.kernel": (3, 33, 40),
    "scalar": (),
    "empty": (0, 3),
}
NAMES = ("b", "a", "c")
MERGED = "m"


def models():
    """Return {name: leaves} of a base, three experts and a merged model, bfloat16."""
    rng = np.random.default_rng(0)
    base = {p: rng.standard_normal(s) * 0.05 for p, s in SHAPES.items()}
    found = {"base": base}
    shared = {p: rng.standard_normal(s) * 0.01 for p, s in SHAPES.items()}
    for name in NAMES:
        found[name] = {
            p: base[p]
            + shared[p]
            + rng.standard_normal(s) * 0.01 * rng.integers(0, 2, s)
            for p, s in SHAPES.items()
        }
    means = {p: np.mean([found[n][p] for n in NAMES], axis=0) for p in SHAPES}
    found[MERGED] = means
    cast = {
        name: {p: np.asarray(leaf).astype(jnp.bfloat16) for p, leaf in leaves.items()}
        for name, leaves in found.items()
    }
    for leaves in cast.values():
        leaves["positions"] = np.arange(7, dtype=np.int32)
    return cast


def save(folder, made):
    """Save models as safetensors; return {name: folder}."""
    for name, leaves in made.items():
        (folder / name).mkdir(parents=True)
        save_file(leaves, folder / name / "model.safetensors")
    return {name: str(folder / name) for name in made}


def task_vectors(made, paths=SHAPES):
    """Return float64 [4, n]: of the experts, then the merged model."""

    def flat(name):
        parts = [made[name][p].astype(float).ravel() for p in sorted(paths)]
        return np.concatenate(parts)

    return np.stack([flat(name) - flat("base") for name in (*NAMES, MERGED)])
