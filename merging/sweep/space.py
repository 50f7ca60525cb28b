"""What a search varies: the numbers of a method, for all leaves or groups of them."""

import itertools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from merging import methods
from merging.merge import rules
from merging.merge.rules import Spec
from merging.methods import Method
from merging.runtime.errors import UserError, nearest

_MOST_POINTS = 100_000  # of a grid
_OTHERS = "others"  # the group of the leaves that no pattern matches


class Dimension(NamedTuple):
    """One number that is searched.

    Attributes:
      label: such as ``scale``, ``weights[qa]``, ``scale{mlp}``.
      parameter: of the method.
      expert: place of the expert whose number it is; None for all of them.
      group: place of the leaves' group; None for all leaves.
      low, high: its range.
      whole: whether it is a whole number, as its default is.
    """

    label: str
    parameter: str
    expert: int | None
    group: int | None
    low: float
    high: float
    whole: bool

    def at(self, share: float) -> float:
        """Return the number at a share of the range: 0 is `low`, 1 is `high`."""
        number = self.low + (self.high - self.low) * share if share < 1 else self.high
        # Not `round`, which makes 2 of both 1.5 and 2.5.
        return math.floor(number + 0.5) if self.whole else number


class Recipe(NamedTuple):
    """A merge as text: the method, and the rules that go before it."""

    method: str
    rules: tuple[str, ...]


