"""Iso-C: every singular value of the summed task vectors becomes their mean.

    merging merge --config configs/merge/iso_c.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs (Marczak et al. 2025); each matrix is decomposed whole, which
takes most of the time, and one matrix of each model is in memory, whatever the budget.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="iso_c", scale=1.0, weights=None))
    return config
