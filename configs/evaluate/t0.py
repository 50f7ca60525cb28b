"""A checkpoint on T0's datasets, under every prompt of ours, in its own tokens.

    merging tasks prepare --suite t0 --data_dir DATA
    merging evaluate --config configs/evaluate/t0.py \\
        --config.checkpoint=MODEL --config.suite.data_dir=DATA --workdir scores

The data are fetched once, by the first command. `datasets` names those to evaluate, if
not all 23; `suite.chat` wraps prompts in an instruct model's template.
"""

import miniworld
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = miniworld.get_config()
    config.suite = ConfigDict(dict(name="t0", data_dir="", only=(), chat=False))
    config.count = 1000  # examples of each dataset, at most
    config.samples = False  # of long prompts, three templates each
    return config