class Space(NamedTuple):
    """The merges that a search chooses from.

    Attributes:
      spec: the method, with the parameters that stay as they are.
      dimensions: what is searched.
      patterns: of leaves' paths, one for each group that has numbers of its own.
    """

    spec: Spec
    dimensions: tuple[Dimension, ...]
    patterns: tuple[str, ...]

    def at(self, share: float) -> dict[str, float]:
        """Return the point with every number at a share of its range, from 0 to 1."""
        return {one.label: one.at(share) for one in self.dimensions}

    @property
    def compiled(self) -> list[str]:
        """The parameters that are compiled in, not traced.

        A new value of one is another structure of the method, and so another program.
        """
        found = []
        for name in dict.fromkeys(one.parameter for one in self.dimensions):
            structures = [
                jax.tree.structure(_methods(self.recipe(self.at(0.5) | moved)))
                for moved in (self._only(name, 0.25), self._only(name, 0.75))
            ]
            if structures[0] != structures[1]:
                found.append(name)
        return found

    def _only(self, parameter: str, share: float) -> dict[str, float]:
        mine = (one for one in self.dimensions if one.parameter == parameter)
        return {one.label: one.at(share) for one in mine}

    def recipe(self, point: Mapping[str, float]) -> Recipe:
        """Return the merge at a point, {dimension's label: number}."""
        groups = range(len(self.patterns) + 1)
        *texts, others = (str(self._spec_of(group, point)) for group in groups)
        pairs = zip(self.patterns, texts, strict=True)
        lines = (f"{pattern} {rules.ARROW} {text}" for pattern, text in pairs)
        return Recipe(others, tuple(lines))

    def _spec_of(self, group: int, point: Mapping[str, float]) -> Spec:
        found = dict(self.spec.parameters)
        for one in self.dimensions:
            if one.group not in (None, group):
                continue
            if one.expert is None:
                found[one.parameter] = point[one.label]
            else:
                so_far = found.get(one.parameter) if one.expert else ()
                found[one.parameter] = (*so_far, point[one.label])
        return self.spec._replace(parameters=found)

    def nearest_to(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the point where each parameter is as near to a value as it may be."""
        return {
            one.label: min(max(values[one.parameter], one.low), one.high)
            for one in self.dimensions
        }


def space(
    spec: Spec,
    ranges: Mapping[str, Sequence[float]],
    experts: Sequence[str],
    *,
    per_expert: Sequence[str] = (),
    per_group: Sequence[str] = (),
    groups: Mapping[str, str] = types.MappingProxyType({}),
) -> Space:
    """Return the space of a method's numbers within ranges.

    Args:
      spec: the method; of parameters that have ranges, where to begin.
      ranges: {parameter: (low, high)}.
      experts: their names, in order.
      per_expert: parameters of which each expert has a number of its own.
      per_group: parameters of which each group of leaves has.
      groups: {name: pattern of leaves' paths}; what none matches is a further group.

    Raises:
      UserError: a parameter that the method does not have, an impossible range, or
        numbers that the method refuses; all that is wrong is listed.
    """
    _require_searchable(spec, ranges, per_expert, per_group, groups)
    fixed = {k: v for k, v in spec.parameters.items() if k not in ranges}
    kinds = {name: int if _is_whole(spec, name) else float for name in ranges}
    dimensions = tuple(
        Dimension(
            _label(name, expert, group, experts, groups),
            *(name, expert, group, *map(kinds[name], bounds), kinds[name] is int),
        )
        for name, bounds in ranges.items()
        for group in (range(len(groups) + 1) if name in per_group else (None,))
        for expert in (range(len(experts)) if name in per_expert else (None,))
    )
    patterns = tuple(groups.values())
    made = Space(spec._replace(parameters=fixed), dimensions, patterns)
    for end in (0.0, 1.0):
        _methods(made.recipe(made.at(end)))
    return made


def _methods(recipe: Recipe) -> list[Method]:
    """Return the methods of a recipe, in the first layer."""
    then = (rules.parse_rule(line).then for line in recipe.rules)
    return [one.method(0.0) for one in (rules.parse(recipe.method), *then)]


def _is_whole(spec: Spec, parameter: str) -> bool:
    """Return whether a parameter takes whole numbers only: its default is one."""
    return type(methods.parameters(spec.name)[parameter]) is int


def _require_searchable(
    spec: Spec,
    ranges: Mapping[str, Sequence[float]],
    per_expert: Sequence[str],
    per_group: Sequence[str],
    groups: Mapping[str, str],
) -> None:
    entry = next(e for e in methods.catalogue() if e.name == spec.name)
    faults = [] if ranges else ["space names no parameter to search"]
    for name, bounds in ranges.items():
        if name not in entry.parameters:
            raise nearest(f"parameter of {spec.name}", name, entry.parameters)
        numbers = all(type(b) in (int, float) for b in bounds)
        if len(bounds) != 2 or not numbers or not bounds[0] < bounds[1]:
            faults.append(f"space.{name} = {tuple(bounds)} must be (low, high)")
        elif _is_whole(spec, name) and not all(float(b).is_integer() for b in bounds):
            faults.append(
                f"space.{name} = {tuple(bounds)} must be whole numbers, as the default "
                f"{entry.parameters[name]} is"
            )
    for where, names in (("per_expert", per_expert), ("per_group", per_group)):
        strange = [name for name in names if name not in ranges]
        faults += [f"{where}: {name} has no range in space" for name in strange]
    if per_group and not groups:
        faults.append("per_group needs groups of leaves (groups, or layer_ranges)")
    if groups and not per_group:
        faults.append("groups of leaves, and per_group names no parameter for them")
    if "weights" in ranges and "weights" not in per_expert:
        faults.append("weights are one for each expert: name them in per_expert")
    if faults:
        raise UserError("this search cannot be run:\n" + "\n".join(faults))


def _label(name: str, expert: int | None, group: int | None, experts, groups) -> str:
    own = "" if expert is None else f"[{experts[expert]}]"
    of = "" if group is None else f"{{{(*groups, _OTHERS)[group]}}}"
    return f"{name}{own}{of}"


def starts(
    found: Space, parameters: Mapping[str, Any], scale: float | None
) -> list[dict[str, float]]:
    """Return the points to begin with: the config's own numbers, and the grid's λ.

    Args:
      found: the space.
      parameters: of the config's method.
      scale: the λ that a grid chose for task arithmetic; None for none.
    """
    entry = next(e for e in methods.catalogue() if e.name == found.spec.name)
    given = entry.parameters | dict(parameters)
    searched = {one.parameter for one in found.dimensions}
    own = {n: 1.0 if n == "weights" else given[n] for n in searched}
    points = []
    if all(type(value) in (int, float) for value in own.values()):
        points.append(found.nearest_to(own))
    if scale is not None and found.spec.name == "task_arithmetic":
        there = {"scale": scale, "weights": 1.0}
        if "scale" not in searched:
            there["weights"] = scale / (given["scale"] or 1.0)
        points.insert(0, found.nearest_to(there))
    return [p for i, p in enumerate(points) if p not in points[:i]]


def grid_points(found: Space, points: int) -> list[dict[str, float]]:
    """Return the points of a grid, both ends of every range among them.

    Of whole numbers there are no more than the range holds.

    Raises:
      UserError: too many.
    """
    counts = [
        min(points, int(d.high - d.low) + 1) if d.whole else points
        for d in found.dimensions
    ]
    total = math.prod(counts)
    if total > _MOST_POINTS:
        raise UserError(
            f"a grid of {points} points in {len(counts)} dimensions has {total:,} "
            "trials: search fewer, or by tpe or cmaes."
        )
    axes = [
        [d.at(i / max(count - 1, 1)) for i in range(count)]
        for d, count in zip(found.dimensions, counts, strict=True)
    ]
    labels = [d.label for d in found.dimensions]
    return [dict(zip(labels, p, strict=True)) for p in itertools.product(*axes)]
