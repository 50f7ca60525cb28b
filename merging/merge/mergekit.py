"""mergekit's YAML, for the methods both know: what it says, under mergekit's rules.

A file that says anything else is refused as a whole, with everything in it that is not
supported, rather than merged almost as it says.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from merging.merge import rules
from merging.runtime.errors import UserError

LARGEST = 1_000_000
_METHODS = {
    "linear": ("linear@mergekit", {"normalize": True}),
    "task_arithmetic": ("task_arithmetic@mergekit", {"normalize": False}),
    "ties": ("ties@mergekit", {"normalize": True}),
    "dare_linear": ("dare_linear@mergekit", {"normalize": False}),
    "dare_ties": ("dare_ties@mergekit", {"normalize": False}),
}
_KEYS = {
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    # Copied from the base here as there.
    "chat_template",
}
_PER_MODEL = ("weight", "density")
_SHARED = ("normalize", "lambda", "rescale", "int8_mask")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Merge(NamedTuple):
    """What a mergekit YAML asks for.

    Attributes:
      base: None if it names none.
      experts: the models that are merged, in order.
      method: for leaves that no rule takes, as `rules.parse` reads it.
      leaf_rules: from filters and slices, as `rules.parse_rule` reads them.
      dtype: of the result; None is the inputs'.
    """

    base: str | None
    experts: tuple[str, ...]
    method: str
    leaf_rules: tuple[str, ...]
    dtype: str | None


class _Part(NamedTuple):
    """Models with their parameters: the whole file, or a slice of its layers."""

    models: list[tuple[str, Mapping[str, Any]]]
    parameters: Mapping[str, Any]
    layers: tuple[int, int] | None


def read(path: str | Path) -> Merge:
    """Return what a mergekit YAML asks for.

    Raises:
      UserError: it can't be read, or asks for something that is not supported here;
        lists everything.
    """
    document = _load(Path(path))
    wrong: list[str] = []
    name = document.get("merge_method")
    if not isinstance(name, str) or name not in _METHODS:
        known = ", ".join(_METHODS)
        raise UserError(f"{path}: merge_method {name!r} is not supported; {known} are.")
    for key in sorted(set(document) - _KEYS):
        wrong.append(f"{key}: leave it out, or prepare the models with mergekit")
    _require_keys(document.get("parameters"), "parameters", wrong)
    parts = _parts(document, wrong)
    base = document.get("base_model")
    experts = _experts(parts, base, name, wrong)
    dtype = document.get("out_dtype") or document.get("dtype")
    if dtype is not None and dtype not in _DTYPES:
        wrong.append(f"dtype {dtype!r}: one of {', '.join(_DTYPES)}")
    if not wrong:
        _check_parameters(parts, document, name, wrong)
    if wrong:
        raise UserError(
            f"{path} asks for what is not supported here:\n  " + "\n  ".join(wrong)
        )
    written = _written(parts, document, name, base)
    *leaf_rules, (_, method) = written
    lines = tuple(f"{pattern} {rules.ARROW} {text}" for pattern, text in leaf_rules)
    return Merge(base, experts, method, lines, dtype)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than any mergekit YAML.")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}.") from None
    # An alias of an alias of an alias can fill any memory; no merge needs one.
    if re.search(r"(?m)(^|[\s:,\[{-])[&*][A-Za-z0-9_]", text):
        raise UserError(
            f"{path}: YAML anchors and aliases are not read; write them out."
        )
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is no YAML: {error}.") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is no mergekit YAML: it holds no keys.")
    return document


def _parts(document: Mapping[str, Any], wrong: list[str]) -> list[_Part]:
    """Return the file's models, or those of each slice."""
    if ("models" in document) == ("slices" in document):
        wrong.append("exactly one of models and slices must be there")
        return []
    if "models" in document:
        return [_Part(_models(document["models"], "models", wrong), {}, None)]
    parts, end = [], 0
    slices = document["slices"]
    for number, one in enumerate(slices if isinstance(slices, list) else []):
        where = f"slices[{number}]"
        sources = one.get("sources") if isinstance(one, dict) else None
        ranges = {
            tuple(source["layer_range"])
            for source in sources or ()
            if isinstance(source, dict) and _is_range(source.get("layer_range"))
        }
        if not sources or len(ranges) != 1:
            wrong.append(f"{where}: all sources must have one and the same layer_range")
            continue
        layers = ranges.pop()
        if layers[0] != end:
            wrong.append(f"{where}: layers are repeated, left out or reordered")
        end = layers[1]
        if extra := set(one) - {"sources", "parameters", "base_model"}:
            wrong.append(f"{where}: {', '.join(sorted(extra))}")
        models = _models(sources, where, wrong)
        _require_keys(one.get("parameters"), f"{where}: parameters", wrong)
        parts.append(_Part(models, one.get("parameters") or {}, layers))
    if not parts and not wrong:
        wrong.append("slices: a list of at least one")
    return parts


