"""DARE: drop task-vector entries at random, rescale, add (Yu et al. 2024).

    merging merge --config configs/merge/dare.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs. Masks depend on seed, expert name, leaf and element only.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="dare", density=0.1, scale=0.4, weights=None))
    return config
