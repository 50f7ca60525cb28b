"""Configs: Python files with a `get_config()`, locked, small, and checked.

A config is data: booleans, numbers, strings, None, and tuples of them, in sections.
It reads its argument from the command line (`--config FILE.py:ARG`), and every value
can be overridden by name (`--config.section.key=value`). The configs that come with
the package go by their names, `--config scaling_curves/tiny`; `config_keys` holds a
config against what a command takes.
"""

import ast
import contextlib
import inspect
import math
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging.runtime import storage
from merging.runtime.errors import UserError, nearest

MAX_LEAVES = 40


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Return the locked config of a file, with the overrides applied.

    Args:
      spec: `path/to/file.py`, or `path/to/file.py:argument` for a `get_config` that
        takes one string; or the name of a shipped one, with or without an argument; or
        a YAML file for mergekit, which stands for `merge/mergekit` with that file.
      overrides: dotted key -> text, e.g. `{"grid.sizes": "1x,8x"}`; each text is read
        as the type of the value it replaces. The key of a section is no key.

    Raises:
      UserError: no such file, two YAML files, no usable `get_config`, an error inside
        the file, more than 40 leaves, an unknown key (named with its neighbours) or a
        value of the wrong type. All wrong overrides are listed at once.

    >>> from merging.runtime import config
    >>> chosen = config.load("merge/ties", {"method.density": "0.1"})
    >>> chosen.method.density, chosen.memory_budget
    (0.1, '1GB')
    """
    if spec.endswith((".yml", ".yaml")):
        overrides = {"merge_yaml": spec, **(overrides or {})}
        if (other := overrides["merge_yaml"]) != spec:
            raise UserError(f"--config is {spec}, merge_yaml {other}: leave one out.")
        spec = "merge/mergekit"
    path, argument = split_spec(spec)
    config = _call(path, argument)
    found = leaves(config)
    if len(found) > MAX_LEAVES:
        raise UserError(
            f"{path}: {len(found)} values, and a config may have {MAX_LEAVES}. What no"
            " one changes from run to run belongs into the code as a default."
        )
    problems = []
    for key, text in (overrides or {}).items():
        try:
            value = _parsed(key, text, found)
            config.update_from_flattened_dict({key: value})
        except (UserError, TypeError) as error:  # TypeError: a placeholder's type
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return config.lock()


def split_spec(spec: str) -> tuple[Path, str | None]:
    """Return (path, argument or None) of `file.py[:argument]`, or of a name's file.

    A path that exists goes before the name of a shipped config.

    Raises:
      UserError: there is no such file and no such name.
    """
    storage.supported_path(spec, "--config")
    stem, suffix, rest = spec.rpartition(".py:")
    path, argument = (Path(stem + ".py"), rest) if suffix else (Path(spec), None)
    if path.is_file() and path.suffix == ".py":
        return path, argument
    if not path.suffix and not path.exists():
        return _by_name(spec)
    if path.suffix != ".py":
        raise UserError(f"--config {spec}: a config is a Python file (FILE.py[:arg]).")
    there = [p.name for p in path.parent.glob("*.py")]
    if there:
        raise nearest(f"config file in {path.parent}", path.name, there)
    raise UserError(
        f"--config {spec}: there is no file {path}; the package's own configs go by "
        "their names, such as merge/ties (--help lists them)."
    )


def shipped() -> dict[str, Path]:
    """Return {name: file} of the configs that come with the package.

    An installed package holds them; in a checkout they lie beside it.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "configs", package.parent / "configs")
    folder = next(filter(Path.is_dir, places), places[0])
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.glob("*/*.py"))
    }


def _by_name(spec: str) -> tuple[Path, str | None]:
    name, colon, argument = spec.partition(":")
    known = shipped()
    if name not in known:
        raise _unknown(name, known)
    return known[name], argument if colon else None


