"""One size beyond the full grid, 256x (3.2M parameters): does what size gives go on?

    merging sweep --config scaling_curves/tiny_larger --workdir larger

One run, four methods, K 2/4/8, no multitask model; `--config.sizes=1024x` for 12.8M.
Same tokens and recipe as `tiny_full`.
"""

import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.sizes = ("256x",)
    config.methods = ("average", "task_arithmetic", "ties", "rht")
    config.experts_merged = (2, 4, 8)
    config.multitask = None
    return config
