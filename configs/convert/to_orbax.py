"""A checkpoint of a known family as Orbax: the decoder's leaves, layers stacked.

    merging convert --config configs/convert/to_orbax.py \\
        --config.input=MODEL --config.output=MODEL_ORBAX

The input is a folder as transformers saves it, with its config.json; that and the
tokenizer files are kept. Cost: about the time to copy it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.input = ""  # folder of the model
    config.output = ""  # the folder to make
    config.format = "orbax"
    config.memory_budget = "1GB"
    config.shard_size = "5GB"  # of a safetensors file
    config.auxiliary_files = ""  # whose config.json and tokenizer to take; the input's
    return config
