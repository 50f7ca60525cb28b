"""Merge methods: pure mathematics on blocks of weights.

`get`, `names` and `catalogue` are the registry; each preset is also a function.
"""

from merging.methods.combiners import elect_sign
from merging.methods.method import (
    Method,
    compose,
    count_kept,
    count_votes,
    magnitude_keys,
    merge_block,
    task_vectors,
    transform_block,
)
from merging.methods.presets import (
    Entry,
    average,
    catalogue,
    dare,
    dare_ties,
    get,
    names,
    rht,
    task_arithmetic,
    ties,
)
from merging.methods.statistics import Ballot, Kept, Layout
from merging.methods.transforms import Transform, drop, rescale, trim

__all__ = [
    "Ballot",
    "Entry",
    "Kept",
    "Layout",
    "Method",
    "Transform",
    "average",
    "catalogue",
    "compose",
    "count_kept",
    "count_votes",
    "dare",
    "dare_ties",
    "drop",
    "elect_sign",
    "get",
    "magnitude_keys",
    "merge_block",
    "names",
    "rescale",
    "rht",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "transform_block",
    "trim",
]
