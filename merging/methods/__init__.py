"""Merge methods: pure mathematics on blocks of weights.

`get`, `names`, `catalogue` and `register` are the registry; each preset is a function,
too. A method is composed of task-vector transforms (`trim`, `drop`, `rescale`) and a
combiner (`elect_sign`, `combiners.mean`, `combiners.sum`, or `combiner` of your own).
"""

from merging.methods import combiners, reductions
from merging.methods.combiners import Selection, combiner, elect_sign
from merging.methods.method import (
    GRANULARITIES,
    Method,
    alone,
    compose,
    count_kept,
    magnitude_keys,
    merge_block,
    task_vectors,
    transform_block,
)
from merging.methods.presets import (
    average,
    dare,
    dare_ties,
    iso_c,
    model_stock,
    rht,
    task_arithmetic,
    ties,
)
from merging.methods.reductions import CountQuery, Layout, Sums, Threshold, Votes
from merging.methods.registry import (
    Entry,
    catalogue,
    get,
    load_file,
    names,
    register,
)
from merging.methods.schedules import run_weights
from merging.methods.transforms import Transform, drop, rescale, trim

__all__ = [
    "GRANULARITIES",
    "CountQuery",
    "Entry",
    "Layout",
    "Method",
    "Selection",
    "Sums",
    "Threshold",
    "Transform",
    "Votes",
    "alone",
    "average",
    "catalogue",
    "combiner",
    "combiners",
    "compose",
    "count_kept",
    "dare",
    "dare_ties",
    "drop",
    "elect_sign",
    "get",
    "iso_c",
    "load_file",
    "magnitude_keys",
    "merge_block",
    "model_stock",
    "names",
    "reductions",
    "register",
    "rescale",
    "rht",
    "run_weights",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "transform_block",
    "trim",
]
