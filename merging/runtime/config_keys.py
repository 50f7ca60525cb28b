"""What a command takes of a config: its keys, which are needed, and their defaults.

A config may be anyone's file. What is missing, misspelt or of another kind is the
user's mistake, found before anything is done, and not a KeyError in the middle of it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from merging.runtime import storage
from merging.runtime.config import leaves
from merging.runtime.errors import UserError, listed, nearest

T = TypeVar("T")
_KINDS = {ConfigDict: "a section", tuple: "a tuple", float: "a number", str: "text"}


def completed(
    config: ConfigDict,
    keys: Mapping[str, Any],
    command: str,
    example: str,
    *,
    remote: Sequence[str] = (),
    kept: Sequence[str] = (),
) -> ConfigDict:
    """Return a config, locked, with the defaults of what it leaves out.

    Args:
      config: of `config.load`, or made in Python.
      keys: {key: default} of all that there may be. A type in place of a default says
        that the key is needed; a dict is a section with these keys, a ConfigDict one
        with keys of its own. None is left out.
      command: whose config it should be, for messages.
      example: the name of a shipped config that is one.
      remote: keys of checkpoints that are read, also from `storage.REMOTE`.
      kept: keys of places that are written, also in `storage.KEPT_IN`.

    Raises:
      UserError: keys that are missing or unknown, a value of another kind, a path with
        a scheme that is not supported.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{command} takes a ConfigDict, such as merging.runtime.config.load("
            f"{example!r}), not {config!r}."
        )
    given = {k: v for k, v in config.items() if v is not None}
    missing = [k for k, of in keys.items() if isinstance(of, type) and k not in given]
    if missing:
        raise UserError(
            f"this is no config of {command}: it has no {listed(missing, mark=', ')}; "
            f"--config {example} is one."
        )
    found = _filled(given, keys, command)
    for key, value in leaves(found).items():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, str):
                schemes = storage.REMOTE if key in remote else ()
                schemes = storage.KEPT_IN if key in kept else schemes
                storage.supported_path(item, key, schemes)
    return found.lock()


def section(make: Callable[..., T], values: Mapping[str, Any], name: str) -> T:
    """Return `make(**values)`, such as a dataclass, of a section of a config.

    Raises:
      UserError: a key that it does not have, or lacks.
    """
    taken = inspect.signature(make).parameters
    for key in values:
        if key not in taken:
            valid = [f"{name}.{known}" for known in taken]
            raise nearest("config key", f"{name}.{key}", valid)
    missing = [
        key for key, of in taken.items() if of.default is of.empty and key not in values
    ]
    if missing:
        raise UserError(
            f"the section {name} of this config has no {listed(missing, mark=', ')}."
        )
    return make(**{k: _plain(v) for k, v in values.items()})


def _filled(
    given: Mapping[str, Any], keys: Mapping[str, Any], command: str, prefix: str = ""
) -> ConfigDict:
    for key in given:
        if key not in keys:
            valid = [prefix + known for known in keys]
            raise nearest(f"key of a config of {command}", prefix + key, valid)
    found = ConfigDict()
    for key, default in keys.items():
        if key not in given:
            found[key] = ConfigDict(default) if _is_section(default) else default
            continue
        value = given[key]
        kind = _kind(default)
        if kind and kind is not _kind(value):
            raise UserError(
                f"config of {command}: {prefix}{key} = {value!r} must be "
                f"{_KINDS[kind]}."
            )
        if isinstance(default, dict):
            found[key] = _filled(value, default, command, f"{prefix}{key}.")
        else:
            found[key] = _plain(value)
    return found


def _is_section(value: Any) -> bool:
    return isinstance(value, (dict, ConfigDict))


def _kind(value: Any) -> type | None:
    """Return what a value, or a type, is: a key of `_KINDS`; None for anything else."""
    of = value if isinstance(value, type) else type(value)
    for kind, types in (
        (ConfigDict, (dict, ConfigDict)),
        (tuple, (tuple, list)),
        (float, (int, float)),  # and bool
        (str, (str,)),
    ):
        if issubclass(of, types):
            return kind
    return None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
