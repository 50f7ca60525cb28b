"""What merging does and why more experts stop helping: geometry, saturation, laws.

`geometry` describes task vectors, of models in memory or on disk; `widths`,
`kinematics` and `gram` are pure functions of their K × K Gram matrix; `fit` fits a law
to rows. `merging analyze` and `merging fit` are the same with a config.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merging.analysis.describing import geometry

__all__ = ["geometry"]
_WHERE = {"geometry": "merging.analysis.describing"}


def __getattr__(name: str) -> object:
    # Late: the command line must start quickly.
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'merging.analysis' has no attribute {name!r}")
