"""TIES with its density, λ and a weight for each expert searched on validation.

    merging search --config configs/search/ties.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --workdir found
"""

import weights
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = weights.get_config()
    config.method = ConfigDict(dict(name="ties", density=0.2, scale=1.0))
    config.space = ConfigDict(
        dict(density=(0.05, 0.9), scale=(0.2, 3.0), weights=(0.05, 1.0))
    )
    return config
