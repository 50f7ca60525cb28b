"""A mergekit YAML read safely, and held to what is followed here.

Everything in it that is not followed is refused by name, and all of it at once.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from merging.merge.mergekit import parameters
from merging.merge.mergekit.document import (
    DTYPES,
    Document,
    Layers,
    Mistakes,
    Part,
    Slice,
    Tokenizer,
    cut,
    shown,
)
from merging.merge.mergekit.signatures import SIGNATURES
from merging.runtime import hub
from merging.runtime.errors import UserError

# Of a file in bytes, of a plain scalar that is read as more than a text, of values, and
# of layers.
LARGEST, _LONGEST, _MOST_NODES, _MOST_LAYERS = 200_000, 100, 50_000, 10_000
_MOST_PADDING = 2**16

_ELSEWHERE = {"modules": "merge one module's models or slices"}
_KEYS = ("merge_method", "base_model", "models", "slices", "parameters")
_KEYS += ("dtype", "out_dtype", "chat_template", "tokenizer", "tokenizer_source")
_OF_TOKENIZER = ("source", "pad_to_multiple_of", "tokens")


def read(path: str | Path) -> str:
    """Return the text of a mergekit YAML, which `parse` can read.

    Raises:
      UserError: it can't be read, is larger than any mergekit YAML, or as `parse`.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path} is no file.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than any mergekit YAML.")
        text = path.read_text("utf-8")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}.") from None
    parse(text, str(path))
    return text


def parse(text: str, name: str = "the mergekit YAML") -> Document:
    """Return what a mergekit YAML says.

    Args:
      text: of the file.
      name: of the file, for messages.

    Raises:
      UserError: it is no such YAML, or asks for something that is not followed here;
        lists everything.
    """
    found = _load(text, name)
    _require_method(found.get("merge_method"), found, name)
    method, wrong = found["merge_method"], Mistakes()
    for key in found:
        if key not in _KEYS:
            wrong.add(f"{shown(key)}: {_ELSEWHERE.get(key, 'leave it out')}")
    base = _model(found.get("base_model"), "base_model", wrong, optional=True)
    shared = parameters.read(found.get("parameters"), "parameters", wrong, method)
    document = Document(
        method,
        base,
        tuple(_slices(found, method, base, wrong)),
        shared,
        _dtype(found, "dtype", wrong),
        _dtype(found, "out_dtype", wrong),
        _text(found.get("chat_template"), "chat_template", wrong),
        _tokenizer(found, wrong),
    )
    _check_inputs(document, wrong)
    wrong.raise_if_any(f"{name} asks for what is not followed here:")
    return document


