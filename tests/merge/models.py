"""Small models on disk: a base and experts, with leaves of every awkward kind."""

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

SHAPES = {
    "model.embed_tokens.weight": (600, 130),
    "model.layers.0.mlp.up_proj.weight": (257, 130),
    "model.layers.0.input_layernorm.weight": (130,),
    "model.layers.1.mlp.up_proj.weight": (257, 130),
    "model.layers.1.input_layernorm.weight": (130,),
    "scalar": (),
    "one": (1,),
    "empty": (0, 3),
}


def base(dtype=jnp.bfloat16, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    leaves = {
        path: (rng.standard_normal(shape) * 0.05).astype(dtype)
        for path, shape in shapes.items()
    }
    leaves["positions"] = np.arange(7, dtype=np.int32)
    return leaves


def expert(start, number):
    """Return the base moved a little; many of its changes are equal, or cancel."""
    rng = np.random.default_rng(100 + number)
    moved = dict(start)
    for path in [p for p in start if p != "positions"]:
        steps = rng.integers(-4, 5, start[path].shape) / 512
        moved[path] = (start[path].astype(np.float32) + steps).astype(start[path].dtype)
    return moved


def save(folder, leaves):
    folder.mkdir(parents=True)
    whole = {path: np.array(leaf, order="C") for path, leaf in leaves.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    return str(folder)


def family(folder, count=3, **settings):
    """Save a base and experts; return the base's folder and the experts' by name."""
    start = base(**settings)
    experts = {f"e{i}": save(folder / f"e{i}", expert(start, i)) for i in range(count)}
    return save(folder / "base", start), experts


def bits(leaves):
    """Return {path: bytes}, for equality bit by bit."""
    return {path: np.asarray(leaf).tobytes() for path, leaf in leaves.items()}
