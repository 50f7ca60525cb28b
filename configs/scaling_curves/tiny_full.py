"""The full grid: four sizes, two bases, five methods, K 2/4/6/8, three runs.

    merging sweep --config configs/scaling_curves/tiny_full.py --workdir full

480 merges and their baselines. Each of the three runs trains experts of its own and
merges other subsets. Cost: an estimated 60 to 90 minutes of two idle cores; it has not
been run to its end. Split it over machines with --shard i/n.
"""

import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.sizes = ("1x", "8x", "24x", "64x")
    config.experts_merged = (2, 4, 6, 8)
    config.seeds = 3
    return config
