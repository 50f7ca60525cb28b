"""Rotary settings of a config.json, in the spelling of any transformers version."""

from collections.abc import Mapping
from typing import Any

from merging.models.config import RopeScaling
from merging.models.hf.fields import Fields

SUPPORTED = ("default", "linear", "llama3")


def rope(fields: Fields, theta: float = 10_000.0) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a decoder.

    Args:
      fields: with `rope_parameters`, or `rope_theta` and `rope_scaling` beside it.
      theta: the family's base where none is given.
    """
    given = _object(fields, "rope_parameters") or _object(fields, "rope_scaling")
    theta = fields.number("rope_theta", theta)
    return _read(fields, given, theta)


def rope_by_layer(fields: Fields, theta: float, local_theta: float) -> dict[str, Any]:
    """Return the rotary settings of a family whose local layers have their own base.

    Args:
      fields: with `rope_parameters` by kind of layer, or `rope_theta`,
        `rope_local_base_freq` and `rope_scaling`.
      theta: the family's base where none is given.
      local_theta: that of local layers.
    """
    by_kind = _object(fields, "rope_parameters")
    theta = fields.number("rope_theta", theta)
    local_theta = fields.number("rope_local_base_freq", local_theta)
    far = by_kind.get("full_attention") or _object(fields, "rope_scaling")
    near = by_kind.get("sliding_attention") or {}
    if not isinstance(far, Mapping) or not isinstance(near, Mapping):
        fields.wrong("rope_parameters holds things that are no objects")
        return {}
    nearby = _read(fields, near, local_theta)
    if nearby["rope_scaling"] is not None:
        fields.wrong("rope_scaling of local layers is not supported")
    return {**_read(fields, far, theta), "local_rope_theta": nearby["rope_theta"]}


def _read(fields: Fields, given: Mapping[str, Any], theta: float) -> dict[str, Any]:
    inner = Fields(given)
    found = {
        "rope_theta": inner.number("rope_theta", theta),
        "rope_scaling": _scaling(inner, fields),
    }
    for fault in inner.faults:
        fields.wrong(f"rope_scaling: {fault}")
    return found


def _scaling(given: Fields, whole: Fields) -> RopeScaling | None:
    kind = given.values.get("rope_type", given.values.get("type", "default"))
    if kind not in SUPPORTED:
        given.wrong(f"type {kind!r} is not supported; {', '.join(SUPPORTED)} are")
        return None
    given.only("partial_rotary_factor", 1.0, 1.0)
    if kind == "default":
        return None
    factor = _needed(given, "factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    length = "original_max_position_embeddings"
    return RopeScaling(
        kind,
        factor,
        _needed(given, "low_freq_factor"),
        _needed(given, "high_freq_factor"),
        given.size(length, whole.size("max_position_embeddings", 2048)),
    )


def _needed(given: Fields, name: str) -> float:
    value = given.number(name)
    if value is None and given.values.get(name) is None:
        given.wrong(f"{name} is missing")
    return 1.0 if value is None else value


def _object(fields: Fields, name: str) -> Mapping[str, Any]:
    value = fields.values.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        fields.wrong(f"{name} = {value!r} is no object")
        return {}
    return value
