"""The registry of methods: by name, with parameters, defaults and source.

A user's own method joins it with `register`, from Python or in a file that is named on
the command line, and is then a method like any other: in memory, streamed, in sweeps,
in manifests, in `merging methods`.
"""

import hashlib
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from merging.methods.method import Method
from merging.runtime.errors import UserError, nearest


class Entry(NamedTuple):
    """What `merging methods` prints of a method.

    Attributes:
      name: its name.
      parameters: their names, with defaults.
      paper: where it comes from.
      definition: in a line.
      build: makes the method of its parameters.
      evidence: what is known of its worth, in a few words.
    """

    name: str
    parameters: dict[str, Any]
    paper: str
    definition: str
    build: Callable[..., Method]
    evidence: str = ""


_ENTRIES: dict[str, Entry] = {}
# Module of a user's file -> where that is, and its methods.
_OF_FILES: dict[str, tuple[Path, list[str]]] = {}


def register(
    paper: str = "", definition: str = "", name: str = "", evidence: str = ""
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Return a decorator that adds a method, by the function that builds it.

    Args:
      paper: where it comes from.
      definition: what it does, in a line; the function's docstring's first by default.
      name: the function's own by default.
      evidence: what is known of its worth, in a few words.

    Raises:
      UserError: another function has the name, or a parameter has no default.

    >>> from merging import methods
    >>> @methods.register("an example", "half the sum of the task vectors")
    ... def half_sum(scale: float = 0.5):
    ...     total = methods.combiners.sum()
    ...     return methods.compose("half_sum", combiner=total, scale=scale)
    >>> methods.get("half_sum").scale
    0.5
    """

    def add(build: Callable[..., Method]) -> Callable[..., Method]:
        parameters = inspect.signature(build).parameters
        bare = [key for key, p in parameters.items() if p.default is p.empty]
        if bare:
            raise UserError(
                f"method {build.__name__}: {', '.join(bare)} needs a default."
            )
        first = (inspect.getdoc(build) or "").split("\n")[0]
        entry = Entry(
            name or build.__name__,
            {key: p.default for key, p in parameters.items()},
            paper,
            definition or first,
            build,
            evidence,
        )
        known = _ENTRIES.get(entry.name)
        if known is not None and known.build.__module__ != build.__module__:
            raise UserError(
                f"there is a method {entry.name!r} already, of "
                f"{known.build.__module__}; choose another name."
            )
        _ENTRIES[entry.name] = entry
        return build

    return add


def load_file(path: str | Path, expected: str | None = None) -> tuple[str, list[str]]:
    """Run a Python file whose functions `register` methods.

    The same file is run once in a process; after an edit anew, its methods in the place
    of those before. It is the user's own program, as a config is: run none that the
    user has not named.

    Args:
      path: of the file.
      expected: the SHA-256 that it must have to be run.

    Returns:
      Its SHA-256, and the names of the methods that it registered.

    Raises:
      UserError: there is no such file, it is not the expected one, it fails, or it
        registers nothing.

    >>> from pathlib import Path
    >>> from merging import methods
    >>> text = "from merging import methods\\n\\n@methods.register('an example')\\n"
    >>> text += "def summed(scale: float = 1.0):\\n    add = methods.combiners.sum()\\n"
    >>> text += "    return methods.compose('summed', combiner=add, scale=scale)\\n"
    >>> written = Path("mine.py").write_text(text)
    >>> digest, names = methods.load_file("mine.py")
    >>> names
    ['summed']
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: there is no file of methods ({error}).") from None
    digest = hashlib.sha256(source).hexdigest()
    if expected not in (None, digest):
        raise UserError(
            f"{path} is not the file of methods that was asked for: its SHA-256 is "
            f"{digest}, not {expected}. It was not run."
        )
    module = types.ModuleType(f"merging_methods_{path.stem}_{digest[:8]}")
    if module.__name__ in sys.modules:
        return digest, _OF_FILES[module.__name__][1]
    module.__file__ = str(path)
    return digest, _registered(module, source, path)


def _registered(module: types.ModuleType, source: bytes, path: Path) -> list[str]:
    """Run a file, whose methods take the place of those of its last version.

    Returns:
      Their names. If it fails, all is as it was.
    """
    before, place = dict(_ENTRIES), path.resolve()
    older = [name for name, (of, _) in _OF_FILES.items() if of == place]
    for name in older:
        for method in _OF_FILES[name][1]:
            _ENTRIES.pop(method, None)
    others = set(_ENTRIES)
    # In place while it runs, as dataclasses look their module up.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
        registered = [name for name in _ENTRIES if name not in others]
        if not registered:
            raise UserError(
                f"{path} registers no new method; decorate a function that returns one "
                "with @merging.methods.register()."
            )
    except BaseException as error:
        del sys.modules[module.__name__]
        _ENTRIES.clear()
        _ENTRIES.update(before)
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(f"{path}: {type(error).__name__}: {error}") from error
        raise
    for name in older:
        del sys.modules[name], _OF_FILES[name]
    _OF_FILES[module.__name__] = place, registered
    return registered


def names() -> list[str]:
    """Return the methods' names, in the order of `merging methods`.

    By letter, and those with mergekit's rules last.

    >>> from merging import methods
    >>> [name for name in methods.names() if name.startswith("ties")]
    ['ties', 'ties@mergekit']
    """
    return sorted(_ENTRIES, key=lambda name: ("@" in name, name))


def parameters(name: str) -> dict[str, Any]:
    """Return a method's parameters, with their defaults.

    Raises:
      UserError: an unknown name.
    """
    if name not in _ENTRIES:
        raise nearest("method", name, _ENTRIES)
    return dict(_ENTRIES[name].parameters)


def get(name: str, **parameters: Any) -> Method:
    """Return the method of that name.

    Raises:
      UserError: an unknown name or parameter (with the nearest valid ones), or a
        value that is out of range.

    >>> from merging import methods
    >>> method = methods.get("ties", density=0.1)
    >>> method.scale, method.needs_base
    (1.0, True)
    """
    if name not in _ENTRIES:
        raise nearest("method", name, _ENTRIES)
    entry = _ENTRIES[name]
    for parameter in parameters:
        if parameter not in entry.parameters:
            raise nearest(f"parameter of {name}", parameter, entry.parameters)
    method = entry.build(**parameters)
    if not isinstance(method, Method):
        raise UserError(f"method {name}: it builds a {type(method).__name__}.")
    return method


def catalogue() -> list[Entry]:
    """Return a record of every method.

    >>> from merging import methods
    >>> entries = {entry.name: entry for entry in methods.catalogue()}
    >>> entries["ties"].parameters["density"], entries["ties"].paper
    (0.2, 'Yadav et al. 2023, arXiv 2306.01708')
    """
    return [_ENTRIES[name] for name in names()]
