"""A base tuned on the miniworld's instructions.

merging train --config configs/train/instruct.py \\
    --config.start=base/checkpoint --workdir instructed
"""

import pretrain
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = pretrain.get_config()
    config.what = "instruct"
    config.hyperparameters.steps = 2500
    config.hyperparameters.learning_rate *= 0.5
    config.hyperparameters.warmup_steps = 125
    return config
