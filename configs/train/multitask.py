"""A base trained on all held-in categories of the miniworld, keeping its best step.

merging train --config configs/train/multitask.py \\
    --config.start=base/checkpoint --workdir multitask
"""

import pretrain
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = pretrain.get_config()
    config.what = "multitask"
    config.hyperparameters.steps = 2400
    config.hyperparameters.learning_rate *= 0.5
    config.hyperparameters.warmup_steps = 120
    config.hyperparameters.validate_every = 150
    return config
