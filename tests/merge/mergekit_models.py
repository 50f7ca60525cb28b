"""Llama-named models on disk, small enough to merge by hand."""

import json

import numpy as np
from safetensors.numpy import load_file, save_file

SINGLE = "model.safetensors"
PARTS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def names(layers=4):
    """Return the leaves of a model of so many layers."""
    inside = [
        f"model.layers.{i}.{part}.weight" for i in range(layers) for part in PARTS
    ]
    return [OUTSIDE[0], *inside, *OUTSIDE[1:]]


def make(folder, count=2, layers=4, dtype=np.float32):
    """Save a base and experts; return {"base": its leaves, "a": …, "b": …}."""
    found = {}
    for number, name in enumerate(("base", *"abcdefgh"[:count])):
        random = np.random.default_rng(number)
        leaves = {n: random.normal(0, 1, (2, 6)).astype(dtype) for n in names(layers)}
        (folder / name).mkdir()
        save_file(leaves, folder / name / SINGLE, {"format": "pt"})
        config = {"model_type": "llama", "num_hidden_layers": layers}
        config |= {"torch_dtype": str(np.dtype(dtype)), "layer_types": ["x"] * layers}
        (folder / name / "config.json").write_text(json.dumps(config))
        found[name] = leaves
    return found


def load(folder):
    """Return the leaves of a merged model."""
    return load_file(folder / SINGLE)


def model(name, **parameters):
    return {"model": name, "parameters": parameters}


def layers(name, start, stop, **parameters):
    return model(name, **parameters) | {"layer_range": [start, stop]}


def weights(merge, *paths):
    """Return the weights of leaves; of one expert, its alone."""
    found = [merge.recipe[path].weights for path in paths]
    return [of[0] if len(of) == 1 else of for of in found]


def layer_weights(merge, part=PARTS[1], count=4):
    return weights(merge, *(f"model.layers.{i}.{part}.weight" for i in range(count)))


def outside_weights(merge):
    return weights(merge, names()[0], *names()[-2:])
