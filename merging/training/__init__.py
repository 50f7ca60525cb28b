"""Pretrain, instruction-tune, fine-tune an expert, train a multitask model.

They differ by their examples and recipe only. The batch of a step is a pure function
of (seed, step), and every number in which two runs of one model may differ is traced:
a resumed run repeats the lost steps to the bit, and a new learning rate does not
recompile.
"""

from merging.training.batches import Examples, Source
from merging.training.loop import train
from merging.training.progress import Progress
from merging.training.recipe import Recipe, Trained, TrainingDiverged
from merging.training.steps import loss

__all__ = [
    "Examples",
    "Progress",
    "Recipe",
    "Source",
    "Trained",
    "TrainingDiverged",
    "loss",
    "train",
]
