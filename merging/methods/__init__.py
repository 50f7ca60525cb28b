"""Merge methods: pure mathematics on blocks of weights.

`get`, `names`, `catalogue` and `register` are the registry; each preset is a function,
too. A method is composed of task-vector transforms (`trim`, `drop`, `rescale`) and a
combiner (`elect_sign`, `combiners.mean`, `combiners.sum`, or `combiner` of your own).
"""

# First, as methods are listed in the order in which they are registered.
from merging.methods.presets import (
    average,
    dare,
    dare_ties,
    model_stock,
    rht,
    task_arithmetic,
    ties,
)

# isort: split
from merging.methods import combiners, reductions
from merging.methods.combiners import combiner, elect_sign
from merging.methods.data_driven import fisher, regmean
from merging.methods.masks import consensus_ta, emr
from merging.methods.method import (
    GRANULARITIES,
    Method,
    compose,
    count_kept,
    magnitude_keys,
    merge_block,
    task_vectors,
    transform_block,
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
from merging.methods.spectral import iso_c, iso_cts, tsv_m, wudi
from merging.methods.statistics import FISHER, GRAM, Matrices, Statistics
from merging.methods.transforms import Transform, drop, rescale, trim

__all__ = [
    "FISHER",
    "GRAM",
    "GRANULARITIES",
    "CountQuery",
    "Entry",
    "Layout",
    "Matrices",
    "Method",
    "Statistics",
    "Sums",
    "Threshold",
    "Transform",
    "Votes",
    "average",
    "catalogue",
    "combiner",
    "combiners",
    "compose",
    "consensus_ta",
    "count_kept",
    "dare",
    "dare_ties",
    "drop",
    "elect_sign",
    "emr",
    "fisher",
    "get",
    "iso_c",
    "iso_cts",
    "load_file",
    "magnitude_keys",
    "merge_block",
    "model_stock",
    "names",
    "reductions",
    "register",
    "regmean",
    "rescale",
    "rht",
    "run_weights",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "transform_block",
    "trim",
    "tsv_m",
    "wudi",
]
