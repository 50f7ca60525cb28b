"""A weight for each expert, searched on T0's validation splits.

    merging search --config configs/search/t0.py --config.suite.data_dir=data \\
        --config.base=BASE --config.experts=EXPERT1,EXPERT2 --workdir found
"""

import weights
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = weights.get_config()
    config.suite = ConfigDict(
        dict(
            name="t0",
            data_dir="",  # of `merging tasks prepare`
            only=(),  # datasets; others need not be there
            chat=False,
        )
    )
    config.count = 64
    config.test_count = 1000
    return config
