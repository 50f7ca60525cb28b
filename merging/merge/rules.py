"""Which method merges which leaf: rules on leaf paths, and numbers by layer.

A rule is a line of text, `REGEX => METHOD(name=value, …)` or `REGEX => base`; the first
whose regular expression is found in a leaf's path decides. A value is a literal; where
it is a number it may be `by_layer(a, b, …)`, which goes over the model's depth from a,
at the first layer, in straight lines to the last value, at the last layer. A ranking
over the whole model, and its majority, are over the leaves of one rule.
"""

import ast
import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, NamedTuple

from merging import methods
from merging.methods import Method, Votes
from merging.runtime.errors import UserError, listed, nearest
from merging.runtime.patterns import Pattern

ARROW = "=>"
BASE = "base"
_LAYER = re.compile(
    r"(?:^|[./])(?:layers?|h|blocks?|layer_module)[._/](\d{1,9})(?=[./]|$)"
)
# Not GPT-NeoX's embed_out, which is its head.
_EMBEDDINGS = re.compile(r"embed(?!_out)|embd|wte|wpe")
_LARGEST, _SHOWN = 10_000, 200  # characters of a method, and of it in a message


class ByLayer(NamedTuple):
    """A number that changes over the depth of a model."""

    values: tuple[float, ...]

    def at(self, depth: float) -> float:
        """Return the value at a depth from 0, the first layer, to 1, the last."""
        place = depth * (len(self.values) - 1)
        left = min(int(place), len(self.values) - 2)
        share = place - left
        return (1 - share) * self.values[left] + share * self.values[left + 1]

    def __repr__(self) -> str:
        return f"by_layer({', '.join(map(repr, self.values))})"


class Spec(NamedTuple):
    """A method's name and its parameters, in which a `ByLayer` may stand."""

    name: str
    parameters: dict[str, Any]

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        given = (f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.name}({', '.join(given)})"

    def method(self, depth: float) -> Method:
        """Return the method at a depth, from 0 to 1."""
        return methods.get(
            self.name, **{k: _at(v, depth) for k, v in self.parameters.items()}
        )

    @property
    def by_layer(self) -> bool:
        """Whether any number changes over the depth."""
        return any(_has_layers(value) for value in self.parameters.values())


class Rule(NamedTuple):
    """What to do with the leaves in whose path `pattern` is found.

    Attributes:
      pattern: a regular expression.
      then: a method, a spec of one, or None to leave the base's leaf.
    """

    pattern: str
    then: Method | Spec | None


def recipe(
    leaves: Iterable[str],
    method: Method | Spec | str,
    rules: Sequence[Rule | str] = (),
) -> dict[str, Method | None]:
    """Return the method that merges each leaf; None leaves it as the base has it.

    Args:
      leaves: paths.
      method: for leaves that no rule matches; a text is read as `parse` does.
      rules: the first whose pattern is found in a path decides.

    Raises:
      UserError: a rule that can't be read or matches no leaf, an unknown method or
        parameter, numbers by layer for leaves that have no layer; all are listed.
    """
    paths = list(leaves)
    last = Rule("", parse(method) if isinstance(method, str) else method)
    chosen = [parse_rule(r) if isinstance(r, str) else r for r in rules]
    patterns = [_pattern(rule.pattern) for rule in (*chosen, last)]
    depths = layer_depths(paths)
    found: dict[str, Method | None] = {}
    useless = [
        rule.pattern
        for rule, pattern in zip(chosen, patterns, strict=False)
        if not any(map(pattern.found_in, paths))
    ]
    if useless:
        raise UserError(
            f"rules that match no leaf: {listed(useless, mark=', ')}. Leaves are "
            f"called {', '.join(paths[:3])}, …"
        )
    made: dict[tuple[int, float], Method | None] = {}
    for path in paths:
        number = next(i for i, p in enumerate(patterns) if p.found_in(path))
        rule = [*chosen, last][number]
        varies = isinstance(rule.then, Spec) and rule.then.by_layer
        key = (number, depths[path] if varies else 0.0)
        if key not in made:
            is_spec = isinstance(rule.then, Spec)
            then = rule.then.method(key[1]) if is_spec else rule.then
            made[key] = then if rule is last else _apart(then, rule)
        found[path] = made[key]
    _refuse_split_rankings([*chosen, last])
    return found


def parse_rule(text: str) -> Rule:
    """Return the rule of a line `REGEX => METHOD(…)` or `REGEX => base`.

    Raises:
      UserError: it is no such line.
    """
    pattern, arrow, then = text.rpartition(ARROW)
    if not arrow or not pattern.strip():
        raise UserError(f"{_cut(text)!r} is no rule; write 'REGEX => METHOD(…)'.")
    _pattern(pattern.strip())
    if then.strip() == BASE:
        return Rule(pattern.strip(), None)
    return Rule(pattern.strip(), parse(then))


