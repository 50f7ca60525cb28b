"""Mistral: Llama whose every layer sees a window only (arXiv 2310.06825)."""

from typing import Any

from merging.models.hf.family import Family
from merging.models.hf.fields import Fields
from merging.models.hf.rope import rope


def _decoder(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu", "silu")
    window = None
    if fields.values.get("sliding_window", 4096) is not None:
        window = fields.size("sliding_window", 4096)
    shape = fields.shape(tied=False)
    local = (True,) * shape["layers"] if window else ()
    return {**shape, **rope(fields), "window": window, "local_layers": local}


MISTRAL = Family("mistral", "MistralForCausalLM", _decoder)
