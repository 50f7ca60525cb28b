"""Model Stock (Jang et al. 2024): the mean, drawn towards the base by the angles.

    merging merge --config configs/merge/model_stock.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs, and one more over tensors larger than the memory budget.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="model_stock", scale=1.0))
    return config
