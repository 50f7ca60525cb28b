"""What a mergekit YAML may say, of models called base, expert1 and expert2."""

from typing import Any

Yaml = dict[str, Any]


def _model(name: str, **parameters: Any) -> Yaml:
    return {"model": name, "parameters": parameters} if parameters else {"model": name}


def _layers(name: str, start: int, stop: int, **parameters: Any) -> Yaml:
    return {**_model(name, **parameters), "layer_range": [start, stop]}


def plain(method: str, **shared: Any) -> Yaml:
    models = [
        _model("expert1", weight=1.0, density=0.5),
        _model("expert2", weight=0.6, density=0.3),
    ]
    found: Yaml = {"models": models, "dtype": "float32", "densities": (0.5, 0.3)}
    return {**found, "parameters": shared} if shared else found


def _models(one: Yaml, two: Yaml, method: str, **shared: Any) -> Yaml:
    found = {"models": [_model("expert1", **one), _model("expert2", **two)]}
    return {**found, "parameters": shared} if shared else found


def gradient(method: str) -> Yaml:
    first = {"weight": [1.0, 0.1], "density": 0.5}
    found = _models(first, {"weight": 0.6, "density": 0.4}, method)
    return found | {"densities": (0.5, 0.4)}


def gradients(method: str) -> Yaml:
    return _models(
        {"weight": [0.2, 0.9, 0.4], "density": [0.1, 0.8]},
        {"weight": 0.5, "density": [0.9, 0.5, 0.2, 0.6]},
        method,
    )


def filter(method: str) -> Yaml:
    weight = [{"filter": "mlp", "value": 0.2}, {"value": 1.0}]
    return _models(
        {"weight": weight, "density": 0.5}, {"weight": 0.5, "density": 0.5}, method
    )


def two_filters(method: str) -> Yaml:
    by_part = [{"filter": "mlp", "value": 0.2}, {"filter": "*", "value": 0.7}]
    by_name = [{"filter": "up_proj", "value": 0.9}, {"value": 0.3}]
    return _models(
        {"weight": by_part, "density": by_name},
        {"weight": by_name, "density": by_part},
        method,
    )


def filters_over_depth(method: str) -> Yaml:
    weight = [{"filter": "self_attn", "value": [0.0, 1.0]}, {"value": [0.9, 0.2]}]
    density = [{"filter": "layers.2", "value": 0.2}, {"value": 0.6}]
    return _models(
        {"weight": weight, "density": density}, {"weight": 0.4, "density": 0.7}, method
    )


def fallback(method: str) -> Yaml:
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


def slices(method: str) -> Yaml:
    first = _slice(0, 2, method, {"weight": 0.3}, {"weight": 0.7, "density": 0.5})
    last = _slice(2, 4, method, {"weight": 0.9, "density": 0.4}, {"weight": 0.1})
    return {"slices": [first, last]}


def slices_filters(method: str) -> Yaml:
    """Filters, gradients and a slice's own parameters."""
    ramp = [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}]
    first = _slice(0, 3, method, {"weight": ramp}, {"weight": [0.7, 0.2]})
    last = _slice(3, 4, method, {}, {"weight": [0.7, 0.2]})
    first["parameters"] = {"density": [{"filter": "up", "value": 0.3}]}
    last["parameters"] = {"density": 0.8, "lambda": 0.5}
    shared = {"weight": 0.35, "density": 0.5}
    return {"slices": [first, last], "parameters": shared}


def truncated(method: str) -> Yaml:
    numbers = {"weight": 0.5, "density": 0.5}
    return {"slices": [_slice(0, 2, method, numbers, numbers)]}


def dropped_layers(method: str) -> Yaml:
    numbers = {"weight": [0.2, 0.8], "density": 0.5}
    ranges = ((0, 1), (3, 4))
    slices = [_slice(*r, method, numbers, numbers) for r in ranges]
    return {"slices": slices, "layers": (0, 3)}


def repeated(method: str) -> Yaml:
    numbers = {"weight": [0.2, 0.8], "density": 0.5}
    ranges = ((0, 3), (1, 4))
    slices = [_slice(*r, method, numbers, numbers) for r in ranges]
    found = {"slices": slices, "layers": (0, 1, 2, 1, 2, 3)}
    return {**found, "densities": (0.5, 0.5)}


def reordered(method: str) -> Yaml:
    named = [{"filter": "layers.0.", "value": 0.9}, {"value": 0.4}]
    numbers = {"weight": named, "density": 0.5}
    ranges = ((2, 4), (0, 2))
    slices = [_slice(*r, method, numbers, numbers) for r in ranges]
    return {"slices": slices, "layers": (2, 3, 0, 1)}


