"""Our own ladders' decoders: their config.json is what we write beside a training.

``PALM``: PaLM's shape, attention and MLP side by side (arXiv 2204.02311); no such model
was published with its weights. RMSNorm stands for PaLM's LayerNorm without biases.
``TINY``: one after the other. The names are Llama's, the architectures' are ours.
"""

import json
from typing import Any

from merging.models.config import DecoderConfig
from merging.models.families.family import Family
from merging.models.families.fields import Fields
from merging.models.families.rope import rope


def _palm(fields: Fields) -> dict[str, Any]:
    return _tiny(fields) | {"parallel_block": True}


def _tiny(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "silu")
    shape = fields.shape(tied=True) | {
        "kv_heads": fields.size("num_key_value_heads", 1),
        "scaled_embeddings": True,
        "remat": fields.flag("remat", False),
        "unroll": fields.size("unroll", 1),
    }
    return {**shape, **rope(fields)}


PALM = Family("palm", "PaLMForCausalLM", _palm)
TINY = Family("tiny", "TinyForCausalLM", _tiny)


def describe(config: DecoderConfig) -> str:
    """Return the config.json of a ladder's decoder, as `read_config` reads it."""
    family = PALM if config.parallel_block else TINY
    values = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_id,
        "torch_dtype": config.param_dtype,
        "remat": config.remat,
        "unroll": config.unroll,
    }
    return json.dumps(values, indent=2) + "\n"
