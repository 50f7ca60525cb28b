"""Merge large models, exactly and at scale, in JAX.

    import merging
    merged = merging.merge(base, {"qa": qa, "nli": nli}, merging.methods.ties())

Nothing is imported until it is asked for, so `import merging` costs milliseconds.
"""

import importlib
from typing import TYPE_CHECKING

from merging.runtime.errors import UserError

if TYPE_CHECKING:
    from merging import checkpoints, evaluation, merge, methods, models, tasks
    from merging.checkpoints import open_checkpoint
    from merging.evaluation.job import evaluate
    from merging.merge import merge_checkpoints

# What this page promises beside its rooms, and the room each name lives in.
_FUNCTIONS = {
    "evaluate": "merging.evaluation.job",
    "merge_checkpoints": "merging.merge",
    "open_checkpoint": "merging.checkpoints",
}
_ROOMS = ("checkpoints", "evaluation", "merge", "methods", "models", "tasks")

__all__ = [
    "UserError",
    "checkpoints",
    "evaluate",
    "evaluation",
    "merge",
    "merge_checkpoints",
    "methods",
    "models",
    "open_checkpoint",
    "tasks",
]


def __getattr__(name: str) -> object:
    if name in _FUNCTIONS:
        value = getattr(importlib.import_module(_FUNCTIONS[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"merging.{name}")
    else:
        raise AttributeError(f"module 'merging' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
