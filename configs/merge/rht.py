"""RHT: the largest entries of each tensor, rescaled, then elected (Wang et al. 2025).

    merging merge --config configs/merge/rht.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs, and one more over tensors larger than the memory budget.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="rht", density=0.7, scale=1.0, weights=None))
    return config