class _Loader(yaml.SafeLoader):
    """Plain data, without what can fill a memory or take for ever.

    An alias stands for all of its node, and of an alias of an alias and so on, a few
    lines can make more than any memory holds.
    """

    def __init__(self, stream: str):
        super().__init__(stream)
        # {id of a node: how many nodes it holds, those of its aliases counted again}.
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node, unless it is too large."""
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                _refuse(event, "an alias within what it stands for")
            is_text = node.tag == "tag:yaml.org,2002:str"
            if isinstance(node, yaml.ScalarNode) and not is_text:
                if len(node.value) > _LONGEST:
                    _refuse(event, "a number that long")
            self._sizes[id(node)] = 1 + sum(self._sizes[id(n)] for n in _within(node))
        if self._sizes[id(node)] > _MOST_NODES:
            _refuse(event, "more values, with its aliases, than any merge needs")
        return node


def _within(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        yield from (part for pair in node.value for part in pair)


def _refuse(event: yaml.Event, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _load(text: str, name: str) -> Mapping[Any, Any]:
    try:
        # A loader of safe types.
        found = yaml.load(text, _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{name} is no YAML: {cut(error.problem)}{line}.") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{name} is no YAML: {cut(error.reason)}.") from None
    except (
        RecursionError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        # Such as a date in a thirteenth month, or !!int of no digits.
        reason = cut(str(error) or type(error).__name__)
        raise UserError(f"{name} is no YAML: {reason}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} is no mergekit YAML: it holds no keys.")
    return found


def _require_method(method: Any, found: Mapping[Any, Any], name: str) -> None:
    if method is None and "experts" in found:
        raise UserError(
            f"{name} builds a mixture of experts (mergekit-moe), which is no merge of "
            "weights; mergekit can make that."
        )
    known = ", ".join(SIGNATURES)
    if method is None:
        raise UserError(f"{name} names no merge_method; {known} are followed here.")
    if not isinstance(method, str) or method not in SIGNATURES:
        raise UserError(
            f"{name}: merge_method {shown(method)} is not followed here; {known} are."
        )


def _slices(
    found: Mapping[Any, Any], method: str, base: str | None, wrong: Mistakes
) -> Iterator[Slice]:
    if (found.get("models") is None) == (found.get("slices") is None):
        wrong.add("exactly one of models and slices must be there")
        return
    if found.get("models") is not None:
        parts = list(_parts(found["models"], "models", method, False, wrong))
        if base and parts and all(part.model != base for part in parts):
            parts.append(Part(base, {}))
        yield Slice(tuple(parts), None, {})
        return
    for where, one in _listed(found["slices"], "slices", wrong):
        for key in one:
            if key not in ("sources", "parameters", "base_model"):
                wrong.add(f"{where}: {shown(key)}: leave it out")
        inner = f"{where}.sources"
        parts = tuple(_parts(one.get("sources"), inner, method, True, wrong))
        lengths = {
            part.layers.stop - part.layers.start for part in parts if part.layers
        }
        if len(lengths) > 1:
            wrong.add(f"{where}: all sources must have as many layers (layer_range)")
        own = _model(one.get("base_model"), f"{where}.base_model", wrong, optional=True)
        inner = f"{where}.parameters"
        shared = parameters.read(one.get("parameters"), inner, wrong, method)
        yield Slice(parts, own, shared)


def _parts(
    listed: Any, where: str, method: str, sliced: bool, wrong: Mistakes
) -> Iterator[Part]:
    keys = ("model", "parameters", "layer_range")[: 2 + sliced]
    for here, one in _listed(listed, where, wrong):
        for key in one:
            if key not in keys:
                wrong.add(f"{here}: {shown(key)}: leave it out")
        model = _model(one.get("model"), f"{here}.model", wrong)
        inner = f"{here}.parameters"
        own = parameters.read(
            one.get("parameters"), inner, wrong, method, of_model=True
        )
        layers = _layers(one.get("layer_range"), here, wrong) if sliced else None
        if model:
            yield Part(model, own, layers)


def _listed(
    value: Any, where: str, wrong: Mistakes
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if not isinstance(value, list) or not value:
        wrong.add(f"{where}: a list of at least one")
        return
    for number, one in enumerate(value):
        if isinstance(one, dict):
            yield f"{where}[{number}]", one
        else:
            wrong.add(f"{where}[{number}]: keys with values, not {shown(one)}")


def _model(
    value: Any, where: str, wrong: Mistakes, *, optional: bool = False
) -> str | None:
    if value is None and optional:
        return None
    if not isinstance(value, str) or not value or not value.isprintable():
        wrong.add(f"{where}: a model's folder, not {shown(value)}")
    elif "@" in value and hub.last_part(value) is None:
        wrong.add(
            f"{where}: {cut(value)}: only a repository, OWNER/NAME, has revisions"
        )
    else:
        return value
    return None


def _layers(value: Any, where: str, wrong: Mistakes) -> Layers | None:
    pair = isinstance(value, list) and len(value) == 2
    if pair and all(type(n) is int for n in value):
        if 0 <= value[0] < value[1] <= _MOST_LAYERS:
            return Layers(*value)
    wrong.add(f"{where}.layer_range: [first layer, last layer + 1], not {shown(value)}")
    return None


def _dtype(found: Mapping[Any, Any], key: str, wrong: Mistakes) -> str | None:
    value = found.get(key)
    if value is None:
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name not in DTYPES:
        wrong.add(f"{key}: one of {', '.join(DTYPES)}, not {shown(value)}")
        return None
    return name


def _text(value: Any, where: str, wrong: Mistakes) -> str | None:
    # A lone surrogate is no character, and can't be written into a file.
    if value is None or (isinstance(value, str) and _is_unicode(value)):
        return value or None
    wrong.add(f"{where}: a text, not {shown(value)}")
    return None


def _tokenizer(found: Mapping[Any, Any], wrong: Mistakes) -> Tokenizer | None:
    """Return whose vocabulary to take: `tokenizer_source`, or `tokenizer`'s."""
    said, source = found.get("tokenizer"), found.get("tokenizer_source")
    if said is None:
        where, said = "tokenizer_source", {"source": source}
        if source is None:
            return None
    elif source is not None:
        wrong.add("tokenizer, tokenizer_source: write one of them")
        return None
    elif not isinstance(said, dict):
        wrong.add(f"tokenizer: keys with values, not {shown(said)}")
        return None
    else:
        where = "tokenizer.source"
    for key in said:
        if key not in _OF_TOKENIZER:
            wrong.add(f"tokenizer: {shown(key)}: leave it out")
    if said.get("tokens"):
        wrong.add("tokenizer.tokens: embeddings of single tokens are not followed")
    name = said.get("source")
    name = "union" if name is None else name
    if isinstance(name, str):
        name = name.removeprefix("model:")
    model = _model(name, where, wrong)
    multiple = said.get("pad_to_multiple_of")
    multiple = 1 if multiple is None else multiple
    if type(multiple) is not int or not 1 <= multiple <= _MOST_PADDING:
        text = f"a whole number from 1 to {_MOST_PADDING}, not {shown(multiple)}"
        wrong.add(f"tokenizer.pad_to_multiple_of: {text}")
        return None
    return None if model is None else Tokenizer(model, multiple)


def _is_unicode(text: str) -> bool:
    return text == text.encode("utf-8", "ignore").decode("utf-8")


def _check_inputs(document: Document, wrong: Mistakes) -> None:
    """Hold each slice's models to what its method takes."""
    for number, one in enumerate(document.slices):
        sliced = one.sources and one.sources[0].layers
        where = f"slices[{number}]" if sliced else "models"
        names = [part.model for part in one.sources]
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            wrong.add(f"{where}: {cut(name)} is named more than once")
        base = one.base or document.base
        takes, name = document.signature, document.method
        _require_count(f"{where}: {name}", "models", len(names), takes.inputs, wrong)
        others = len(names) - (base in names)
        _require_count(
            f"{where}: {name}", "models beside base_model", others, takes.experts, wrong
        )
        if not document.has_base and name != "slerp":
            continue
        if base is None:
            wrong.add(f"{where}: {name} needs base_model")
        elif names and base not in names:
            wrong.add(f"{where}: base_model {cut(base)} must be among the sources")


def _require_count(
    where: str,
    what: str,
    count: int,
    bounds: tuple[int, int | None],
    wrong: Mistakes,
) -> None:
    least, most = bounds
    if most is not None and not least <= count <= most:
        many = "one" if most == 1 else str(most)
        what = what.replace("models", "model") if most == 1 else what
        wrong.add(f"{where} takes {many} {what}, not {count}")
    elif count < least:
        wrong.add(f"{where} takes {least} {what} at least, not {count}")
