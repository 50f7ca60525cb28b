"""Gemma 2 and 3: GeGLU, norms before and after, local layers between global ones.

Gemma 2 caps its scores and logits softly (arXiv 2408.00118); Gemma 3 normalises
queries and keys instead, and its local layers turn at a base of their own (arXiv
2503.19786). Text models only.
"""

from typing import Any

from merging.models.hf.family import NAMES, Family
from merging.models.hf.fields import Fields
from merging.models.hf.rope import rope, rope_by_layer

_LAYER = "model.layers.{}."
_NAMES = NAMES | {
    "layers/attention_post_norm": _LAYER + "post_attention_layernorm.weight",
    "layers/mlp_norm": _LAYER + "pre_feedforward_layernorm.weight",
    "layers/mlp_post_norm": _LAYER + "post_feedforward_layernorm.weight",
}


def _decoder(fields: Fields, every: int) -> dict[str, Any]:
    """Return what both have; every so many layers, one is global."""
    fields.only("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    fields.only("attention_bias", False, False)
    if fields.values.get("use_bidirectional_attention"):
        fields.wrong("use_bidirectional_attention is not supported")
    shape = fields.shape(tied=True)
    local = tuple((layer + 1) % every != 0 for layer in range(shape["layers"]))
    local = fields.local_layers(local)
    return shape | {
        "head_dim": fields.size("head_dim", 256),
        "activation": "geglu",
        "scaled_embeddings": True,
        "unit_offset": True,
        "post_norms": True,
        "query_scalar": fields.number("query_pre_attn_scalar", 256.0),
        "window": fields.size("sliding_window", 4096) if local else None,
        "local_layers": local,
    }


def _gemma2(fields: Fields) -> dict[str, Any]:
    caps = {
        "attention_softcap": _cap(fields, "attn_logit_softcapping", 50.0),
        "logit_softcap": _cap(fields, "final_logit_softcapping", 30.0),
    }
    return {**_decoder(fields, 2), **caps, **rope(fields)}


def _gemma3(fields: Fields) -> dict[str, Any]:
    # The released ones have null here, and transformers caps nothing whatever it says.
    fields.only("attn_logit_softcapping", None, None)
    caps = {"logit_softcap": _cap(fields, "final_logit_softcapping", None)}
    turning = rope_by_layer(fields, 1_000_000.0, 10_000.0)
    every = fields.size("sliding_window_pattern", 6)
    return {**_decoder(fields, every), **caps, **turning, "qk_norm": True}


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    """Return a soft cap; a null in the file means none, whatever the default."""
    return fields.number(name, None if name in fields.values else default)


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _gemma2, _NAMES)
GEMMA3 = Family("gemma3", "Gemma3ForCausalLM", _gemma3, _NAMES)
