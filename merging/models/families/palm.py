"""PaLM's shape: attention and MLP side by side, one key head (arXiv 2204.02311).

No such model was published with its weights, so the names are Llama's, and the
architecture's name is ours. RMSNorm stands for PaLM's LayerNorm without biases.
"""

from typing import Any

from merging.models.families.family import Family
from merging.models.families.fields import Fields
from merging.models.families.rope import rope


def _decoder(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "silu")
    shape = fields.shape(tied=True) | {
        "kv_heads": fields.size("num_key_value_heads", 1),
        "parallel_block": True,
        "scaled_embeddings": True,
    }
    return {**shape, **rope(fields)}


PALM = Family("palm", "PaLMForCausalLM", _decoder)
