"""Merge large models, exactly and at scale, in JAX.

    import merging
    merged = merging.merge(base, {"qa": qa, "nli": nli}, merging.methods.ties())

Nothing is imported until it is asked for, so `import merging` costs milliseconds.
"""

import importlib
from typing import TYPE_CHECKING

from merging.runtime.errors import UserError

if TYPE_CHECKING:
    from merging import (
        analysis,
        checkpoints,
        evaluation,
        merge,
        methods,
        models,
        report,
        sweep,
        tasks,
    )
    from merging.checkpoints import open_checkpoint
    from merging.evaluation.job import evaluate
    from merging.merge import merge_checkpoints
    from merging.planning import plan
    from merging.training.collect import run as collect
    from merging.training.job import run as train

# What this page promises beside its rooms: {name: (its module, its name there)}.
_FUNCTIONS = {
    "collect": ("merging.training.collect", "run"),
    "evaluate": ("merging.evaluation.job", "evaluate"),
    "merge_checkpoints": ("merging.merge", "merge_checkpoints"),
    "open_checkpoint": ("merging.checkpoints", "open_checkpoint"),
    "plan": ("merging.planning", "plan"),
    "train": ("merging.training.job", "run"),
}
# Rooms; `merge`, `report` and `sweep` are functions, too: merging.merge(…).
_ROOMS = ("analysis", "checkpoints", "evaluation", "merge", "methods", "models")
_ROOMS += ("report", "sweep", "tasks")

__all__ = [
    "UserError",
    "analysis",
    "checkpoints",
    "collect",
    "evaluate",
    "evaluation",
    "merge",
    "merge_checkpoints",
    "methods",
    "models",
    "open_checkpoint",
    "plan",
    "report",
    "sweep",
    "tasks",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _FUNCTIONS:
        module, attribute = _FUNCTIONS[name]
        value = getattr(importlib.import_module(module), attribute)
    elif name in _ROOMS:
        value = importlib.import_module(f"merging.{name}")
    else:
        raise AttributeError(f"module 'merging' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
