"""What is known of a dataset of suite t0 (see ``tables``): plain records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from merging.runtime.errors import nearest

OPTIONS = "options"  # in a prompt: the choices, one a line
_SLICE = re.compile(r"(\w+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?")


@dataclass(frozen=True, eq=False)
class Field:
    """One field of a dataset, as prompts see it.

    Attributes:
      name: what prompts call it.
      type: "text", "texts" (a list), "integer", or "pairs" (two lists side by side).
      at: dotted places in a record; one, or two for pairs.
      join: between the items of a list; of pairs, between the lines "left: right".
      pick: "first": the first item of a list stands for all.
      first_words: keep that many words only; 0: all.
      replace: pieces of text and what stands for them.
      words: value → what to say for it; any other value is an error. Empty: itself.
      names: the names of an integer's values in the source, where it has some.
    """

    name: str
    type: str
    at: tuple[str, ...]
    join: str = ""
    pick: str = ""
    first_words: int = 0
    replace: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Attributes:
      examples: part of the source → its number of examples.
      tfds: builders, ``name/config``; several are read one after the other.
      hosts: that the builders download from.
      manual: the builder wants files that its user has to fetch.
      huggingface: repository and, where it has several, configuration.
      homepage: where else to get it.
    """

    examples: Mapping[str, int]
    tfds: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    manual: bool = False
    huggingface: tuple[str, ...] = ()
    homepage: str = ""


@dataclass(frozen=True)
class Prompt:
    """One prompt template.

    Attributes:
      name: unique within the dataset.
      inputs: template of the prompt.
      choices: templates, or the name of a list field; () for a generated answer.
      targets: template of a generated answer; "" where there are choices.
    """

    name: str
    inputs: str
    choices: tuple[str, ...] | str
    targets: str


@dataclass(frozen=True, eq=False)
class Entry:
    """A dataset as its table describes it.

    Attributes:
      name, category, split, metric, chance: as of every suite's datasets.
      about: what the dataset asks, in a sentence.
      source: where it comes from.
      parts: "train", "validation" and "test" → a part of the source, or a slice of one
        in per cent, ``train[:95%]``.
      fields: by name.
      right: the field that tells the right choice; "" for a generated answer.
      right_values: the values of ``right`` in the order of the choices; (): it is an
        integer field with the number of the choice, or a text equal to it.
      prompts: by name.
      example: an invented record, in the schema of the real ones.
    """

    name: str
    category: str
    split: str
    metric: str
    chance: float
    about: str
    source: Source
    parts: Mapping[str, str]
    fields: Mapping[str, Field]
    right: str
    right_values: tuple[str, ...]
    prompts: Mapping[str, Prompt]
    example: Mapping[str, Any]

    @property
    def ranked(self) -> bool:
        """Whether the answer is one of several choices."""
        return bool(self.right)

    @property
    def places(self) -> tuple[str, ...]:
        """The places in a record that are read, each once, in a fixed order."""
        return tuple(dict.fromkeys(p for f in self.fields.values() for p in f.at))

    def prompt(self, name: str) -> Prompt:
        """Return a prompt by name; UserError with the nearest names otherwise."""
        if name not in self.prompts:
            raise nearest(f"prompt of {self.name}", name, self.prompts)
        return self.prompts[name]


def cut(part: str, size: int) -> tuple[str, int, int]:
    """Return (part of the source, first, end) of a part or its slice in per cent.

    Rounds as TFDS does, to the nearest example.

    Raises:
      ValueError: text that is neither.
    """
    found = _SLICE.fullmatch(part)
    if not found:
        raise ValueError(f"{part!r} is no part like 'train' or 'train[:95%]'")
    first, end = int(found[2] or 0), int(found[3] or 100)
    return found[1], round(first * size / 100), round(end * size / 100)
