"""What goes into training and what comes out, checked before any work."""

import dataclasses

import numpy as np

from merging.models import Params
from merging.models.config import DTYPES
from merging.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """How to train: AdamW under linear warm-up and cosine decay, with clipping.

    Attributes:
      steps: optimizer steps, all told.
      batch_size: sequences a step.
      learning_rate: at the end of the warm-up.
      warmup_steps: steps of linear growth to the full rate.
      final_learning_rate_fraction: share of the full rate that the cosine ends at.
      b1: decay of AdamW's first moment.
      b2: decay of its second moment.
      weight_decay: decoupled (arXiv 1711.05101); of matrices, not of norms or biases.
      clip_norm: bound of the gradient's global norm.
      dtype: of the forward and backward pass; parameters keep their own.
      checkpoint_every: steps between checkpoints; 0 for none.
      log_every: steps between reports; also the steps of one jitted call.
      seed: of the order of the examples.
      validate_every: steps between validations; 0 for none.
      patience: validations without improvement before stopping; 0 for never.

    Raises:
      UserError: naming every impossible value.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_learning_rate_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    dtype: str = "float32"
    checkpoint_every: int = 0
    log_every: int = 50
    seed: int = 0
    validate_every: int = 0
    patience: int = 0

    def __post_init__(self):
        bounds = {"steps": 1, "batch_size": 1, "log_every": 1, "seed": 0}
        bounds |= dict.fromkeys(
            ("warmup_steps", "checkpoint_every", "validate_every", "patience"), 0
        )
        faults = [
            f"{name} = {getattr(self, name)} must be at least {least}"
            for name, least in bounds.items()
            if getattr(self, name) < least
        ]
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < np.inf:
                faults.append(f"{name} = {getattr(self, name)} must be positive")
        if not 0 <= self.final_learning_rate_fraction <= 1:
            fraction = self.final_learning_rate_fraction
            faults.append(f"final_learning_rate_fraction = {fraction} is not in [0, 1]")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                faults.append(f"{name} = {getattr(self, name)} is not in [0, 1)")
        if not 0 <= self.weight_decay < np.inf:
            faults.append(f"weight_decay = {self.weight_decay} must not be negative")
        if self.dtype not in DTYPES:
            faults.append(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.patience and not self.validate_every:
            faults.append("patience needs validate_every")
        if faults:
            raise UserError("impossible hyperparameters: " + "; ".join(faults) + ".")


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training returns.

    Attributes:
      params: the last parameters.
      best: those of the lowest validation loss; the last ones without validation.
      losses: float32 [steps], the training loss of each step.
      steps: optimizer steps taken.
      stopped_early: the validation loss had stopped improving.
      best_step: steps behind the lowest validation loss; ``steps`` without one.
      validation_losses: ``{step: loss}``.
    """

    params: Params
    best: Params
    losses: np.ndarray
    steps: int
    stopped_early: bool
    best_step: int
    validation_losses: dict[int, float]


class TrainingDiverged(UserError):
    """The loss or the parameters became NaN or infinite.

    Attributes:
      step: the first step at which they were.
      checkpoint: path of the last good checkpoint, or None.
    """

    def __init__(self, step: int, what: str, checkpoint: object):
        super().__init__(step, what, checkpoint)
        self.step, self.what, self.checkpoint = step, what, checkpoint

    def __str__(self) -> str:
        last = self.checkpoint or "there is none"
        return (
            f"training diverged at step {self.step}: {self.what}. Last good "
            f"checkpoint: {last}. Try a lower learning rate or more warm-up steps."
        )
