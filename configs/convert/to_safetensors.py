"""An Orbax checkpoint of a known family as safetensors, as transformers reads them.

    merging convert --config configs/convert/to_safetensors.py \\
        --config.input=MODEL_ORBAX --config.output=MODEL

The tensors have the names, shapes and bytes that the family's own checkpoint has.
"""

import to_orbax
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = to_orbax.get_config()
    config.format = "safetensors"
    return config
