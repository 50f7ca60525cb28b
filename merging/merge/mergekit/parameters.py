"""Parameters: what a YAML may say of one, and what it is for a leaf."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from merging.merge import rules
from merging.merge.mergekit.document import Condition, Mistakes, Parameters, shown
from merging.merge.mergekit.signatures import COMMON, SIGNATURES, SWITCHES

# The words for a truth value that mergekit takes beside true and false.
_WORDS = {"t": True, "yes": True, "y": True, "on": True, "1": True, "true": True}
_WORDS |= {"f": False, "no": False, "n": False, "off": False, "0": False}
_WORDS |= {"false": False}


def read(
    value: Any, where: str, wrong: Mistakes, method: str, *, of_model: bool = False
) -> Parameters:
    """Return parameters by name.

    Args:
      value: as YAML has it.
      where: it stands, for messages.
      wrong: told of what is not followed.
      method: mergekit's name of it.
      of_model: whether it stands with a model, and not with a slice or all.
    """
    takes = SIGNATURES[method]
    own, shared = takes.of_models, takes.shared
    if method != "passthrough":
        own, shared = (*own, *COMMON[0]), (*shared, *COMMON[1])
    if value is None:
        return {}
    if not isinstance(value, dict):
        wrong.add(f"{where}: keys with values, not {shown(value)}")
        return {}
    found = {}
    for name, setting in value.items():
        if name in own or (name in shared and not of_model):
            found[name] = tuple(_conditions(setting, name, f"{where}.{name}", wrong))
        elif name in shared:
            wrong.add(f"{where}.{name}: is one for all models; write it outside them")
        else:
            wrong.add(f"{where}: there is no parameter {shown(name)} here")
    return found


def _conditions(
    setting: Any, name: str, where: str, wrong: Mistakes
) -> Iterator[Condition]:
    """Return a setting's conditions: a value, a gradient, or a list with filters."""
    entries = setting if isinstance(setting, list) else [setting]
    if not any(isinstance(entry, dict) for entry in entries):
        entries = [{"value": setting}]
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) - {"filter", "value"}:
            wrong.add(f"{where}: filter and value, not {shown(entry)}")
            continue
        wanted = entry.get("filter")
        if wanted is not None and not isinstance(wanted, str):
            wrong.add(f"{where}: a filter is a text, not {shown(wanted)}")
            continue
        values = entry.get("value")
        values = values if isinstance(values, list) else [values]
        of: Callable[[Any], float | bool | None]
        of, kind = (
            (_number, "number") if name not in SWITCHES else (_switch, "truth value")
        )
        read = [of(value) for value in values]
        if None in read:
            wrong.add(f"{where}: no {kind}: {shown(entry.get('value'))}")
        else:
            yield Condition(None if wanted == "*" else wanted, tuple(read))


def value_of(
    name: str, scopes: Iterable[Parameters], leaf: str, t: float, default: Any = None
) -> Any:
    """Return a parameter's value for a leaf, from the first scope that has one."""
    for parameters in scopes:
        for condition in parameters.get(name, ()):
            if condition.filter is None or condition.filter in leaf:
                if condition.values:
                    return _at(condition, t)
                break
    return default


def _at(condition: Condition, t: float) -> float | bool:
    values = condition.values
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], bool):
        return values[int(t * (len(values) - 1))]
    return rules.ByLayer(tuple(values)).at(t)


def _number(value: Any) -> float | None:
    """Return a number; YAML reads 1e-3 as a text, and mergekit as a number."""
    if not isinstance(value, bool | int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _switch(value: Any) -> bool | None:
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    return _WORDS.get(value.lower()) if isinstance(value, str) else None