def _require_keys(parameters: Any, where: str, wrong: list[str]) -> None:
    if parameters is not None and not isinstance(parameters, dict):
        wrong.append(f"{where} must be keys with values")


def _is_range(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(type(n) is int for n in value) and 0 <= value[0] < value[1]


def _models(listed: Any, where: str, wrong: list[str]) -> list[tuple[str, Mapping]]:
    found = []
    for number, entry in enumerate(listed if isinstance(listed, list) else []):
        model = entry.get("model") if isinstance(entry, dict) else None
        if not isinstance(model, str) or not model:
            wrong.append(f"{where}[{number}]: no model")
            continue
        if "+" in model:
            wrong.append(f"{model}: merge the LoRA into its model first")
        _require_keys(entry.get("parameters"), f"{model}: parameters", wrong)
        parameters = entry.get("parameters") or {}
        if extra := set(entry) - {"model", "parameters", "layer_range"}:
            wrong.append(f"{model}: {', '.join(sorted(extra))}")
        found.append((model, parameters))
    if not found:
        wrong.append(f"{where}: a list of at least one model")
    return found


def _experts(parts, base, name: str, wrong: list[str]) -> tuple[str, ...]:
    """Return the models that are merged; the base is one of them for `linear` only."""
    lists = {
        tuple(m for m, _ in part.models if _counts(m, base, name)) for part in parts
    }
    if len(lists) > 1:
        wrong.append("every slice must merge the same models in the same order")
    if name != "linear" and not isinstance(base, str):
        wrong.append(f"{name} needs base_model")
    return next(iter(lists), ())


def _counts(model: str, base: str | None, name: str) -> bool:
    return name == "linear" or model != base


def _check_parameters(parts, document, name: str, wrong: list[str]) -> None:
    """List the parameters, and values of them, that nothing here follows."""
    shared = document.get("parameters") or {}
    for parameters in (shared, *(p.parameters for p in parts)):
        for key, value in parameters.items():
            if key not in (*_PER_MODEL, *_SHARED):
                wrong.append(f"parameter {key}")
            elif key == "rescale" and value is True and name == "ties":
                wrong.append("rescale: true with ties (the default is false)")
            elif key in ("normalize", "rescale") and type(value) is not bool:
                wrong.append(f"{key}: true or false, the same for all tensors")
    for part in parts:
        for model, parameters in part.models:
            for key in parameters:
                if key not in _PER_MODEL:
                    wrong.append(f"{model}: parameter {key}")
    values = [shared, *(p.parameters for p in parts)]
    sliced = len(parts) > 1
    values += [parameters for part in parts for _, parameters in part.models]
    for parameters in values:
        for key in (*_PER_MODEL, "lambda"):
            if key in parameters and not _is_value(parameters[key]):
                wrong.append(f"{key}: {parameters[key]!r} is no number or list of them")
            elif sliced and key in parameters and _is_gradient(parameters[key]):
                wrong.append(f"{key}: a gradient within slices; write it over models")


def _is_value(value: Any) -> bool:
    """Return whether it is a number, a gradient, or a list of conditions on names."""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return all(
            set(v) <= {"filter", "value"}
            and isinstance(v.get("filter", "*"), str | None)
            and "value" in v
            and _is_plain(v["value"])
            for v in value
        )
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_number(v) for v in value)
    return _is_number(value)


