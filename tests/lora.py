"""LoRA adapters on disk, and what they add, written from the formula."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model."
UP, EMBED, SQUARE = (
    "model.layers.0.mlp.up_proj",
    "model.embed_tokens",
    "model.layers.1.self_attn.q_proj",
)
SHAPES = {f"{UP}.weight": (37, 24), f"{EMBED}.weight": (50, 24)}
SHAPES |= {f"{SQUARE}.weight": (24, 24), "model.norm.weight": (24,)}
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none"}


def base_leaves(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(dtype) for k, s in SHAPES.items()}


def save_base(folder: Path, leaves) -> str:
    folder.mkdir(parents=True)
    save_file(leaves, folder / "model.safetensors")
    return str(folder)


def factors(seed, modules=(UP, SQUARE), rank=4, dtype=np.float32, shapes=None):
    """Return {name of a tensor: A or B}; `rank` is one, or one for each."""
    rng = np.random.default_rng(seed)
    found, ranks = {}, rank if isinstance(rank, dict) else dict.fromkeys(modules, rank)
    for module in modules:
        rows, columns = (shapes or SHAPES)[f"{module}.weight"]
        a, b, end = (columns, rows, ".weight")
        side = "lora_"
        if module == EMBED:
            a, b, end, side = rows, columns, "", "lora_embedding_"
        first = rng.standard_normal((ranks[module], a)) * 0.3
        second = rng.standard_normal((b, ranks[module])) * 0.1
        found[f"{PREFIX}{module}.{side}A{end}"] = first.astype(dtype)
        found[f"{PREFIX}{module}.{side}B{end}"] = second.astype(dtype)
    return found


def save(folder: Path, tensors, **config) -> str:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return str(folder)


def delta(tensors, module, scaling):
    """Return s·BA of a module, in float64."""
    a = next(v for k, v in tensors.items() if f"{module}.lora_" in k and "_A" in k)
    b = next(v for k, v in tensors.items() if f"{module}.lora_" in k and "_B" in k)
    found = scaling * (b.astype(np.float64) @ a.astype(np.float64))
    return found.T if module == EMBED else found
