"""A mergekit YAML as data, and what is said of what is wrong in one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from merging.merge.mergekit.signatures import SIGNATURES, Signature
from merging.runtime.errors import UserError

DTYPES = ("bfloat16", "float16", "float32", "float64")
# Of what is shown of a value, and how many mistakes are listed.
_SHOWN, _LISTED = 80, 20


class Condition(NamedTuple):
    """Values of a parameter for the leaves whose names hold a text.

    Attributes:
      filter: the text; None is for every leaf.
      values: one, or several that go over the depth; none is no condition's value.
    """

    filter: str | None
    values: tuple[float | bool, ...]


# {name of a parameter: its conditions, of which the first that fits counts}.
Parameters = Mapping[str, tuple[Condition, ...]]


class Layers(NamedTuple):
    """The layers [start, stop) of a model."""

    start: int
    stop: int


class Part(NamedTuple):
    """A model that is merged: the whole of it, or some layers."""

    model: str
    parameters: Parameters
    layers: Layers | None = None


class Slice(NamedTuple):
    """Models that are merged with each other into some layers of the output."""

    sources: tuple[Part, ...]
    base: str | None
    parameters: Parameters


class Tokenizer(NamedTuple):
    """Whose vocabulary the output has.

    Attributes:
      source: ``base``, ``union``, or a model's folder.
      pad_to_multiple_of: rows of embeddings are filled up to a multiple of this.
    """

    source: str
    pad_to_multiple_of: int = 1


class Document(NamedTuple):
    """What a mergekit YAML says.

    Attributes:
      method: mergekit's name of it.
      base: None if it names none.
      slices: one, of whole models, if the file lists `models`.
      parameters: for all.
      dtype: that float inputs are cast to; None leaves them.
      out_dtype: of the result; None is the inputs'.
      chat_template: None if it says nothing.
      tokenizer: None leaves all vocabularies as they are.
    """

    method: str
    base: str | None
    slices: tuple[Slice, ...]
    parameters: Parameters
    dtype: str | None
    out_dtype: str | None
    chat_template: str | None
    tokenizer: Tokenizer | None = None

    @property
    def signature(self) -> Signature:
        """What the method takes."""
        return SIGNATURES[self.method]

    @property
    def has_base(self) -> bool:
        """Whether the method merges task vectors; to the others a base is no base."""
        kind = self.signature.base
        named = self.base is not None or any(s.base is not None for s in self.slices)
        return kind == "required" or (kind == "optional" and named)

    @property
    def models(self) -> tuple[str, ...]:
        """All that it names, the base first."""
        named = [self.base, *(s.base for s in self.slices)]
        named += [part.model for s in self.slices for part in s.sources]
        return tuple(dict.fromkeys(filter(None, named)))


class Mistakes:
    """What is wrong, to be told at once: not without end, and each of it in a line."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    def add(self, line: str) -> None:
        """Note one of them, in a line."""
        self._lines.setdefault(line)

    def raise_if_any(self, head: str) -> None:
        """Raise a UserError that lists them under a head, if there are any."""
        lines = list(self._lines)
        if not lines:
            return
        more = len(lines) - _LISTED
        shown = lines[:_LISTED] + ([f"… and {more} more"] if more > 0 else [])
        raise UserError("\n  ".join([head, *shown]))


def shown(value: Any) -> str:
    """Return a value in a few words, whatever it holds."""
    if isinstance(value, dict | list | tuple | set | bytes):
        return f"a {type(value).__name__} of {len(value)}"
    # Of a long number, no digit is wanted.
    if isinstance(value, int) and value.bit_length() > 256:
        return "a long number"
    return cut(repr(value))


def cut(text: str | None) -> str:
    """Return the beginning of a text, in one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"
