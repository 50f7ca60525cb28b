"""Merge as a mergekit YAML says, under the rules of mergekit 0.1.5.

    merging merge --config FILE.yml --config.output=MERGED

The file names the models (folders), one of mergekit's twenty methods and the dtypes;
models or slices; weights, densities and the rest as numbers, gradients and filters.
What is not followed is refused by name. Cost: one pass over tensors that fit into a
block, and as many as `merging methods` says over larger ones.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.merge_yaml = ""  # the file
    config.output = ""  # the folder to make
    config.seed = 0  # of DARE's masks
    config.memory_budget = "1GB"
    config.format = ""  # safetensors or orbax; the base's
    config.shard_size = "5GB"
    config.auxiliary_files = ""  # whose tokenizer and config to copy; the base's
    return config
