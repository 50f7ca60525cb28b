"""A record and a prompt become text: inputs, and a target or choices."""

from collections.abc import Mapping
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


# What a record has at the places that its dataset's fields read.
Record = Mapping[str, Any]


def checked(entry: Entry, record: Mapping[str, Any]) -> Record:
    """Return {place: value} of what an entry's fields read, of the right types.

    Raises:
      ValueError: a place that is not there, or a value of another type.
    """
    found = {place: _at(record, place) for place in entry.places}
    for field in entry.fields.values():
        for place in field.at:
            _require_type(field, place, found[place])
    return found


def render(entry: Entry, prompt: Prompt, record: Record) -> Example:
    """Return an example under a prompt template.

    Args:
      entry: the dataset.
      prompt: one of its prompts.
      record: what ``checked`` returned.

    Raises:
      ValueError: a value that the table has no words for.
    """
    values = {name: _value(field, record) for name, field in entry.fields.items()}
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


def content(entry: Entry, record: Record) -> list[str]:
    """Return the texts that an example consists of, under whatever prompt.

    Every field of text, cleaned and cut as prompts show it, without the answer of a
    ranked example.
    """
    found = {}
    for field in entry.fields.values():
        if field.type != "integer" and not field.words and field.name != entry.right:
            value = _value(field, record)
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


def _value(field: Field, record: Record) -> Value:
    found = [record[place] for place in field.at]
    if field.type == "integer":
        return int(found[0])
    if field.type == "text":
        return _first_words(_replaced(field, found[0]), field.first_words)
    items = found[0]
    if field.type == "pairs":
        items = [f"{left}: {right}" for left, right in zip(*found, strict=True)]
    return [_replaced(field, item) for item in items]


def _text(field: Field, value: Value) -> str:
    if isinstance(value, list):
        joined = "".join(value[:1]) if field.pick else field.join.join(value)
        return _first_words(joined, field.first_words)
    text = str(value)
    if field.words and text not in field.words:
        valid = ", ".join(field.words)
        raise ValueError(f"{field.name} is {text!r}, and may be {valid}")
    return field.words.get(text, text)


def _replaced(field: Field, text: str) -> str:
    for old, new in field.replace.items():
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
