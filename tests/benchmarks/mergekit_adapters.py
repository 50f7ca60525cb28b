"""LoRA adapters, and YAML files that merge models with them: `model: BASE+ADAPTER`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inputs
import mergekit_files as files
import numpy as np
from mergekit_files import Yaml
from safetensors.numpy import save_file

NAMES = ("attention", "scaled", "tokens")
_RANK = 4
_CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": _RANK}
# Of each adapter which modules it adds to, and what scales the sum.
_ADAPTERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "attention": (("q_proj", "v_proj", "down_proj"), {"lora_alpha": 8}),
    "scaled": (
        ("q_proj", "o_proj", "up_proj"),
        {"lora_alpha": 6, "use_rslora": True, "alpha_pattern": {"o_proj": 3}},
    ),
    "tokens": (("embed_tokens", "k_proj", "lm_head"), {"lora_alpha": 8}),
}
# The factors' standard deviation: BA moves a weight by 0.002, a tenth of it.
_FACTOR = 0.023


def make(folder: Path, shape: inputs.Shape) -> None:
    """Write the adapters of a base of this shape."""
    for number, (name, (modules, scaling)) in enumerate(_ADAPTERS.items()):
        random = np.random.default_rng(170 + number)
        tensors = {}
        for path, dims in inputs.tensors(shape):
            module = path.removesuffix(".weight")
            if module.rpartition(".")[2] not in modules:
                continue
            (rows, columns), side, end = dims, "lora_", ".weight"
            if module.endswith("embed_tokens"):
                # Its factors are those of its transpose.
                rows, columns, side, end = columns, rows, "lora_embedding_", ""
            for letter, size in (("A", (_RANK, columns)), ("B", (rows, _RANK))):
                key = f"base_model.model.{module}.{side}{letter}{end}"
                tensors[key] = random.normal(0, _FACTOR, size).astype(np.float32)
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name / "adapter_model.safetensors")
        config = {**_CONFIG, "target_modules": list(modules), **scaling}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))


def yamls() -> Iterator[tuple[str, str, Yaml]]:
    """Yield (method, what it says, the file)."""
    both = ("base+attention", "base+scaled")
    for method in ("linear", "task_arithmetic", "ties", "dare_linear"):
        yield method, "adapters", _of(files.plain(method), *both)
    ties = _of(files.plain("ties"), *both)
    yield "ties", "adapters, density 1", ties | {"parameters": {"density": 1}}
    for name, experts in {
        "adapter of tokens": ("base+tokens", "expert2"),
        "adapters of experts": ("expert1+scaled", "expert2+tokens"),
        "an adapter twice": ("base+scaled", "expert1+scaled"),
        "no such adapter": ("base+nothing", "expert2"),
        "two adapters on each other": ("base+attention+scaled", "expert2"),
        "an adapter alone": ("attention", "expert2"),
    }.items():
        yield "task_arithmetic", name, _of(files.plain("task_arithmetic"), *experts)
    sliced = _of(files.slices("task_arithmetic"), "base+scaled", "expert2+attention")
    yield "task_arithmetic", "adapters, slices", sliced
    based = _of(files.plain("task_arithmetic"), "expert1", "expert2")
    yield "task_arithmetic", "base with an adapter", {**based, "base_model": both[0]}
    # Without one, mergekit's output is float32, in which it adds the adapters.
    narrow = {"dtype": None, "out_dtype": "bfloat16", "family": "bfloat16"}
    plain = _of(files.plain("task_arithmetic"), *both)
    yield "task_arithmetic", "adapters, bfloat16", plain | narrow
    yield "task_arithmetic", "adapters, tied", plain | {"family": "tied"}
    two = {"models": [{"model": name} for name in both], "dtype": "float32"}
    yield "slerp", "adapters", two | {"base_model": both[0], "parameters": {"t": 0.3}}
    yield "model_stock", "adapters", two
    folded = {"models": [{"model": "base+tokens"}], "dtype": "float32"}
    yield "passthrough", "an adapter", folded


def _of(yaml: Yaml, one: str, two: str) -> Yaml:
    """Return a file with other models in place of expert1 and expert2."""
    names = {"expert1": one, "expert2": two}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: named(v) for k, v in value.items()}
        if isinstance(value, list):
            return [named(v) for v in value]
        return names.get(value, value) if isinstance(value, str) else value

    return {k: v if k == "densities" else named(v) for k, v in yaml.items()}
