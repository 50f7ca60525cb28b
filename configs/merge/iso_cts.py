"""Iso-CTS: Iso-C over the common directions and each task's own (Marczak et al. 2025).

    merging merge --config configs/merge/iso_cts.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs (arXiv 2502.04959), K + 3 decompositions for each matrix, and
one matrix of each model in memory, whatever the budget.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(
        dict(name="iso_cts", common=0.8, scale=1.0, weights=None)
    )
    return config
