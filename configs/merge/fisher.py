"""Fisher merging: each weight's mean, by how much each model minds it (Matena 2022).

    merging merge --config configs/merge/fisher.py \\
        --config.experts=a=EXPERT1,b=EXPERT2 \\
        --config.statistics=a=STATISTICS1,b=STATISTICS2 --config.output=MERGED

One pass over models and statistics, which `merging collect` gathers of each expert.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="fisher", floor=0.0, weights=None))
    return config
