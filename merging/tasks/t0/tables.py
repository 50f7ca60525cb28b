"""The tables of suite t0: one page of data per dataset, read and checked here.

A table (``datasets/NAME.toml``) says where a dataset comes from, which of its parts are
trained on and tested on, its fields, how choices and the right one come out of them,
and its prompts. Nothing here imports TensorFlow.
"""

import dataclasses
import functools
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from merging.runtime import storage
from merging.runtime.errors import nearest
from merging.tasks import templates
from merging.tasks.suites import SPLITS
from merging.tasks.t0.entries import OPTIONS, Entry, Field, Prompt, Source, cut

MINIMUM_PROMPTS = 3


def names() -> tuple[str, ...]:
    """Return the names of all datasets, held-in first, by category."""
    return tuple(every())


def entry(name: str) -> Entry:
    """Return a dataset by name; UserError with the nearest names otherwise."""
    if name not in every():
        raise nearest("dataset of suite t0", name, every())
    return every()[name]


@functools.cache
def every() -> dict[str, Entry]:
    """Return every dataset: held-in before held-out, categories as T0 lists them.

    Raises:
      ValueError: a table that contradicts itself, with all its errors.
    """
    return {name: parse(name, _text(name)) for name in _ORDER.split()}


def digest(name: str) -> str:
    """Return a hash of a dataset's table."""
    return storage.digest(_text(name))


def _text(name: str) -> str:
    folder = resources.files("merging.tasks.t0") / "datasets"
    return (folder / f"{name}.toml").read_text("utf-8")


_ORDER = """
    dream cosmos_qa adversarial_qa ropes hotpot_qa wiki_qa app_reviews imdb ag_news
    dbpedia common_gen wiki_bio cnn_dailymail xsum mrpc qqp
    copa hellaswag anli rte wsc winogrande wic
"""


def parse(name: str, text: str) -> Entry:
    """Return the entry that a table describes.

    Raises:
      ValueError: not TOML, a key that is missing, unknown or of a wrong type, or an
        inconsistency; all errors but the first kind are listed together.
    """
    table = tomllib.loads(text)
    try:
        made = _entry(name, table)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"table {name}: {type(error).__name__} {error}") from error
    errors = list(_errors(made, table))
    if errors:
        raise ValueError(f"table {name}: {'; '.join(errors)}")
    return made


def _entry(name: str, table: Mapping[str, Any]) -> Entry:
    answer, prompts = table["answer"], {}
    for prompt, template in table["prompts"].items():
        choices = template.get("choices", answer.get("choices", ()))
        prompts[prompt] = Prompt(
            name=prompt,
            inputs=template["inputs"].strip(),
            choices=choices if isinstance(choices, str) else tuple(choices),
            targets=template.get("targets", answer.get("targets", "")),
        )
    return Entry(
        name=name,
        category=table["category"],
        split=table["split"],
        metric=table["metric"],
        chance=float(table.get("chance", 0)),
        about=table["about"],
        source=Source(**_frozen(table["source"])),
        parts={split: table["parts"][split] for split in SPLITS},
        fields={key: _field(key, value) for key, value in table["fields"].items()},
        right=answer.get("right", ""),
        right_values=tuple(answer.get("right_values", ())),
        prompts=prompts,
        example=table["example"],
    )


def _field(name: str, given: Mapping[str, Any]) -> Field:
    keys = [f.name for f in dataclasses.fields(Field) if f.name != "name"]
    for key in given:
        if key not in keys:
            raise nearest(f"key of field {name}", key, keys)
    at = given.get("at", name)
    at = [at] if isinstance(at, str) else at
    return Field(name, **_frozen({**given, "at": at}))


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _errors(made: Entry, table: Mapping[str, Any]) -> Iterator[str]:
    known = "about category split metric chance source parts fields answer"
    known += " prompts example"
    yield from (f"unknown key {key!r}" for key in table if key not in known.split())
    if made.split not in ("held_in", "held_out"):
        yield f"split {made.split!r}"
    if made.ranked != (made.metric == "accuracy"):
        yield f"metric {made.metric} with right = {made.right!r}"
    if len(made.prompts) < MINIMUM_PROMPTS:
        yield f"{len(made.prompts)} prompts, needs {MINIMUM_PROMPTS}"
    if not made.source.tfds + made.source.huggingface:
        yield "no source"
    for split, part in made.parts.items():
        if cut(part, 100)[0] not in made.source.examples:
            yield f"{split} = {part!r} is cut from a part without a count"
    for field in made.fields.values():
        wanted = 2 if field.type == "pairs" else 1
        if field.type not in ("text", "texts", "integer", "pairs"):
            yield f"field {field.name}: type {field.type!r}"
        elif len(field.at) != wanted:
            yield f"field {field.name}: {len(field.at)} places, needs {wanted}"
        if field.pick not in ("", "first"):
            yield f"field {field.name}: pick = {field.pick!r}"
    if made.right and made.right not in made.fields:
        yield f"right = {made.right!r} is no field"
    for prompt in made.prompts.values():
        yield from _prompt_errors(made, prompt)


def _prompt_errors(made: Entry, prompt: Prompt) -> Iterator[str]:
    where = f"prompt {prompt.name}"
    if made.ranked and not prompt.choices or not made.ranked and not prompt.targets:
        yield f"{where}: no answer"
    texts = [prompt.inputs, prompt.targets]
    if isinstance(prompt.choices, str):
        if made.fields.get(prompt.choices, Field("", "", ())).type != "texts":
            yield f"{where}: choices = {prompt.choices!r} is no list field"
    else:
        texts += prompt.choices
        if made.ranked and len(set(prompt.choices)) < max(2, len(prompt.choices)):
            yield f"{where}: {len(prompt.choices)} choices, needs two that differ"
        expected = len(made.right_values) or len(prompt.choices)
        if len(prompt.choices) != expected and made.ranked:
            yield f"{where}: {len(prompt.choices)} choices for {expected} values"
    for slot in (slot for text in texts for slot in templates.slots(text)):
        field = made.fields.get(slot)
        if field is None and not (slot == OPTIONS and made.ranked):
            yield f"{where}: {{{slot}}} is no field"
        elif field and field.type == "texts" and not (field.join or field.pick):
            yield f"{where}: the list {{{slot}}} needs `join` or `pick`"