def parse(text: str) -> Spec:
    """Return the method of a text such as `ties(density=0.3, weights=(1, 0.5))`.

    It is read, not run: a name, and keywords with literals.

    Raises:
      UserError: it is something else, or an unknown method.
    """
    if len(text) > _LARGEST:
        raise _no_method(text, f"longer than {_LARGEST} characters")
    name, bracket, _ = text.strip().partition("(")
    name = name.strip()
    if name not in methods.names():
        raise nearest("method", _cut(name), [*methods.names(), BASE])
    if not bracket:
        return Spec(name, {})
    try:
        # A method's name may hold an @, which no Python name does.
        call = ast.parse("f" + text.strip()[len(name) :].strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("every value needs a name before it")
        parameters = {str(k.arg): _value(k.value) for k in call.keywords}
        if len(parameters) < len(call.keywords) or "None" in parameters:
            raise ValueError("a name is given twice, or is none")
    except (SyntaxError, RecursionError, MemoryError):
        raise _no_method(text, "it can't be read") from None
    except ValueError as error:
        raise _no_method(text, str(error)) from None
    return Spec(name, parameters)


def _no_method(text: str, reason: str) -> UserError:
    return UserError(
        f"{_cut(text)!r} is no method ({_cut(reason)}); write a name of `merging "
        "methods` with its parameters, such as ties(density=0.3)."
    )


def layer_depths(paths: Iterable[str]) -> dict[str, float]:
    """Return the depth of each leaf: 0 in the first layer, 1 in the last.

    A layer is a number after `layers`, `h` or `blocks` in a path. Outside of all,
    embeddings come before the first layer, and the rest after the last.
    """
    paths = list(paths)
    numbers = {p: leaf.number for p in paths if (leaf := layer_leaf(p))}
    last = max(numbers.values(), default=0)
    outside = {p: 0.0 if is_embedding(p) else 1.0 for p in paths}
    return outside | {path: n / max(last, 1) for path, n in numbers.items()}


class LayerLeaf(NamedTuple):
    """A leaf of a layer: its path before the layer's number, the number, the rest."""

    before: str
    number: int
    after: str

    def path(self, number: int) -> str:
        """Return the path of the same leaf in another layer."""
        return f"{self.before}{number}{self.after}"


def layer_leaf(path: str) -> LayerLeaf | None:
    """Return a path around its layer's number; None outside of all layers."""
    found = _LAYER.search(path)
    if found is None:
        return None
    return LayerLeaf(path[: found.start(1)], int(found[1]), path[found.end(1) :])


def is_embedding(path: str) -> bool:
    """Return whether a leaf outside of all layers comes before the first."""
    return _EMBEDDINGS.search(path) is not None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id == "by_layer"
        if not named or node.keywords or len(node.args) < 2:
            raise ValueError("only by_layer(a, b, …) may stand for a number")
        values = tuple(map(_value, node.args))
        if not all(type(v) in (int, float) for v in values):
            raise ValueError("by_layer takes numbers")
        return ByLayer(tuple(map(float, values)))
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(item) for item in node.elts)
    try:
        found = ast.literal_eval(node)
    except (ValueError, TypeError):
        found = ()
    number = type(found) in (int, float)
    if number and not abs(found) <= sys.float_info.max:
        raise ValueError("a number that no method takes")
    if not number and not isinstance(found, (str, bool, NoneType)):
        raise ValueError("neither a number nor a text")
    return found


def _pattern(text: str) -> Pattern:
    try:
        return Pattern(text)
    except ValueError as error:
        raise UserError(f"{_cut(text)!r}: the pattern {error}.") from None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _has_layers(value: Any) -> bool:
    if isinstance(value, ByLayer):
        return True
    return isinstance(value, tuple) and any(map(_has_layers, value))


def _at(value: Any, depth: float) -> Any:
    if isinstance(value, ByLayer):
        return value.at(depth)
    if isinstance(value, tuple):
        return tuple(_at(item, depth) for item in value)
    return value


def _apart(method: Method | None, rule: Rule) -> Method | None:
    """Return a rule's method, told from an equal one of another rule by its name.

    What a method finds over all its leaves, it finds over those of one rule. Otherwise
    two rules would be ranked together as soon as their numbers are the same.
    """
    votes = method is not None and any(isinstance(r, Votes) for r in method.reductions)
    if method is None or not (votes or method.ranks_model):
        return method
    return dataclasses.replace(method, name=f"{method.name} of {rule.pattern!r}")


def _refuse_split_rankings(rules: Sequence[Rule]) -> None:
    """Refuse a ranking over the whole model whose numbers change by layer.

    Each layer would be ranked by itself, and that is another method.
    """
    for rule in rules:
        if not isinstance(rule.then, Spec) or not rule.then.by_layer:
            continue
        if rule.then.method(0.0).ranks_model:
            raise UserError(
                f"{rule.then.name} ranks magnitudes over all leaves of a rule, and "
                'by_layer would rank each layer by itself: add scope="tensor", or give '
                "one number."
            )
