"""mergekit's rules: which leaves a YAML merges, with what numbers, into which layers.

They are those of mergekit 0.1.5. A parameter of a model's leaf is looked for with the
model, then with the slice, then with the file; in each place the first condition whose
filter is in the leaf's name counts, and where none is the next place is asked. A value
over the depth goes from the first to the last layer of its slice; embeddings, the final
norm and the head have the first value, and a slice of one layer the last.

The models become views (`merging.checkpoints.View`), one for the base and one for each
place among a slice's sources: a view's layers are the output's, and its embeddings have
the output's vocabulary.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from merging.checkpoints import Origin, Source, View
from merging.merge.inputs import Inputs, require_mergeable
from merging.merge.mergekit.document import Document, Part, Slice
from merging.merge.mergekit.layers import Home, Homes
from merging.merge.mergekit.parameters import value_of
from merging.merge.mergekit.translation import translated
from merging.merge.mergekit.vocabulary import Vocabulary, vocabulary
from merging.methods import Method
from merging.runtime import tree
from merging.runtime.errors import UserError

# What a model has of a method that it is not merged by.
_ABSENT = {"weight": 0.0, "density": 1.0, "gamma": 0.01, "epsilon": 0.15, "scale": 1.0}
_NO_BASE = (
    "of the last slice's sources, mergekit takes no more than the first slice has for "
    "the final norm and the head, and its base is not among them: name it first."
)


class Merge(NamedTuple):
    """What a mergekit YAML asks for, of models that are there.

    Attributes:
      inputs: views of the models, of the output's leaves.
      recipe: {path of each float leaf: the method that merges it}.
      layers: for each layer of the output, the one of the first model it comes from;
        None where the file lists whole models.
      vocabulary: of the output; None where all keep theirs.
    """

    inputs: Inputs
    recipe: dict[str, Method]
    layers: tuple[int, ...] | None
    vocabulary: Vocabulary | None


def plan(
    document: Document, models: Mapping[str, Source], dtype: np.dtype | None
) -> Merge:
    """Return the merge of a document.

    Args:
      document: what the file says.
      models: all that it names, opened.
      dtype: that float leaves are cast to before anything is computed; None is none.

    Raises:
      UserError: layers that a model does not have, models that can't be merged with
        each other, a parameter that is required and missing, or that is not followed.
    """
    homes = Homes(document, {n: tree.flatten(s.abstract) for n, s in models.items()})
    tokens = vocabulary(document, models)
    inputs = _views(document, homes, models, dtype, tokens)
    require_mergeable(inputs)
    leaves = inputs.abstracts[0]
    floats = [p for p, leaf in leaves.items() if tree.dtype_class(leaf) == "float"]
    recipe = _recipe(document, homes, floats, inputs)
    return Merge(inputs, recipe, homes.layers, tokens)


def _experts_of(document: Document, one: Slice) -> list[Part]:
    """Return a slice's sources but its base."""
    base = (one.base or document.base) if document.has_base else None
    return [part for part in one.sources if part.model != base]


def _columns(document: Document) -> list[list[Part | None]]:
    """Return, for each expert of the engine, its source in each slice; None is none."""
    of = [_experts_of(document, one) for one in document.slices]
    first = [part.model for part in of[0]]
    for parts in of[1:]:
        # Where slices merge the same models, each is one expert throughout.
        if {part.model for part in parts} == set(first):
            parts.sort(key=lambda part: first.index(part.model))
    count = max(1, *map(len, of))
    return [
        [parts[k] if k < len(parts) else None for parts in of] for k in range(count)
    ]


def _views(
    document: Document,
    homes: Homes,
    models: Mapping[str, Source],
    dtype: np.dtype | None,
    tokens: Vocabulary | None,
) -> Inputs:
    """Return the views of the base and of the experts, checked by no one yet."""

    def origin(path: str, model: str, name: str) -> Origin:
        if tokens is None:
            return Origin(models[model], name)
        home = homes.of(path)
        merged = {part.model: models[part.model] for part in home.sources}
        base = home.slice.base or document.base
        rows = tokens.rows(path, model, base, merged) if model in merged else None
        return Origin(models[model], name, rows)

    def view(sources: Sequence[Part], uri: str) -> View:
        origins = {
            path: origin(path, model, name)
            for path, model, name in homes.paths(sources)
        }
        return View(uri, origins, dtype, tokens and tokens.files)

    base = None
    if document.has_base:
        bases = [one.base or document.base for one in document.slices]
        parts = [
            next(part for part in one.sources if part.model == name)
            for one, name in zip(document.slices, bases, strict=True)
        ]
        base = view(parts, ", ".join(dict.fromkeys(bases)))
    found: dict[str, View] = {}
    for column in _columns(document):
        # A slice of fewer models has its first once more, at a weight of 0.
        pairs = zip(column, document.slices, strict=True)
        filled = [part or one.sources[0] for part, one in pairs]
        named = [part.model for part in column if part] or [filled[0].model]
        uris = list(dict.fromkeys(named))
        found[_new_name(uris, found)] = view(filled, ", ".join(uris))
    names = sorted(found)
    order = tuple(list(found).index(name) for name in names)
    return Inputs(base, {name: found[name] for name in names}, order)


