"""The suites by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from merging.runtime.errors import nearest
from merging.tasks.generated import Generated
from merging.tasks.jsonl import OwnFiles
from merging.tasks.suites import Suite, SuiteSource
from merging.tasks.t0 import T0, tables

_SOURCES: dict[str, Callable[..., SuiteSource]] = {
    "miniworld": functools.partial(Generated, "merging.tasks.miniworld"),
    "t0": T0,
    "jsonl": OwnFiles,
}
# Settings of every suite -> the field of `Suite`.
_COMMON = {
    "tokenizer": "tokenizer_path",
    "chat": "chat",
    "max_length": "longest",
    "categories": "only",
}


def suite(name: str, **settings: Any) -> Suite:
    """Return a suite by name.

    Args:
      name: one of ``names()``.
      **settings: those of its source, and for every suite ``tokenizer`` (the folder
        of a model's own), ``chat``, ``max_length`` and ``categories``; see `Suite`.

    Raises:
      UserError: an unknown suite or setting, with the nearest names; a setting that
        can't be.

    >>> import merging
    >>> suite = merging.tasks.suite("miniworld", test_examples=8)
    >>> suite.categories[:2]
    ('multiple_choice_qa', 'extractive_qa')
    """
    if name not in _SOURCES:
        raise nearest("suite", name, _SOURCES)
    make = _SOURCES[name]
    valid = [n for n in inspect.signature(make).parameters if n != "module"]
    for setting in settings:
        if setting not in (*valid, *_COMMON):
            raise nearest(f"setting of suite {name}", setting, [*valid, *_COMMON])
    own = {k: v for k, v in settings.items() if k in valid}
    common = {_COMMON[k]: v for k, v in settings.items() if k in _COMMON}
    return Suite(name, make(**own), **common)


def datasets(name: str, **settings: Any) -> tuple[Any, ...]:
    """Return the datasets of a suite, of which no data need be there.

    Args:
      name: one of ``names()``.
      **settings: as for `suite`.

    Raises:
      UserError: an unknown suite; files of one's own that can't be read.
    """
    if name == "t0":
        every = tuple(map(tables.entry, tables.names()))
    elif name in _SOURCES:
        valid = inspect.signature(_SOURCES[name]).parameters
        own = {k: v for k, v in settings.items() if k in valid and k != "module"}
        every = _SOURCES[name](**own).datasets
    else:
        raise nearest("suite", name, _SOURCES)
    only = settings.get("categories", ())
    return tuple(d for d in every if not only or d.category in only)


def names() -> tuple[str, ...]:
    """Return the names of the suites.

    >>> import merging
    >>> merging.tasks.names()
    ('miniworld', 't0', 'jsonl')
    """
    return tuple(_SOURCES)
