"""Random YAML files: what nobody thought of, in every mixture."""

import random
from collections.abc import Iterator
from typing import Any

from mergekit_cases import Case
from mergekit_files import Yaml

METHODS = ("linear", "task_arithmetic", "ties", "passthrough")
MODELS = ("base", "expert1", "expert2")
_VALUES = (0.5, 1, 0.25, -0.5, 2, "1e-1", [0, 1], [1, 2, 3], [0.3, 0.9])
_FILTERS = ("mlp", "up_proj", "self_attn", "layers.1.", "layers", "norm", "lm_head")
_FILTERS += ("embed", "*", None, "no_such_name")
_SWITCHES = (
    True,
    "no",
    [True, False],
    [{"filter": "up", "value": True}],
    [{"filter": "mlp", "value": [False, True]}, {"value": True}],
)


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield so many files, of models of four layers and float32; no chance is used."""
    chance = random.Random(seed)
    for number in range(count):
        method = chance.choice(METHODS)
        yaml = _file(chance, method)
        name = f"random {seed}.{number}, {method}"
        yield Case(name, method, "float32", {"merge_method": method, **yaml})


def _file(chance: random.Random, method: str) -> Yaml:
    found: Yaml = {"dtype": "float32"}
    if method in ("task_arithmetic", "ties") or chance.random() < 0.1:
        found["base_model"] = "base" if chance.random() < 0.9 else "expert1"
    if chance.random() < 0.8:
        found["parameters"] = _parameters(chance, method, shared=True)
        if method != "passthrough" and chance.random() < 0.6:
            found["parameters"]["weight"] = chance.choice((0.5, _number(chance)))
    if chance.random() < 0.65:
        found["slices"] = [
            _slice(chance, method) for _ in range(chance.choice((1, 1, 2, 3)))
        ]
    else:
        count = 1 if method == "passthrough" else chance.choice((1, 2, 2, 3))
        found["models"] = [
            {"model": name, "parameters": _parameters(chance, method)}
            for name in chance.sample(MODELS, count)
        ]
    if chance.random() < 0.1:
        found["out_dtype"] = "bfloat16"
    return found


def _slice(chance: random.Random, method: str) -> Yaml:
    start = chance.randrange(4)
    length = chance.randint(1, 4 - start)
    count = 1 if method == "passthrough" else chance.choice((2, 3, 3))
    names = chance.sample(MODELS, count)
    if count > 1 and "base" not in names and chance.random() < 0.9:
        names[0] = "base"
    sources = []
    for name in names:
        moved = chance.random() < 0.3
        first = chance.randrange(5 - length) if moved else start
        source: Yaml = {"model": name, "layer_range": [first, first + length]}
        if chance.random() < 0.7:
            source["parameters"] = _parameters(chance, method)
        sources.append(source)
    found: Yaml = {"sources": sources}
    if chance.random() < 0.15:
        found["base_model"] = chance.choice(names)
    if chance.random() < 0.3:
        found["parameters"] = _parameters(chance, method, shared=True)
    return found


def _parameters(chance: random.Random, method: str, *, shared: bool = False) -> Yaml:
    if method == "passthrough":
        return {"scale": _number(chance)} if chance.random() < 0.5 else {}
    odds = {"weight": 0.8, "density": 0.5} | ({"lambda": 0.4} if shared else {})
    found = {key: _number(chance) for key, p in odds.items() if chance.random() < p}
    if shared and chance.random() < 0.3:
        found["normalize"] = chance.choice(_SWITCHES)
    return found


def _number(chance: random.Random) -> Any:
    """Return a number, a gradient, nothing, or a list of conditions."""
    form = chance.random()
    if form < 0.5:
        return chance.choice(_VALUES)
    if form < 0.55:
        return []
    conditions = []
    for name in chance.sample(_FILTERS, chance.choice((1, 2, 3))):
        condition = {"value": chance.choice(_VALUES)}
        if name or chance.random() < 0.5:
            condition["filter"] = name
        conditions.append(condition)
    return conditions