def _unknown(name: str, known: Mapping[str, Path]) -> UserError:
    """Return the error for a name that no config has, with those of its folder."""
    folder, _, rest = name.partition("/")
    inside = [other for other in known if other.startswith(f"{folder}/")]
    kind = "config (neither a file, FILE.py[:arg], nor a name)"
    error = nearest(kind, name, inside or known)
    if rest and f"{folder}/method" in known:
        return UserError(
            f"{error} A method of `merging methods` without a config of its own goes by"
            f" --config {folder}/method:{rest}."
        )
    return error


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value for every leaf, sorted by key."""
    found = {}
    for name in sorted(config):
        value = config[name]
        if isinstance(value, ConfigDict):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def config_hash(config: ConfigDict) -> str:
    """Return 12 hex digits that depend on keys and values only, not on their order.

    The same on every machine and Python version; 1 and 1.0 differ, as their types do.
    """
    return storage.digest(leaves(config), length=12)


def _call(path: Path, argument: str | None) -> ConfigDict:
    """Run the file and its get_config(); whatever fails inside names file and line."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    with _importing_beside(path):
        try:
            exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
            get_config = module.__dict__.get("get_config")
            if not callable(get_config):
                raise UserError(f"{path} defines no get_config().")
            config = get_config(*_arguments(path, get_config, argument))
        except UserError:
            raise
        except Exception as error:
            raise UserError(_inside(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {type(config).__name__}, and must return"
            " an ml_collections.ConfigDict."
        )
    for key, value in leaves(config).items():
        if not _is_data(value):
            raise UserError(
                f"{path}: {key} is a {type(value).__name__}; a config holds booleans,"
                " numbers, strings, None and tuples of them."
            )
    return config


def _arguments(path: Path, get_config: Any, argument: str | None) -> tuple[str, ...]:
    given = () if argument is None else (argument,)
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        if given:
            raise UserError(
                f"{path} takes no argument, and got {argument!r}."
            ) from None
        raise UserError(f"{path} needs an argument: --config {path}:ARG.") from None
    return given


@contextlib.contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let a config import its neighbours, as a script can, and leave no trace."""
    folder = str(path.parent.resolve())
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            source = getattr(sys.modules[name], "__file__", None)
            if source and str(Path(source).parent) == folder:
                del sys.modules[name]


def _inside(path: Path, error: Exception) -> str:
    """Return what failed, and the line of the config that led there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    return f"{where}: the config failed with {type(error).__name__}: {error}"


def _is_data(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_data, value))
    return value is None or type(value) in (bool, int, float, str)


def _parsed(key: str, text: str, found: Mapping[str, Any]) -> Any:
    """Return the text as the type of the leaf it replaces."""
    if key not in found:
        inner = [name for name in found if name.startswith(key + ".")]
        if inner:
            shown = ", ".join(inner)
            raise UserError(f"--config.{key}: this is a section of keys: {shown}.")
        raise nearest("config key", key, found)
    like = found[key]
    try:
        return _read(text, like)
    except (ValueError, SyntaxError):
        raise UserError(
            f"--config.{key}={text}: expected {_expected(like)}, as {like!r} is."
        ) from None


def _read(text: str, like: Any) -> Any:
    """Return the text read as a value of the type of `like`, or raise ValueError."""
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(like, (int, float, str)):
        value = type(like)(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(text)
        return value
    if like is None:
        return _literal(text)
    return type(like)(_read_items(text.strip(), like))


def _read_items(text: str, like: tuple | list) -> list:
    """Return the items of `1x,8x`, `(1x, 8x)` or `[1x,8x]`; `()` is none."""
    kinds = {type(item) for item in like}
    if kinds <= {int, float} and float in kinds:
        kinds = {float}  # (0, 0.5) holds real numbers
    if kinds & {tuple, list} or len(kinds) > 1:
        items = ast.literal_eval(text)
        if not isinstance(items, (tuple, list)) or not {*map(type, items)} <= kinds:
            raise ValueError(text)
        return [*items]
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    items = [item.strip().strip("'\"") for item in _split(text)]
    if items[-1] == "":  # "()" and the comma of "(1x,)"
        items.pop()
    if "" in items:
        raise ValueError(text)
    if not kinds:
        return [_literal(item) for item in items]
    sample = kinds.pop()()  # int(), float(), str(), bool(): a value of the kind
    return [_read(item, sample) for item in items]


def _split(text: str) -> list[str]:
    """Return the parts between commas; those inside brackets part nothing."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _literal(text: str) -> Any:
    """Return a number, None or tuple where the text is one, or else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if _is_data(value) else text


def _expected(like: Any) -> str:
    """Return the name of a leaf's type for a person."""
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    if not isinstance(like, (tuple, list)):
        return names.get(type(like), "text")
    inner = {names.get(type(item), "text") for item in like}
    if any(isinstance(item, (tuple, list)) for item in like) or len(inner) != 1:
        return f"a tuple like {like!r}"
    return f"values like {inner.pop()}, separated by commas"
