"""A LoRA adapter of what a model adds to its base: the best one of a rank.

    merging extract --config configs/extract/lora.py --config.base=BASE \\
        --config.model=MODEL --config.output=ADAPTER

Every matrix of the layers becomes its truncated SVD, in float32; the error of each is
printed and kept (extraction.json). PEFT loads the output. Cost: a decomposition of each
matrix, and the memory of two matrices and one decomposition.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = ""  # folder of the base, as transformers saves it
    config.model = ""  # folder of the model that was made from it
    config.output = ""  # the folder to make
    config.rank = 16  # of each matrix, the most; 0 sets no limit
    config.energy = 0.0  # share of Σσ² to keep, in (0, 1); 0 takes the rank
    config.leaves = ""  # regular expression of the matrices; all of the layers
    config.whole = ""  # of leaves to store as the model has them (modules_to_save)
    config.dtype = "float32"  # of the factors
    return config
