"""The full grid: four sizes, two bases, five methods, K 2/4/6/8, three runs.

    merging sweep --config configs/scaling_curves/tiny_full.py --workdir full

480 merges and their baselines. Each of the three runs trains experts of its own and
merges other subsets. Cost: 42 minutes of two cores (Intel Xeon). Split it over machines
with --shard i/n. Expect: larger models merge better, in every comparison of 64x with 1x
(docs/results/tiny).
"""

import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.sizes = ("1x", "8x", "24x", "64x")
    config.experts_merged = (2, 4, 6, 8)
    config.seeds = 3
    return config
