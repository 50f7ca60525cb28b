"""Every method of ours that needs no data but the models: which are worth it?

    merging sweep --config scaling_curves/methods --workdir methods

An IT base of 301,000 parameters, eight experts in each of three runs, K = 2, 4, 8; a
method of two models merges K = 2 alone. λ, where a method has one, is chosen on
validation for every merge: from the grid where `tiny.py` has one, of all others from
multiples of their default. Other numbers are the methods' own defaults.
"""

import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.sizes = ("24x",)
    config.bases = ("it",)
    config.seeds = 3
    # All but mergekit's own, those of one expert, and those that want statistics.
    config.methods = (
        *("average", "task_arithmetic", "ties", "dare", "dare_ties", "rht"),
        *("model_stock", "multislerp", "karcher", "breadcrumbs", "breadcrumbs_ties"),
        *("della", "della_linear", "sce", "ram", "ramplus_tl", "consensus_ta", "emr"),
        *("iso_c", "iso_cts", "tsv_m", "wudi"),
        *("slerp", "nuslerp"),
    )
    config.scale_multiples = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    return config
