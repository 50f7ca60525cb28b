"""The YAML files that both programs merge: methods times what a file can say."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear")
# Folders of models: the same numbers in three dtypes, and float32 with a tied head.
FAMILIES = ("float32", "bfloat16", "float16", "tied")

Yaml = dict[str, Any]


class Case(NamedTuple):
    """A YAML file.

    Attributes:
      name: the method, and what the file says.
      method: mergekit's name.
      family: of the models that it merges.
      yaml: with models called base, expert1 and expert2.
      densities: of the experts, where they are the same for all leaves.
      layers: of the models, one for each of the output's; None is all of them.
      reference: in place of `yaml`, what mergekit computes in float32 and rounds once.
    """

    name: str
    method: str
    family: str
    yaml: Yaml
    densities: tuple[float, float] | None = None
    layers: tuple[int, ...] | None = None
    reference: Yaml | None = None

    @property
    def narrow(self) -> str | None:
        """The dtype that mergekit computes in, if it is narrower than float32."""
        dtype = self.yaml.get("dtype") or self.family
        return dtype if dtype in ("bfloat16", "float16") else None


def cases() -> Iterator[Case]:
    """Yield every case."""
    for method in METHODS:
        for name, make in FEATURES.items():
            yaml = make(method)
            if yaml is not None:
                yield _case(method, name, yaml)
    yield _case("dare_ties", "plain", _plain("dare_ties"))
    yield _case("dare_ties", "normalize", _plain("dare_ties", normalize=True))
    for name, yaml in _passed().items():
        yield _case("passthrough", name, yaml)


def _case(method: str, name: str, yaml: Yaml) -> Case:
    family = yaml.pop("family", "float32")
    if method not in ("linear", "passthrough"):
        yaml.setdefault("base_model", "base")
    case = Case(
        f"{method}, {name}",
        method,
        family,
        {"merge_method": method, **yaml},
        yaml.pop("densities", None),
        yaml.pop("layers", None),
    )
    for key in ("densities", "layers"):
        case.yaml.pop(key, None)
    if case.narrow is None:
        return case
    once = {"dtype": "float32", "out_dtype": case.yaml.get("out_dtype", case.narrow)}
    return case._replace(reference=case.yaml | once)


def _model(name: str, **parameters: Any) -> Yaml:
    return {"model": name, "parameters": parameters} if parameters else {"model": name}


def _layers(name: str, start: int, stop: int, **parameters: Any) -> Yaml:
    return {**_model(name, **parameters), "layer_range": [start, stop]}


def _plain(method: str, **shared: Any) -> Yaml:
    models = [
        _model("expert1", weight=1.0, density=0.5),
        _model("expert2", weight=0.6, density=0.3),
    ]
    found: Yaml = {"models": models, "dtype": "float32", "densities": (0.5, 0.3)}
    return {**found, "parameters": shared} if shared else found


def _models(one: Yaml, two: Yaml, method: str, **shared: Any) -> Yaml:
    found = {"models": [_model("expert1", **one), _model("expert2", **two)]}
    return {**found, "parameters": shared} if shared else found


def _gradient(method: str) -> Yaml:
    first = {"weight": [1.0, 0.1], "density": 0.5}
    found = _models(first, {"weight": 0.6, "density": 0.4}, method)
    return found | {"densities": (0.5, 0.4)}


def _gradients(method: str) -> Yaml:
    return _models(
        {"weight": [0.2, 0.9, 0.4], "density": [0.1, 0.8]},
        {"weight": 0.5, "density": [0.9, 0.5, 0.2, 0.6]},
        method,
    )


def _filter(method: str) -> Yaml:
    weight = [{"filter": "mlp", "value": 0.2}, {"value": 1.0}]
    return _models(
        {"weight": weight, "density": 0.5}, {"weight": 0.5, "density": 0.5}, method
    )


def _two_filters(method: str) -> Yaml:
    by_part = [{"filter": "mlp", "value": 0.2}, {"filter": "*", "value": 0.7}]
    by_name = [{"filter": "up_proj", "value": 0.9}, {"value": 0.3}]
    return _models(
        {"weight": by_part, "density": by_name},
        {"weight": by_name, "density": by_part},
        method,
    )


def _filters_over_depth(method: str) -> Yaml:
    weight = [{"filter": "self_attn", "value": [0.0, 1.0]}, {"value": [0.9, 0.2]}]
    density = [{"filter": "layers.2", "value": 0.2}, {"value": 0.6}]
    return _models(
        {"weight": weight, "density": density}, {"weight": 0.4, "density": 0.7}, method
    )


def _fallback(method: str) -> Yaml:
    never = [{"filter": "no_such_name", "value": 5.0}]
    return _models(
        {"weight": never, "density": [{"filter": "mlp", "value": 0.2}]},
        {"weight": 0.4},
        method,
        weight=[{"filter": "embed", "value": 0.3}, {"value": 0.8}],
        density=[{"filter": "attn", "value": 0.5}],
    )


def _slice(start: int, stop: int, method: str, one: Yaml, two: Yaml) -> Yaml:
    sources = [
        _layers("expert1", start, stop, **one),
        _layers("expert2", start, stop, **two),
    ]
    if method != "linear":
        sources.append(_layers("base", start, stop))
    return {"sources": sources}


def _slices(method: str) -> Yaml:
    first = _slice(0, 2, method, {"weight": 0.3}, {"weight": 0.7, "density": 0.5})
    last = _slice(2, 4, method, {"weight": 0.9, "density": 0.4}, {"weight": 0.1})
    return {"slices": [first, last]}


def _slices_filters(method: str) -> Yaml:
    """Filters, gradients and a slice's own parameters."""
    ramp = [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}]
    first = _slice(0, 3, method, {"weight": ramp}, {"weight": [0.7, 0.2]})
    last = _slice(3, 4, method, {}, {"weight": [0.7, 0.2]})
    first["parameters"] = {"density": [{"filter": "up", "value": 0.3}]}
    last["parameters"] = {"density": 0.8, "lambda": 0.5}
    shared = {"weight": 0.35, "density": 0.5}
    return {"slices": [first, last], "parameters": shared}


