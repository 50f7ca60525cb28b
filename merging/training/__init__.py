"""Pretrain, instruction-tune, fine-tune an expert, train a multitask model.

They differ by their examples and hyperparameters only. The batch of a step is a pure
function of (seed, step), and every number in which two runs of one model may differ is
traced: a resumed run repeats the lost steps to the bit, and a new learning rate does
not recompile.
"""

from merging.training.batches import Examples, Source
from merging.training.hyperparameters import Hyperparameters, Trained, TrainingDiverged
from merging.training.loop import train
from merging.training.run_state import RunState
from merging.training.steps import loss

__all__ = [
    "Examples",
    "RunState",
    "Hyperparameters",
    "Source",
    "Trained",
    "TrainingDiverged",
    "loss",
    "train",
]
