"""Llama 2, Llama 3 with its slowed rotary frequencies, and what is built like them.

SmolLM2 is one, with tied embeddings (arXiv 2307.09288, 2407.21783, 2502.02737).
"""

from typing import Any

from merging.models.hf.family import Family
from merging.models.hf.fields import Fields
from merging.models.hf.rope import rope


def _decoder(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "silu")
    fields.only("attention_bias", False, False)
    fields.only("mlp_bias", False, False)
    return {**fields.shape(tied=False), **rope(fields)}


LLAMA = Family("llama", "LlamaForCausalLM", _decoder)
