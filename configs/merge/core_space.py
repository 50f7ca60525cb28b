"""LoRA adapters into one, in Core Space (Panariello et al. 2025).

    merging merge --config configs/merge/core_space.py \\
        --config.experts=ADAPTER1,ADAPTER2 --config.output=ADAPTER

ΔW = U M Vᵀ with U and V shared by all adapters; the method merges the M's, which are
as large as the ranks together, whatever the model's width. Any method that needs no
other statistics goes with it, such as --config.method.name=ties. The output has the
ranks' sum as its rank; a sum of M's loses nothing.
"""

import task_arithmetic
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = task_arithmetic.get_config()
    config.space = "core_space"
    return config