def _truncated(method: str) -> Yaml:
    numbers = {"weight": 0.5, "density": 0.5}
    return {"slices": [_slice(0, 2, method, numbers, numbers)]}


def _dropped_layers(method: str) -> Yaml:
    numbers = {"weight": [0.2, 0.8], "density": 0.5}
    ranges = ((0, 1), (3, 4))
    slices = [_slice(*r, method, numbers, numbers) for r in ranges]
    return {"slices": slices, "layers": (0, 3)}


def _repeated(method: str) -> Yaml:
    numbers = {"weight": [0.2, 0.8], "density": 0.5}
    ranges = ((0, 3), (1, 4))
    slices = [_slice(*r, method, numbers, numbers) for r in ranges]
    found = {"slices": slices, "layers": (0, 1, 2, 1, 2, 3)}
    return {**found, "densities": (0.5, 0.5)}


def _reordered(method: str) -> Yaml:
    named = [{"filter": "layers.0.", "value": 0.9}, {"value": 0.4}]
    numbers = {"weight": named, "density": 0.5}
    ranges = ((2, 4), (0, 2))
    slices = [_slice(*r, method, numbers, numbers) for r in ranges]
    return {"slices": slices, "layers": (2, 3, 0, 1)}


def _shifted(method: str) -> Yaml:
    """Layers of other numbers are merged with each other."""
    named = [{"filter": "layers.3.", "value": 0.9}, {"value": 0.4}]
    sources = [
        _layers("expert1", 0, 2, weight=0.5, density=0.5),
        _layers("expert2", 2, 4, weight=named, density=0.5),
    ]
    if method != "linear":
        sources.append(_layers("base", 1, 3))
    return {"slices": [{"sources": sources}]}


