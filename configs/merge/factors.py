"""LoRA adapters into one, A with A and B with B, by RHT as its authors do (2505.21226).

    merging merge --config configs/merge/factors.py \\
        --config.experts=ADAPTER1,ADAPTER2 --config.output=ADAPTER

All adapters are of one shape and scaling, and so is the output. This is no merge of
what the adapters add: the product of two means is not the mean of the products. For
that, merge them on their base (merge/rht) or in merge/core_space.
"""

import rht
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = rht.get_config()
    config.space = "factors"
    return config
