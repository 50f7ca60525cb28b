"""LoRA adapters into one, in KnOTS' basis (Stoica et al. 2025), by TIES.

    merging merge --config configs/merge/knots.py \\
        --config.experts=ADAPTER1,ADAPTER2 --config.output=ADAPTER

[ΔW₁ … ΔW_K] = U Σ [V₁ᵀ … V_Kᵀ]; the method merges the Σ Vᵢᵀ. As its authors have it for
Llama 3 8B, TIES trims nothing and λ is 0.5. The output has the ranks' sum as its rank.
"""

import ties
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ties.get_config()
    config.space = "knots"
    config.method = ConfigDict(dict(name="ties", density=1.0, scale=0.5, weights=None))
    return config
