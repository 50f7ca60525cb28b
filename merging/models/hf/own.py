"""Our own decoders: their config.json is what we write beside a training.

``PALM``: PaLM's shape, attention and MLP side by side (arXiv 2204.02311); no such model
was published with its weights. RMSNorm stands for PaLM's LayerNorm without biases.
``TINY``: one after the other. The names are Llama's, the architectures' are ours.
"""

import json
from typing import Any

from merging.models.config import DecoderConfig
from merging.models.hf.family import Family
from merging.models.hf.fields import Fields
from merging.models.hf.rope import rope

_MOST_UNROLLED = 64  # layers; each costs compiling, whoever wrote the file


def _palm(fields: Fields) -> dict[str, Any]:
    return _tiny(fields) | {"parallel_block": True}


def _tiny(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "silu")
    unroll = fields.size("unroll", 1)
    if unroll > _MOST_UNROLLED:
        fields.wrong(f"unroll = {unroll} writes out more than {_MOST_UNROLLED} layers")
    shape = fields.shape(tied=True) | {
        "kv_heads": fields.size("num_key_value_heads", 1),
        "scaled_embeddings": True,
        "remat": fields.flag("remat", False),
        "unroll": unroll,
    }
    if fields.values.get("bos_token_id", 0) is None:
        shape["bos_id"] = None
    return {**shape, **rope(fields)}


PALM = Family("palm", "PaLMForCausalLM", _palm)
TINY = Family("tiny", "TinyForCausalLM", _tiny)


def describe(config: DecoderConfig, eos_id: int) -> str:
    """Return the config.json of a family's decoder, as `read_config` reads it.

    It has one dtype, the parameters'. `eos_id` is the tokenizer's end mark.
    """
    family = PALM if config.parallel_block else TINY
    values = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
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
        "eos_token_id": eos_id,
        "torch_dtype": config.param_dtype,
        "remat": config.remat,
        "unroll": config.unroll,
    }
    return json.dumps(values, indent=2) + "\n"
