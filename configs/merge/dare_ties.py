"""DARE's random drop, then TIES' sign election and disjoint mean.

    merging merge --config configs/merge/dare_ties.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs. Masks depend on seed, expert name, leaf and element only.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(
        dict(name="dare_ties", density=0.1, scale=1.0, weights=None)
    )
    return config
