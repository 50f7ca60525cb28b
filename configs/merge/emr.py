"""EMR's unified vector: the elected sign, its largest magnitude (Huang et al. 2024).

    merging merge --config configs/merge/emr.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs (arXiv 2405.17461).
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="emr", scale=1.0))
    return config