def _new_name(uris: Sequence[str], taken: Collection[str]) -> str:
    """Return the name of an expert, made of some models: of their last folders.

    Random masks follow from it, so it does not depend on the experts after it.
    """
    name = ", ".join(uri.rstrip("/").rsplit("/", 1)[-1] or uri for uri in uris)
    if name in taken:
        name = ", ".join(uris)
    stem, times = name, 1
    while name in taken:
        times += 1
        name = f"{stem}#{times}"
    return name


def _recipe(
    document: Document, homes: Homes, leaves: Sequence[str], inputs: Inputs
) -> dict[str, Method]:
    """Return the method of each leaf, its numbers in the order of `inputs.experts`."""
    columns = _columns(document)
    numbers = {id(one): i for i, one in enumerate(document.slices)}
    missing: dict[str, dict[str, list[str]]] = {}
    wrong: dict[str, str] = {}
    made: dict[tuple, Method | None] = {}
    found = {}
    takes = document.signature
    _require_as_many(document)
    for path in leaves:
        home = homes.of(path)
        column = [of[numbers[id(home.slice)]] for of in columns]
        values = [_numbers(document, home, path, part, missing) for part in column]
        scopes = (home.slice.parameters, document.parameters)
        shared = {key: value_of(key, scopes, path, home.t) for key in takes.shared}
        for name in takes.shared:
            if name in takes.required and shared[name] is None:
                missing.setdefault("the file", {}).setdefault(name, []).append(path)
                shared[name] = 1.0
        has_base = not inputs.base or home.holds(home.slice.base or document.base)
        key = (*(values[i] for i in inputs.order), *shared.values(), has_base)
        if key not in made:
            try:
                if not has_base:
                    raise UserError(_NO_BASE)
                experts = [dict(of) for of in key[: len(values)]]
                made[key] = translated(
                    document.method, experts, shared, inputs.base is not None
                )
            except UserError as error:
                made[key] = None
                wrong.setdefault(str(error), path)
        found[path] = made[key]
    lines = [f"{path}: {error}" for error, path in wrong.items()]
    for model, names in missing.items():
        for name, of in names.items():
            more = f" and {len(of) - 1} more leaves" if len(of) > 1 else ""
            lines.append(f"{model} has no {name}, which is required, for {of[0]}{more}")
    if lines:
        raise UserError("the mergekit YAML can't be followed:\n  " + "\n  ".join(lines))
    return found


def _require_as_many(document: Document) -> None:
    """Refuse slices of other numbers of models, where none can have a weight of 0."""
    counts = {len(_experts_of(document, one)) for one in document.slices}
    if len(counts) > 1 and "weight" not in document.signature.of_models:
        raise UserError(
            f"{document.method} has no weights, so that all slices must merge as many "
            f"models here, not {' and '.join(map(str, sorted(counts)))}."
        )


def _numbers(
    document: Document,
    home: Home,
    path: str,
    part: Part | None,
    missing: dict[str, dict[str, list[str]]],
) -> tuple[tuple[str, float], ...]:
    """Return a model's own parameters for a leaf; notes a weight that is missing.

    Where the leaf's slice does not have the model, the weight is 0.
    """
    takes = document.signature
    if part is None or part not in home.sources:
        return tuple((key, _ABSENT[key]) for key in takes.of_models)
    name = home.path_in(part, path)
    scopes = (part.parameters, home.slice.parameters, document.parameters)
    if document.method == "slerp":  # goes from the base to the other
        t = value_of("t", scopes[1:], path, home.t) or 0.0
        is_base = part.model == (home.slice.base or document.base)
        return (("weight", 1 - t if is_base else t),)
    found = []
    for key in takes.of_models:
        value = value_of(key, scopes, name, home.t)
        if value is None and key in takes.required:
            missing.setdefault(part.model, {}).setdefault(key, []).append(name)
            value = 0.0
        found.append((key, _ABSENT[key] if value is None else value))
    return tuple(found)
