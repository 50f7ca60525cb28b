"""The whole pipeline in a minute, to see that it runs; its numbers mean nothing.

merging sweep --config configs/scaling_curves/smoke.py --workdir smoke
"""

import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.data.train_examples = 256
    config.data.validation_examples = 16
    config.data.test_examples = 32
    config.data.documents = 512
    config.data.instructions = 512
    config.sizes = ("1x",)
    config.experts_merged = (2, 8)
    config.pretraining.steps = 50
    config.instruction.steps = 50
    config.expert.steps = 20
    config.multitask.steps = 50
    config.multitask.validate_every = 25
    config.scales.task_arithmetic = (0.2, 0.5)
    config.scales.ties = (0.5, 1.0)
    config.scales.dare_ties = (0.2, 0.5)
    config.scales.rht = (0.5, 1.0)
    config.densities.ties = (0.2,)
    config.densities.dare_ties = (0.2,)
    config.densities.rht = (0.7,)
    return config
