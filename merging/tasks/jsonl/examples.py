"""One line of the user's own files: what is wrong with it, and what it says."""

import re
from collections.abc import Mapping
from typing import Any

from merging.runtime.errors import nearest
from merging.tasks.metrics import METRICS
from merging.tasks.suites import SPLITS, Generation

_KEYS = "dataset category split inputs choices label target metric part".split()
_KEYS += "stop max_new_tokens".split()
_TEXTS = ("dataset", "category", "split", "inputs")
_MOST_STOPS, _MOST_TOKENS = 16, 1 << 16
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def error(record: Mapping[str, Any]) -> str:
    """Return what is wrong with a line by itself; "" if nothing."""
    for key in record:
        if key not in _KEYS:
            return str(nearest("key", key[:40], _KEYS))
    for key in _TEXTS:
        if not _is_text(record.get(key)):
            return f"{key} must be a text"
    for key in ("dataset", "category"):
        name = record[key]
        odd = name.startswith("category_") or name.endswith("_score_eval")
        if odd or not _NAME.fullmatch(name):
            return f"{key} {name[:70]!r} must be a short name like tide_tables"
    if record["split"] not in ("held_in", "held_out"):
        return f"split must be held_in or held_out, not {record['split'][:20]!r}"
    if record.get("part", "test") not in SPLITS:
        return f"part must be one of {', '.join(SPLITS)}"
    if not isinstance(metric(record), str) or metric(record) not in METRICS:
        return str(nearest("metric", _shown(metric(record)), METRICS))
    ranked = "choices" in record
    if ranked != metric(record).startswith("accuracy"):
        kind = "an example with choices" if ranked else "a text that is generated"
        return f"{metric(record)} is no metric for {kind}"
    if ranked:
        told = [key for key in ("stop", "max_new_tokens") if key in record]
        return f"{told[0]} is for a text" if told else _choice_error(record)
    return _target_error(record) or _generation_error(record)


def metric(record: Mapping[str, Any]) -> str:
    """Return the metric that a line states, or the usual one for what it is."""
    return record.get("metric", "accuracy" if "choices" in record else "exact_match")


def generation(record: Mapping[str, Any]) -> Generation:
    """Return how far a sound line's text is generated."""
    return Generation(tuple(record.get("stop", ())), record.get("max_new_tokens", 0))


def text_example(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sound line as a text example (see ``tasks.texts``)."""
    if "choices" not in record:
        return {"inputs": record["inputs"], "targets": record["target"]}
    label, choices = _label(record), record["choices"]
    return {
        "inputs": record["inputs"],
        "targets": choices[label],
        "choices": choices,
        "label": label,
    }


def _target_error(record: Mapping[str, Any]) -> str:
    if not _is_text(record.get("target")):
        return "target must be a text, or there must be choices"
    return "a label needs choices" if "label" in record else ""


def _generation_error(record: Mapping[str, Any]) -> str:
    stop = record.get("stop", [])
    texts = isinstance(stop, list) and all(isinstance(s, str) and s for s in stop)
    if not texts or len(stop) > _MOST_STOPS:
        return f"stop must be a list of at most {_MOST_STOPS} texts"
    tokens = record.get("max_new_tokens", 1)
    if type(tokens) is not int or not 1 <= tokens <= _MOST_TOKENS:
        return f"max_new_tokens must be a whole number from 1 to {_MOST_TOKENS}"
    return ""


def _choice_error(record: Mapping[str, Any]) -> str:
    choices = record["choices"]
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        return "choices must be a list of texts"
    if len(choices) < 2:
        return f"{len(choices)} choices, a rank task needs 2 or more"
    if not all(map(_is_text, choices)):
        return "a choice is empty"
    if len(set(choices)) < len(choices):
        return "two choices are the same"
    if ("label" in record) == ("target" in record):
        return "choices need a label (the right one's number) or a target (its text)"
    if _label(record) is not None:
        return ""
    if "target" in record:
        return "no choice is the right one: none equals the target"
    shown = _shown(record["label"])
    return f"no choice is the right one: label {shown} of {len(choices)} choices"


def _label(record: Mapping[str, Any]) -> int | None:
    choices = record["choices"]
    if "target" in record:
        target = record["target"]
        return choices.index(target) if target in choices else None
    label = record["label"]
    right = isinstance(label, int) and not isinstance(label, bool)
    return label if right and 0 <= label < len(choices) else None


def _shown(value: Any) -> str:
    return str(value)[:40] if isinstance(value, (int, str)) else type(value).__name__


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
