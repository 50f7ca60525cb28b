"""Open families on the one decoder: their configs, and their tensors' names.

A family is one page; another one is another page and a name in `registry`.
"""

from merging.models.hf.family import Family, Leaf, fitted, leaves
from merging.models.hf.layout import gather, row_size, scatter
from merging.models.hf.loading import (
    CONFIG,
    Model,
    auxiliary_files,
    files_of_trained,
    identity,
    load,
    open_gguf_model,
    open_model,
    read,
    read_leaf,
    with_weights_of,
)
from merging.models.hf.own import describe
from merging.models.hf.registry import FAMILIES, read_config

__all__ = [
    "CONFIG",
    "FAMILIES",
    "Family",
    "Leaf",
    "Model",
    "auxiliary_files",
    "describe",
    "files_of_trained",
    "fitted",
    "gather",
    "identity",
    "leaves",
    "load",
    "open_gguf_model",
    "open_model",
    "read",
    "read_leaf",
    "read_config",
    "row_size",
    "scatter",
    "with_weights_of",
]
