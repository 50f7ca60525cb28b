"""What a sweep is to do: the config, checked whole before any work."""

import dataclasses
import random
from typing import Any

from merging import methods, models, tasks
from merging.errors import UserError, nearest

BASES = ("pt", "it")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of training.

    Attributes:
      steps: optimizer steps, for every size.
      rate: learning rate as a share of the size's pretraining rate.
      validate_every: steps between validations, the best of which is kept; 0: none.
    """

    steps: int
    rate: float = 1.0
    validate_every: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """The grid, and how its models are trained, merged and evaluated.

    Attributes:
      suite: what is learned and measured.
      ladder: name of the family of sizes.
      sizes: names of the ladder's sizes, smallest first.
      bases: "pt" (pretrained) and "it" (instruction-tuned).
      methods: names of merge methods.
      experts_merged: the values of K.
      seeds: runs with experts and subsets of their own.
      learning_rate: peak rate of pretraining for the ladder's smallest model.
      learning_rate_exponent: another size's rate is this power of its parameters
        (as a multiple of the smallest's) times that.
      batch_size: sequences a step, everywhere.
      pretraining, instruction, expert, multitask: the trainings.
      scales: method -> values of λ to choose from on validation.
      densities: method -> densities to choose from.
      workers: processes; 0 for one per CPU core, or one where there is an accelerator.
    """

    suite: tasks.Suite
    ladder: str
    sizes: tuple[str, ...]
    bases: tuple[str, ...]
    methods: tuple[str, ...]
    experts_merged: tuple[int, ...]
    seeds: int
    learning_rate: float
    learning_rate_exponent: float
    batch_size: int
    pretraining: Phase
    instruction: Phase
    expert: Phase
    multitask: Phase
    scales: dict[str, tuple[float, ...]]
    densities: dict[str, tuple[float, ...]]
    workers: int = 0

    def decoder(self, size: str) -> models.DecoderConfig:
        """Return the model of a size."""
        return models.size(self.ladder, size, vocab_size=len(self.suite.tokenizer))

    def peak_rate(self, size: str) -> float:
        """Return a size's peak learning rate in pretraining."""
        sizes = models.ladder(self.ladder, vocab_size=len(self.suite.tokenizer))
        smallest = models.parameter_count(next(iter(sizes.values())))
        ratio = models.parameter_count(sizes[size]) / smallest
        return self.learning_rate * ratio**self.learning_rate_exponent

    def subset(self, seed: int, count: int) -> tuple[str, ...]:
        """Return the `count` categories whose experts are merged in run `seed`.

        The same for every size, base and method, so that those are compared on equal
        experts; a larger subset of a seed contains its smaller ones, so that a curve
        over K shows experts being added.
        """
        order = list(self.suite.categories)
        random.Random(f"subset/{self.suite.name}/{seed}").shuffle(order)
        return tuple(c for c in self.suite.categories if c in order[:count])

    def candidates(self, method: str) -> list[dict[str, float]]:
        """Return the parameters of a method to choose from on validation."""
        grid = [{}]
        for name, values in (
            ("density", self.densities.get(method, ())),
            ("scale", self.scales.get(method, ())),
        ):
            if values:
                grid = [{**point, name: value} for point in grid for value in values]
        return grid


def read(config: Any) -> Settings:
    """Return the settings of a config (see configs/scaling_curves/tiny.py).

    Raises:
      UserError: an unknown name (with the nearest valid ones), a K that the suite has
        not enough experts for, a number that cannot be.
    """
    values = config.to_dict()
    suite = tasks.suite(values.pop("suite"), **values.pop("data"))
    for phase in ("pretraining", "instruction", "expert", "multitask"):
        values[phase] = Phase(**values[phase])
    settings = Settings(suite=suite, **values)
    _check_names(settings)
    _check_numbers(settings)
    return settings


def _check_names(settings: Settings) -> None:
    for size in settings.sizes:
        settings.decoder(size)
    for base in settings.bases:
        if base not in BASES:
            raise nearest("base", base, BASES)
    for method in (*settings.methods, *settings.scales, *settings.densities):
        if method not in methods.names():
            raise nearest("method", method, methods.names())
    for method in settings.methods:
        for parameters in settings.candidates(method):
            methods.get(method, **parameters)


def _check_numbers(settings: Settings) -> None:
    faults = []
    for name in ("sizes", "bases", "methods", "experts_merged"):
        chosen = getattr(settings, name)
        if not chosen:
            faults.append(f"{name} is empty; name at least one")
        if len(set(chosen)) < len(chosen):
            faults.append(f"{name} = {chosen} names one twice")
    have = len(settings.suite.categories)
    for count in settings.experts_merged:
        if not 2 <= count <= have:
            faults.append(
                f"experts_merged holds {count}: a merge takes 2 to {have} experts, "
                f"one per held-in category of suite {settings.suite.name!r}"
            )
    for name in ("seeds", "batch_size", "learning_rate"):
        if getattr(settings, name) <= 0:
            faults.append(f"{name} = {getattr(settings, name)} must be positive")
    if settings.workers < 0:
        faults.append(f"workers = {settings.workers} must be 0 (automatic) or more")
    for name in ("pretraining", "instruction", "expert", "multitask"):
        phase = getattr(settings, name)
        if phase.steps < 1 or not 0 < phase.rate < 1e6 or phase.validate_every < 0:
            faults.append(
                f"{name} needs steps ≥ 1, a positive rate and validate_every ≥ 0, not "
                f"{phase}"
            )
    if faults:
        raise UserError("this sweep cannot be run:\n" + "\n".join(faults))
