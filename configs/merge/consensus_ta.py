"""Consensus task arithmetic: what only one task holds on to is left out (Wang 2024).

    merging merge --config configs/merge/consensus_ta.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs (TALL masks, arXiv 2405.07813). Validate scale and mask_scale.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(
        dict(name="consensus_ta", scale=0.4, mask_scale=0.4, agree=2, weights=None)
    )
    return config