def shifted(method: str) -> Yaml:
    """Layers of other numbers are merged with each other."""
    named = [{"filter": "layers.3.", "value": 0.9}, {"value": 0.4}]
    sources = [
        _layers("expert1", 0, 2, weight=0.5, density=0.5),
        _layers("expert2", 2, 4, weight=named, density=0.5),
    ]
    if method != "linear":
        sources.append(_layers("base", 1, 3))
    return {"slices": [{"sources": sources}]}


def other_models(method: str) -> Yaml:
    """Slices of other models, and of another number of them."""
    first = _slice(0, 2, method, {"weight": 0.5}, {"weight": 0.7})
    last = {"sources": [_layers("expert2", 2, 4, weight=0.8)]}
    if method != "linear":
        last["sources"].append(_layers("base", 2, 4))
    return {"slices": [first, last]}


def more_at_the_end(method: str) -> Yaml:
    """The final norm and the head take no more sources than the first slice has."""
    first = {"sources": [_layers("expert2", 0, 2, weight=0.8)]}
    last = _slice(2, 4, method, {"weight": 0.5}, {"weight": 0.7})
    if method != "linear":
        first["sources"].append(_layers("base", 0, 2))
        last["sources"].insert(0, last["sources"].pop())
    return {"slices": [first, last]}


def slice_base(method: str) -> Yaml:
    """The second slice has a base of its own, and the base is merged into it."""
    found = slices(method)
    expert1, expert2 = found["slices"][1]["sources"][:2]
    sources = [expert1, _layers("base", 2, 4, weight=0.4, density=0.6), expert2]
    found["slices"][1] = {"base_model": "expert2", "sources": sources}
    return found


def slice_base_only(method: str) -> Yaml:
    found = slices(method)
    for one in found["slices"]:
        one["base_model"] = "base"
    return found | {"base_model": None}


def unweighted_base(method: str) -> Yaml | None:
    found = slices(method)
    found["slices"][1]["base_model"] = "expert2"
    return None if method == "linear" else found


def negative(method: str) -> Yaml:
    return _models(
        {"weight": 1.0, "density": 0.5}, {"weight": -0.6, "density": 0.4}, method
    )


def zero_sum(method: str) -> Yaml:
    """Of which mergekit's linear makes infinities."""
    return _models(
        {"weight": 0.5, "density": 1}, {"weight": -0.5, "density": 1}, method
    ) | {"parameters": {"normalize": True}}


def density_0(method: str) -> Yaml:
    return _models(
        {"weight": 0.5, "density": 0}, {"weight": 0.5, "density": 1.5}, method
    ) | {"parameters": {"normalize": True}}


def spellings(method: str) -> Yaml:
    """Numbers as YAML reads them as texts, and a condition that is no list."""
    return _models(
        {"weight": "5e-1", "density": {"value": ["0.2", 1], "filter": None}},
        {"weight": {"filter": "*", "value": "1e0"}, "density": 1},
        method,
        normalize="no",
    )


def shared(method: str) -> Yaml:
    scale = [{"filter": "mlp", "value": [0.2, 0.9]}, {"value": 1.5}]
    switch = [{"filter": "self_attn", "value": True}, {"value": False}]
    return plain(method, **{"lambda": scale, "normalize": switch})


def base_listed(method: str) -> Yaml:
    found = plain(method)
    found["models"].insert(0, _model("base", weight=0.5, density=0.1))
    return found


def base_of_linear(method: str) -> Yaml | None:
    """`linear` merges the base, if the file names one."""
    if method != "linear":
        return None
    return {**plain(method), "base_model": "base", "parameters": {"weight": 0.3}}


def passed() -> dict[str, Yaml]:
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


def missing(method: str) -> Yaml:
    return _models({"density": 0.5}, {"weight": 1.0}, method)


def missing_for_some(method: str) -> Yaml:
    weight = [{"filter": "mlp", "value": 1.0}]
    return _models({"weight": weight}, {"weight": 1.0}, method)


def without_base(method: str) -> Yaml | None:
    found = slices(method)
    if method == "linear":
        return None
    found["slices"][1]["sources"].pop()
    return found


def unequal(method: str) -> Yaml:
    found = truncated(method)
    found["slices"][0]["sources"][0]["layer_range"] = [0, 3]
    return found


def too_far(method: str) -> Yaml:
    numbers = {"weight": 0.5}
    return {"slices": [_slice(2, 6, method, numbers, numbers)]}


def twice(method: str) -> Yaml:
    return {"models": [_model("expert1", weight=1.0)] * 2}


def no_number(method: str) -> Yaml:
    return _models({"weight": "heavy"}, {"weight": 1.0}, method)


def wrong_dtype(method: str) -> Yaml:
    return plain(method) | {"dtype": "int7"}
