"""WUDI: descend to the vector that disturbs each task least (Cheng et al. 2025).

    merging merge --config configs/merge/wudi.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs (arXiv 2503.08099); 300 products of each matrix with one of its
inputs' size squared, the most expensive method here, and one matrix of each model in
memory, whatever the budget. No data are needed.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(
        dict(name="wudi", scale=1.0, steps=300, learning_rate=1e-5)
    )
    return config
