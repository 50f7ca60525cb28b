"""TSV-M: each task's top 1/K singular directions, made orthonormal (Gargiulo et al.).

    merging merge --config configs/merge/tsv_m.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs (arXiv 2412.00081); each matrix of each expert is decomposed
whole, which takes nearly all of the time, and one matrix of each model is in memory,
whatever the budget.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="tsv_m", scale=1.0, weights=None))
    return config
