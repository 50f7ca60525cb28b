"""A record and a prompt become text: inputs, and a target or choices."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from merging.tasks import templates
from merging.tasks.t0.entries import OPTIONS, Entry, Field, Prompt

Value = str | list[str] | int


class Example(NamedTuple):
    """An example as text.

    Attributes:
      inputs: the prompt.
      targets: the right answer; "" where a ranked example has no right choice.
      choices: what a ranked example is answered with; [] for a generated answer.
      label: number of the right choice; -1 where there is none.
    """

    inputs: str
    targets: str
    choices: list[str]
    label: int


def raw(entry: Entry, record: Mapping[str, Any]) -> list[Any]:
    """Return what a record has at the entry's columns, checked against their types.

    Raises:
      ValueError: a place that is not there, or a value of another type.
    """
    found = [_at(record, place) for place in entry.columns]
    by_place = dict(zip(entry.columns, found, strict=True))
    for field in entry.fields.values():
        for place in field.at:
            _require_type(field, place, by_place[place])
    return found


def render(entry: Entry, prompt: Prompt, columns: Sequence[Any]) -> Example:
    """Return an example in one wording.

    Args:
      entry: the dataset.
      prompt: one of its prompts.
      columns: what ``raw`` returned.

    Raises:
      ValueError: a value that the table has no words for.
    """
    by_place = dict(zip(entry.columns, columns, strict=True))
    values = {
        name: _value(field, [by_place[place] for place in field.at])
        for name, field in entry.fields.items()
    }
    texts = {name: _text(entry.fields[name], value) for name, value in values.items()}
    if not entry.ranked:
        inputs = templates.fill(prompt.inputs, texts)
        return Example(inputs, templates.fill(prompt.targets, texts), [], -1)
    if isinstance(prompt.choices, str):
        choices = list(values[prompt.choices])
    else:
        choices = [templates.fill(choice, texts) for choice in prompt.choices]
    texts[OPTIONS] = "\n".join(f"- {choice}" for choice in choices)
    label = _label(entry, values[entry.right], choices)
    right = choices[label] if label >= 0 else ""
    return Example(templates.fill(prompt.inputs, texts), right, choices, label)


def content(entry: Entry, columns: Sequence[Any]) -> list[str]:
    """Return the texts that an example consists of, whatever its wording.

    Every field of text, cleaned and cut as prompts show it, without the answer of a
    ranked example.
    """
    by_place = dict(zip(entry.columns, columns, strict=True))
    found = {}
    for field in entry.fields.values():
        if field.type != "integer" and not field.words and field.name != entry.right:
            value = _value(field, [by_place[place] for place in field.at])
            found[field.at] = "\n".join(value) if isinstance(value, list) else value
    return list(found.values())


def _label(entry: Entry, value: Value, choices: list[str]) -> int:
    if entry.right_values:
        valid, wanted = list(entry.right_values), str(value)
    elif isinstance(value, int):
        return value if 0 <= value < len(choices) else -1
    else:
        valid, wanted = choices, value
    return valid.index(wanted) if wanted in valid else -1


def _value(field: Field, found: list[Any]) -> Value:
    if field.type == "integer":
        return int(found[0])
    if field.type == "text":
        return _cleaned(field, found[0])
    if field.type == "pairs":
        lines = [f"{left}: {right}" for left, right in zip(*found, strict=True)]
        return [_replaced(field, line) for line in lines]
    return [_replaced(field, item) for item in found[0]]


def _text(field: Field, value: Value) -> str:
    if isinstance(value, list):
        if field.first:
            return _first_words(value[0], field.first_words) if value else ""
        return _first_words(field.join.join(value), field.first_words)
    text = str(value)
    if not field.words:
        return text
    if text not in _words(field):
        valid = ", ".join(_words(field))
        raise ValueError(f"{field.name} is {text!r}, and may be {valid}")
    return _words(field)[text]


@functools.cache
def _words(field: Field) -> dict[str, str]:
    return dict(field.words)


def _cleaned(field: Field, text: str) -> str:
    return _first_words(_replaced(field, text), field.first_words)


def _replaced(field: Field, text: str) -> str:
    for old, new in field.replace:
        text = text.replace(old, new)
    return text.strip()


def _first_words(text: str, count: int) -> str:
    """Return the beginning of a text, with its line breaks."""
    if not count:
        return text
    words = text.split(maxsplit=count)
    if len(words) <= count:
        return text
    return text[: len(text) - len(words[-1])].rstrip()


def _at(record: Mapping[str, Any], place: str) -> Any:
    value: Any = record
    for key in place.split("."):
        if not isinstance(value, Mapping) or key not in value:
            there = ", ".join(value) if isinstance(value, Mapping) else "no fields"
            raise ValueError(f"no field {place!r} (there: {there})")
        value = value[key]
    return value


def _require_type(field: Field, place: str, value: Any) -> None:
    if field.type == "integer":
        right = isinstance(value, int) and not isinstance(value, bool)
        right = right and abs(value) < 1 << 63
    elif field.type == "text":
        right = isinstance(value, str)
    else:
        right = isinstance(value, list) and all(isinstance(v, str) for v in value)
    if not right:
        wanted = {"integer": "a whole number", "text": "text"}
        wanted = wanted.get(field.type, "a list of texts")
        raise ValueError(f"{place} must be {wanted}, not {type(value).__name__}")
