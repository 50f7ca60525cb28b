"""The one merge engine: a method on models, in memory or streamed from storage.

The room is named as what it does, so it can be called: `merging.merge(base, experts,
method)` is `merging.merge.merge`.
"""

from merging.merge.manifest import verify
from merging.merge.memory import merge, merge_scales
from merging.merge.streamed import merge_checkpoints, merge_yaml
from merging.runtime.naming import callable_as

__all__ = ["merge", "merge_checkpoints", "merge_scales", "merge_yaml", "verify"]

callable_as(__name__, merge)