def _is_gradient(value: Any) -> bool:
    if isinstance(value, list) and isinstance(value[0], dict):
        return any(_is_gradient(v["value"]) for v in value)
    return isinstance(value, list) and len(value) > 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _written(parts, document, name: str, base) -> list[tuple[str, str]]:
    """Return (pattern, method) pairs; the last one is for all that is left."""
    found = []

    def write(part: _Part, inside: str) -> None:
        for condition in _filters(part, document):
            text = _method(part, document, name, base, condition)
            found.append((inside + _containing(condition) or ".", text))

    first, last = parts[0], parts[-1]
    for part in parts:
        if part.layers is not None:
            write(part, _layer_pattern(part.layers))
    if first is not last:
        # Embeddings go with the first slice, and what follows the layers with the last.
        write(first, f"^(?=.*{rules.EMBEDDINGS})")
    write(last, "")
    return found


def _filters(part: _Part, document: Mapping[str, Any]) -> list[str]:
    """Return all name filters of a part, in their order, and "*" for the rest."""
    found: list[str] = []
    sources = [document.get("parameters") or {}, part.parameters]
    for parameters in [p for _, p in part.models] + sources:
        for value in parameters.values():
            for entry in value if isinstance(value, list) else []:
                if isinstance(entry, dict) and entry.get("filter") not in (None, "*"):
                    found.append(entry["filter"])
    return [*dict.fromkeys(found), "*"]


def _containing(condition: str) -> str:
    return "" if condition == "*" else f"(?=.*{re.escape(condition)})"


def _layer_pattern(layers: tuple[int, int]) -> str:
    numbers = "|".join(str(n) for n in range(*layers))
    return rf"^(?=.*(?:layers|h|blocks)[._/](?:{numbers})(?:[._/]|$))"


def _method(part, document, name, base, condition: str) -> str:
    """Return the method of the leaves whose names hold a text, as `rules` reads it."""
    preset, defaults = _METHODS[name]
    shared = {**(document.get("parameters") or {}), **part.parameters}
    normalize = shared.get("normalize", defaults["normalize"])
    settings = {"normalize": repr(normalize)}
    if name.startswith("dare"):
        settings["rescale"] = repr(shared.get("rescale", True))
    per_model = [
        {**shared, **p} for model, p in part.models if _counts(model, base, name)
    ]
    weights = [_number(p.get("weight"), condition) for p in per_model]
    if None not in weights:
        settings["weights"] = f"({', '.join(weights)},)"
    densities = [_number(p.get("density"), condition) for p in per_model]
    if name not in ("linear", "task_arithmetic") and any(densities):
        settings["density"] = f"({', '.join(d or '1.0' for d in densities)},)"
    if name != "linear" and (scale := _number(shared.get("lambda"), condition)):
        settings["scale"] = scale
    return f"{preset}({', '.join(f'{k}={v}' for k, v in settings.items())})"


def _number(value: Any, condition: str) -> str | None:
    """Return a value's text for names that hold `condition`: the first that fits."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            wanted = entry.get("filter") or "*"
            if wanted == "*" or (condition != "*" and wanted in condition):
                return _number(entry["value"], condition)
        return None
    if isinstance(value, list):
        if len(value) == 1:
            return repr(float(value[0]))
        return f"by_layer({', '.join(repr(float(v)) for v in value)})"
    return None if value is None else repr(float(value))
