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
    rht,
    task_arithmetic,
    ties,
)

# isort: split
from merging.methods import combiners, mergekit, reductions
from merging.methods.combiners import Selection, combiner, elect_sign
from merging.methods.consensus import ram, ramplus_tl, sce
from merging.methods.data_driven import fisher, regmean
from merging.methods.masks import consensus_ta, emr
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
from merging.methods.pairs import arcee_fusion, nearswap, passthrough
from merging.methods.reductions import CountQuery, Layout, Sums, Threshold, Votes
from merging.methods.registry import (
    Entry,
    catalogue,
    get,
    load_file,
    names,
    parameters,
    register,
)
from merging.methods.schedules import run_weights
from merging.methods.sparse import breadcrumbs, breadcrumbs_ties, della, della_linear
from merging.methods.sparsification import band, magprune, match_norm
from merging.methods.spectral import iso_c, iso_cts, tsv_m, wudi
from merging.methods.spherical import karcher, multislerp, nuslerp, slerp
from merging.methods.statistics import FISHER, GRAM, Matrices, Statistics
from merging.methods.stock import model_stock
from merging.methods.transforms import OnHost, Transform, drop, rescale, trim

__all__ = [
    "FISHER",
    "GRAM",
    "CountQuery",
    "Entry",
    "GRANULARITIES",
    "Layout",
    "Matrices",
    "Method",
    "OnHost",
    "Selection",
    "Statistics",
    "Sums",
    "Threshold",
    "Transform",
    "Votes",
    "alone",
    "arcee_fusion",
    "average",
    "band",
    "breadcrumbs",
    "breadcrumbs_ties",
    "catalogue",
    "combiner",
    "combiners",
    "compose",
    "consensus_ta",
    "count_kept",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "drop",
    "elect_sign",
    "emr",
    "fisher",
    "get",
    "iso_c",
    "karcher",
    "iso_cts",
    "load_file",
    "magnitude_keys",
    "magprune",
    "match_norm",
    "mergekit",
    "merge_block",
    "model_stock",
    "multislerp",
    "names",
    "nearswap",
    "nuslerp",
    "parameters",
    "passthrough",
    "ram",
    "ramplus_tl",
    "reductions",
    "register",
    "regmean",
    "rescale",
    "rht",
    "run_weights",
    "sce",
    "slerp",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "transform_block",
    "trim",
    "tsv_m",
    "wudi",
]
