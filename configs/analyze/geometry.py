"""The geometry of task vectors: cosines, norms, signs, supports, ranks; one pass.

    merging analyze --config analyze/geometry --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.merged=MERGED --workdir geometry

Any checkpoints that `merging merge` takes. Cost: the models are read once, and once
more for each density; resumable, on any number of processes. Result: analysis.json,
with a row for each number, of the model, each layer and each kind of matrix; figures.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.analysis = "geometry"
    config.base = ""  # folder of θ₀, from which task vectors are differences
    config.experts = ()  # folders, or NAME=FOLDER; their order is that of K = 1, 2, …
    config.merged = ()  # merged models to describe beside them, likewise
    config.densities = (0.2,)  # of global trims whose kept supports are compared
    config.spectral_rank = 0  # of the singular subspaces that are compared; 0: none
    config.only = ""  # a regular expression: leaves whose path it is found in
    config.memory_budget = "1GB"
    return config
