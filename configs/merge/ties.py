"""TIES-Merging (Yadav et al. 2023): trim over the whole model, elect, disjoint mean.

    merging merge --config configs/merge/ties.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

The trim's threshold is exact over the whole model: two passes over the inputs, or
one where a sample of them leaves no doubt, as it often does of 16-bit models.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="ties", density=0.2, scale=1.0, weights=None))
    return config
