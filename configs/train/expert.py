"""A base fine-tuned on one held-in category of the miniworld, such as sentiment.

merging train --config configs/train/expert.py:sentiment \\
    --config.start=base/checkpoint --workdir sentiment
"""

import pretrain
from ml_collections import ConfigDict


def get_config(category: str) -> ConfigDict:
    config = pretrain.get_config()
    config.what = category
    config.hyperparameters.steps = 300
    config.hyperparameters.learning_rate *= 0.4
    config.hyperparameters.warmup_steps = 15
    config.hyperparameters.checkpoint_every = 100
    return config
