"""Task arithmetic: θ = θ₀ + λ Σ wᵢΔᵢ (Ilharco et al. 2023).

    merging merge --config configs/merge/task_arithmetic.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

One pass over the inputs. λ (scale) is the papers' 0.4; validate it.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(name="task_arithmetic", scale=0.4, weights=None))
    return config