def _other_models(method: str) -> Yaml:
    """Slices of other models, and of another number of them."""
    first = _slice(0, 2, method, {"weight": 0.5}, {"weight": 0.7})
    last = {"sources": [_layers("expert2", 2, 4, weight=0.8)]}
    if method != "linear":
        last["sources"].append(_layers("base", 2, 4))
    return {"slices": [first, last]}


def _more_at_the_end(method: str) -> Yaml:
    """The final norm and the head take no more sources than the first slice has."""
    first = {"sources": [_layers("expert2", 0, 2, weight=0.8)]}
    last = _slice(2, 4, method, {"weight": 0.5}, {"weight": 0.7})
    if method != "linear":
        first["sources"].append(_layers("base", 0, 2))
        last["sources"].insert(0, last["sources"].pop())
    return {"slices": [first, last]}


def _slice_base(method: str) -> Yaml:
    """The second slice has a base of its own, and the base is merged into it."""
    found = _slices(method)
    expert1, expert2 = found["slices"][1]["sources"][:2]
    sources = [expert1, _layers("base", 2, 4, weight=0.4, density=0.6), expert2]
    found["slices"][1] = {"base_model": "expert2", "sources": sources}
    return found


def _slice_base_only(method: str) -> Yaml:
    found = _slices(method)
    for one in found["slices"]:
        one["base_model"] = "base"
    return found | {"base_model": None}


def _unweighted_base(method: str) -> Yaml | None:
    found = _slices(method)
    found["slices"][1]["base_model"] = "expert2"
    return None if method == "linear" else found


def _negative(method: str) -> Yaml:
    return _models(
        {"weight": 1.0, "density": 0.5}, {"weight": -0.6, "density": 0.4}, method
    )


def _zero_sum(method: str) -> Yaml | None:
    if method == "linear":  # which mergekit divides by 0
        return None
    return _models(
        {"weight": 0.5, "density": 1}, {"weight": -0.5, "density": 1}, method
    ) | {"parameters": {"normalize": True}}


def _density_0(method: str) -> Yaml:
    return _models(
        {"weight": 0.5, "density": 0}, {"weight": 0.5, "density": 1.5}, method
    ) | {"parameters": {"normalize": True}}


def _spellings(method: str) -> Yaml:
    """Numbers as YAML reads them as texts, and a condition that is no list."""
    return _models(
        {"weight": "5e-1", "density": {"value": ["0.2", 1], "filter": None}},
        {"weight": {"filter": "*", "value": "1e0"}, "density": 1},
        method,
        normalize="no",
    )


def _shared(method: str) -> Yaml:
    scale = [{"filter": "mlp", "value": [0.2, 0.9]}, {"value": 1.5}]
    switch = [{"filter": "self_attn", "value": True}, {"value": False}]
    return _plain(method, **{"lambda": scale, "normalize": switch})


def _base_listed(method: str) -> Yaml:
    found = _plain(method)
    found["models"].insert(0, _model("base", weight=0.5, density=0.1))
    return found


def _base_of_linear(method: str) -> Yaml | None:
    """`linear` merges the base, if the file names one."""
    if method != "linear":
        return None
    return {**_plain(method), "base_model": "base", "parameters": {"weight": 0.3}}


def _passed() -> dict[str, Yaml]:
    """Return files that merge nothing: they put layers of models on one another."""
    scale = [{"filter": "down_proj", "value": [0.0, 1.0]}, {"value": 0.5}]
    stack = [
        {"sources": [_layers("expert1", 0, 3)]},
        {"sources": [_layers("expert2", 1, 4, scale=scale)]},
        {"sources": [_layers("base", 3, 4)], "parameters": {"scale": 2}},
    ]
    both = [_layers("expert1", 0, 2), _layers("base", 0, 2)]
    return {
        "a model": {"models": [_model("expert1")]},
        "its base": {"models": [_model("expert1")], "base_model": "expert1"},
        "another base": {"models": [_model("expert1")], "base_model": "base"},
        "a stack": {"slices": stack},
        "a stack of bfloat16": {"slices": stack, "family": "bfloat16"},
        "two models": {"slices": [{"sources": both}]},
    }


