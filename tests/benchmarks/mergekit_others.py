"""Files for mergekit's methods that take other parameters than weight and density."""

from collections.abc import Iterator
from typing import Any

from mergekit_files import Yaml

_BAND = {"weight": 0.6, "density": 0.4, "gamma": 0.05}
_CHANCE = {"weight": 0.6, "density": 0.4, "epsilon": 0.2}
_RAMP = [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.3}]
_W = {"weight": 0.6}
# {method: {what the file says: (parameters of expert1, of expert2, of all)}}; an expert
# without parameters is None where the method takes fewer models.
_FILES: dict[str, dict[str, tuple[Yaml | None, Yaml | None, Yaml]]] = {
    "slerp": {
        "plain": ({}, None, {"t": 0.3}),
        "gradient": ({}, None, {"t": _RAMP}),
        "three models": ({}, {}, {"t": 0.3}),
        "t missing": ({}, None, {}),
    },
    "nuslerp": {
        "plain": ({"weight": 1}, {"weight": 0.4}, {}),
        "rows": ({"weight": 1}, {"weight": _RAMP}, {"nuslerp_flatten": False}),
        "columns": (_W, _W, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        "one model": (_W, None, {}),
    },
    "multislerp": {
        "plain": ({"weight": 1}, {"weight": 0.4}, {}),
        "gradient": ({"weight": _RAMP}, _W, {}),
        "weights as they are": (_W, _W, {"normalize_weights": False}),
    },
    "karcher": {"plain": ({}, {}, {}), "two steps": ({}, {}, {"max_iter": 2})},
    "model_stock": {
        "plain": ({}, {}, {}),
        "rows": ({}, {}, {"filter_wise": True}),
        "two models": ({}, None, {}),
    },
    "arcee_fusion": {"plain": ({}, None, {}), "three models": ({}, {}, {})},
    "nearswap": {
        "plain": ({}, None, {"t": 0.0005}),
        "gradient": ({}, None, {"t": [0.0001, 0.001]}),
    },
    "breadcrumbs": {
        "plain": (_BAND, _W, {}),
        "rescale, normalize": (_BAND, _BAND, {"rescale": True, "normalize": True}),
        "lambda": (_BAND, {**_BAND, "density": 0.97}, {"lambda": 0.5}),
    },
    "breadcrumbs_ties": {
        "plain": (_BAND, _W, {}),
        "rescale, normalize": (_BAND, _BAND, {"rescale": True, "normalize": True}),
    },
    "ties": {"rescale": ({"weight": 0.6, "density": 0.4}, _W, {"rescale": True})},
    "della": {
        "plain": (_CHANCE, _CHANCE, {}),
        "density 1": (_W, _W, {}),
        "too wide": (_CHANCE, {**_CHANCE, "density": 0.9}, {}),
    },
    "della_linear": {
        "plain": (_CHANCE, _CHANCE, {}),
        "no rescale": (_CHANCE, _CHANCE, {"rescale": False}),
    },
    "sce": {
        "plain": ({}, {}, {}),
        "select": ({}, {}, {"select_topk": 0.2}),
        "gradient": ({}, {}, {"select_topk": [0.1, 0.9]}),
    },
    "ram": {"plain": ({}, {}, {}), "epsilon": ({}, {}, {"epsilon": 0.001})},
    "ramplus_tl": {
        "plain": ({}, {}, {}),
        "epsilon": ({}, {}, {"epsilon": 0.001, "r": 0.5, "alpha": 0.9}),
    },
}
# Whose models are merged without a base; nuslerp and multislerp take both.
_BASELESS = ("karcher", "nuslerp", "multislerp")


def files() -> Iterator[tuple[str, str, Yaml]]:
    """Yield (method, what it says, the file)."""
    for method, named in _FILES.items():
        for name, (one, two, shared) in named.items():
            found = _file(one, two, shared)
            yield method, name, found
            if name == "plain" and method in _BASELESS:
                yield method, "no base", {**found, "base_model": None}
        one, two, shared = next(iter(named.values()))
        plain = _file(one, two, shared)
        # There some of their factors are float32, and so is what they merge.
        wide = method in ("arcee_fusion", "ramplus_tl")
        narrow = {"out_dtype": "bfloat16"} if wide else {}
        narrow |= {"dtype": None, "family": "bfloat16"}
        kept = tuple(own.get("density", 1) for own in (one, two) if own is not None)
        yield method, "bfloat16", {**plain, **narrow, "densities": kept}
        yield method, "tied", {**plain, "family": "tied"}
        yield method, "slices", _sliced(one, two, shared)


def _file(one: Yaml | None, two: Yaml | None, shared: Yaml) -> Yaml:
    models = [
        {"model": f"expert{i + 1}", "parameters": dict(own)}
        for i, own in enumerate((one, two))
        if own is not None
    ]
    found: dict[str, Any] = {"models": models, "dtype": "float32"}
    return {**found, "parameters": dict(shared)} if shared else found


def _sliced(one: Yaml | None, two: Yaml | None, shared: Yaml) -> Yaml:
    """Layers in another order, and two of them twice."""
    slices = []
    for start, stop in ((1, 4), (0, 2)):
        sources = [
            {**model, "layer_range": [start, stop]}
            for model in (*_file(one, two, shared)["models"], {"model": "base"})
        ]
        slices.append({"sources": sources})
    return {
        "slices": slices,
        "parameters": dict(shared),
        "dtype": "float32",
        "layers": (1, 2, 3, 0, 1),
    }
