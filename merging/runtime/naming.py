"""Rooms named as the verb they hold: `merging.merge(…)` and `merging.merge.rules`."""

import sys
import types
from collections.abc import Callable
from typing import Any


def callable_as(module: str, function: Callable[..., Any]) -> None:
    """Make an imported module callable as a function of its own.

    Python has one attribute for both a package's submodule and its function of the same
    name, and whichever is set last would hide the other.

    Args:
      module: the module's name, `__name__`.
      function: what calling the module calls.
    """

    class Room(types.ModuleType):
        __call__ = staticmethod(function)

    sys.modules[module].__class__ = Room
