"""Qwen 2 and 2.5 with biases, Qwen 3 with normalised queries and keys.

arXiv 2407.10671, 2412.15115, 2505.09388.
"""

from typing import Any

from merging.models.hf.family import Family
from merging.models.hf.fields import Fields
from merging.models.hf.rope import rope


def _decoder(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "silu")
    shape = fields.shape(tied=False)
    window, local = None, ()
    if fields.flag("use_sliding_window", False):
        window = fields.size("sliding_window", 4096)
        # Only layers from this one on are local.
        first = fields.values.get("max_window_layers", 28)
        if type(first) is not int:
            fields.wrong(f"max_window_layers = {first!r} is no whole number")
            first = 0
        local = tuple(layer >= first for layer in range(shape["layers"]))
        local = fields.local_layers(local)
    return {**shape, **rope(fields), "window": window, "local_layers": local}


def _qwen2(fields: Fields) -> dict[str, Any]:
    return {**_decoder(fields), "attention_bias": True}


def _qwen3(fields: Fields) -> dict[str, Any]:
    fields.only("attention_bias", False, False)
    shape = {"head_dim": fields.size("head_dim", 128)}
    return {**_decoder(fields), **shape, "qk_norm": True}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _qwen2)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _qwen3)
