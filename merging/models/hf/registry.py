"""Which family a config.json is of, and the decoder that it describes."""

from collections.abc import Mapping
from typing import Any

from merging.models.config import DecoderConfig
from merging.models.hf.family import Family
from merging.models.hf.fields import Fields
from merging.models.hf.gemma import GEMMA2, GEMMA3
from merging.models.hf.llama import LLAMA
from merging.models.hf.mistral import MISTRAL
from merging.models.hf.own import PALM, TINY
from merging.models.hf.qwen import QWEN2, QWEN3
from merging.runtime import foreign_json
from merging.runtime.errors import UserError, nearest

_ALL = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PALM, TINY)
_LONGEST_NAME = 100  # of an unknown architecture, in a message
FAMILIES = {family.architecture: family for family in _ALL}


def read_config(text: str | bytes) -> tuple[Family, DecoderConfig]:
    """Return the family and the decoder that a checkpoint's config.json describes.

    Raises:
      UserError: it is no such file, of an unknown architecture (lists the known), a
        quantised model's, or asks for what the decoder can't do; lists all of that.
    """
    try:
        values = foreign_json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UserError(f"config.json can't be read: {error}.") from None
    family = _family(values)
    if values.get("quantization_config") is not None:
        raise UserError(
            "this checkpoint is quantised (config.json has a quantization_config); its "
            "weights cannot be read as numbers. Take the model it was made from, or "
            "dequantise it first and save it as bfloat16."
        )
    fields = Fields(values)
    found = family.decoder(fields)
    fields.require_sound(family.architecture)
    return family, DecoderConfig(**found)


def _family(values: Mapping[str, Any]) -> Family:
    named = values.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise UserError(
            "config.json names no architecture (architectures); known are "
            + ", ".join(sorted(FAMILIES))
            + "."
        )
    if named[0] not in FAMILIES:
        known = nearest("architecture", named[0][:_LONGEST_NAME], FAMILIES)
        raise UserError(f"{known} Only `merging merge` needs none: it merges any.")
    return FAMILIES[named[0]]