def _missing(method: str) -> Yaml:
    return _models({"density": 0.5}, {"weight": 1.0}, method)


def _missing_for_some(method: str) -> Yaml:
    weight = [{"filter": "mlp", "value": 1.0}]
    return _models({"weight": weight}, {"weight": 1.0}, method)


def _without_base(method: str) -> Yaml | None:
    found = _slices(method)
    if method == "linear":
        return None
    found["slices"][1]["sources"].pop()
    return found


def _unequal(method: str) -> Yaml:
    found = _truncated(method)
    found["slices"][0]["sources"][0]["layer_range"] = [0, 3]
    return found


def _too_far(method: str) -> Yaml:
    numbers = {"weight": 0.5}
    return {"slices": [_slice(2, 6, method, numbers, numbers)]}


def _twice(method: str) -> Yaml:
    return {"models": [_model("expert1", weight=1.0)] * 2}


def _no_number(method: str) -> Yaml:
    return _models({"weight": "heavy"}, {"weight": 1.0}, method)


def _wrong_dtype(method: str) -> Yaml:
    return _plain(method) | {"dtype": "int7"}


FEATURES: dict[str, Callable[[str], Yaml | None]] = {
    "plain": _plain,
    "no dtype": lambda method: _plain(method) | {"dtype": None},
    "gradient": _gradient,
    "gradients": _gradients,
    "filter": _filter,
    "two filters": _two_filters,
    "filters over the depth": _filters_over_depth,
    "fallback": _fallback,
    "slices": _slices,
    "slices, filters": _slices_filters,
    "truncation": _truncated,
    "layers left out": _dropped_layers,
    "repetition": _repeated,
    "reorder": _reordered,
    "layers of other numbers": _shifted,
    "slices of other models": _other_models,
    "more models at the end": _more_at_the_end,
    "slice base": _slice_base,
    "slice bases, no base": _slice_base_only,
    "normalize": lambda method: _plain(method, normalize=True),
    "no normalize": lambda method: _plain(method, normalize=False),
    "lambda": lambda method: _plain(method, **{"lambda": 0.7}),
    "shared, filtered": _shared,
    "no rescale": lambda method: _plain(method, rescale=False),
    "negative weight": _negative,
    "weights that sum to 0": _zero_sum,
    "density 0 and above 1": _density_0,
    "spellings": _spellings,
    "base among the models": _base_listed,
    "base of linear": _base_of_linear,
    "out_dtype": lambda method: _plain(method) | {"out_dtype": "bfloat16"},
    "cast to bfloat16": lambda method: _plain(method) | {"dtype": "bfloat16"},
    "cast to float16": lambda method: _plain(method) | {"dtype": "float16"},
    "bfloat16": lambda method: (
        _plain(method) | {"dtype": "bfloat16", "family": "bfloat16"}
    ),
    "bfloat16, no dtype": lambda method: (
        _plain(method) | {"dtype": None, "family": "bfloat16"}
    ),
    "bfloat16, gradients": lambda method: (
        _gradient(method) | {"dtype": "bfloat16", "family": "bfloat16"}
    ),
    "bfloat16, lambda": lambda method: (
        _plain(method, **{"lambda": 0.7}) | {"dtype": None, "family": "bfloat16"}
    ),
    "bfloat16 to float32": lambda method: _plain(method) | {"family": "bfloat16"},
    "bfloat16, repetition": lambda method: (
        _repeated(method) | {"dtype": "float32", "family": "bfloat16"}
    ),
    "tied": lambda method: _plain(method) | {"family": "tied"},
    "tied, gradients": lambda method: _gradients(method) | {"family": "tied"},
    "tied, repetition": lambda method: _repeated(method) | {"family": "tied"},
    "weight missing": _missing,
    "weight missing for some": _missing_for_some,
    "slice without its base": _without_base,
    "slice base, weight missing": _unweighted_base,
    "slices of unequal lengths": _unequal,
    "layers beyond the last": _too_far,
    "a model twice": _twice,
    "weight is a word": _no_number,
    "dtype is none": _wrong_dtype,
}
