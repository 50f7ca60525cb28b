"""RegMean: each linear map's outputs nearest to every expert's (Jin et al. 2023).

    merging merge --config configs/merge/regmean.py \\
        --config.experts=a=EXPERT1,b=EXPERT2 \\
        --config.statistics=a=STATISTICS1,b=STATISTICS2 --config.output=MERGED

One pass over models and statistics, which `merging collect` gathers of each expert; a
system of equations for each matrix, and one matrix of each model and of its statistics
in memory, whatever the budget.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="regmean", off_diagonal=0.9, weights=None))
    return config
