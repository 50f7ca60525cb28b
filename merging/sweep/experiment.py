"""What a sweep is to do: the config, checked whole before any work."""

import dataclasses
import random
from typing import Any

from ml_collections import ConfigDict

from merging import methods, models, tasks
from merging.models.config import DTYPES
from merging.runtime import config_keys
from merging.runtime.errors import UserError, listed, nearest
from merging.sweep import pretrained_bases

BASES = ("pt", "it")
RUNNERS = ("inline", "local")
PHASES = ("pretraining", "instruction", "expert", "multitask")


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
class Experiment:
    """The grid, and how its models are trained, merged and evaluated.

    Attributes:
      suite: what is learned and measured.
      family: name of the family of sizes; of pretrained bases, whatever it is to be
        called.
      sizes: names of the family's sizes, smallest first; of pretrained bases likewise.
      bases: "pt" (pretrained) and "it" (instruction-tuned).
      methods: names of merge methods.
      experts_merged: the values of K.
      seeds: runs with experts and subsets of their own.
      learning_rate: peak rate of pretraining for the family's smallest model.
      learning_rate_exponent: another size's rate is this power of its parameters
        (as a multiple of the smallest's) times that.
      batch_size: sequences a step, everywhere.
      expert: how experts are trained.
      multitask: how the multitask baselines are; None: there are none.
      pretraining, instruction: how bases are made; None if they are there.
      scales: method -> values of λ to choose from on validation.
      densities: method -> densities to choose from.
      pretrained_bases: folders of checkpoints that are the bases of the sizes, in
        their order; () if the sweep makes its bases.
      dtype: of activations in training and scoring.
      method_files: Python files that register methods of your own.
      runner: where steps run, "inline" or "local"; "" for what fits (see `runners`).
      workers: processes of the local runner; 0 for one per CPU core.
    """

    suite: tasks.Suite
    family: str
    sizes: tuple[str, ...]
    bases: tuple[str, ...]
    methods: tuple[str, ...]
    experts_merged: tuple[int, ...]
    seeds: int
    learning_rate: float
    learning_rate_exponent: float
    batch_size: int
    expert: Phase
    scales: dict[str, tuple[float, ...]]
    densities: dict[str, tuple[float, ...]]
    multitask: Phase | None = None
    pretraining: Phase | None = None
    instruction: Phase | None = None
    pretrained_bases: tuple[str, ...] = ()
    dtype: str = "float32"
    method_files: tuple[str, ...] = ()
    runner: str = ""
    workers: int = 0

    def load_methods(self) -> dict[str, str]:
        """Register the user's own methods here; return {method: its file's SHA-256}."""
        loaded = map(methods.load_file, self.method_files)
        return {name: digest for digest, names in loaded for name in names}

    def folder(self, size: str) -> str:
        """Return the checkpoint that is a size's base; "" if the sweep makes it."""
        folders = self.pretrained_bases
        return folders[self.sizes.index(size)] if folders else ""

    def decoder(self, size: str) -> models.DecoderConfig:
        """Return the model of a size."""
        if folder := self.folder(size):
            return pretrained_bases.decoder(folder, self.suite.tokenizer, self.dtype)
        return models.size(self.family, size, vocab_size=len(self.suite.tokenizer))

    def peak_rate(self, size: str) -> float:
        """Return a size's peak learning rate, of which phases take shares."""
        smallest = self.sizes[0]
        if not self.pretrained_bases:
            vocabulary = len(self.suite.tokenizer)
            smallest = next(iter(models.sizes(self.family, vocab_size=vocabulary)))
        counts = [models.parameter_count(self.decoder(s)) for s in (size, smallest)]
        ratio = counts[0] / counts[1]
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

    def defaults(self, method: str) -> dict[str, Any]:
        """Return a method's parameters where no candidate says otherwise."""
        return methods.parameters(method)

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


_KEYS = {
    "suite": str,
    "data": ConfigDict(),
    "family": str,
    "sizes": tuple,
    "bases": tuple,
    "methods": tuple,
    "experts_merged": tuple,
    "seeds": int,
    "learning_rate": float,
    "learning_rate_exponent": float,
    "batch_size": int,
    "expert": ConfigDict,
    "scales": ConfigDict,
    "densities": ConfigDict,
    **dict.fromkeys(("multitask", "pretraining", "instruction")),
    "pretrained_bases": (),
    "dtype": "float32",
    "method_files": (),
    "runner": "",
    "workers": 0,
}


def read(config: Any) -> Experiment:
    """Return the settings of a config (see configs/scaling_curves/tiny.py).

    Raises:
      UserError: an unknown name (with the nearest valid ones), a K that the suite has
        not enough experts for, a number that cannot be.
    """
    values = config_keys.completed(
        config, _KEYS, "merging sweep", "scaling_curves/tiny"
    ).to_dict()
    data = values.pop("data")
    if folders := values.get("pretrained_bases"):
        for folder in folders:
            pretrained_bases.require_folder(folder)
        data.setdefault("tokenizer", folders[0])
    suite = tasks.suite(values.pop("suite"), **data)
    for phase in PHASES:
        if values[phase] is not None:
            values[phase] = config_keys.section(Phase, values[phase], phase)
    experiment = Experiment(suite=suite, **values)
    experiment.load_methods()
    _check_bases(experiment)
    _check_names(experiment)
    _check_numbers(experiment)
    return experiment


def _check_bases(experiment: Experiment) -> None:
    """Refuse what does not go with pretrained bases, or without them."""
    trained = [p for p in ("pretraining", "instruction") if getattr(experiment, p)]
    if not experiment.pretrained_bases:
        if len(trained) < 2:
            raise UserError(
                "bases that are not given need both pretraining and instruction."
            )
        return
    faults = [f"{phase}: pretrained bases are not trained" for phase in trained]
    if len(experiment.pretrained_bases) != len(experiment.sizes):
        faults.append(
            f"{len(experiment.pretrained_bases)} checkpoints are given for "
            f"{len(experiment.sizes)} sizes; name one for each"
        )
    if len(experiment.bases) != 1:
        faults.append(
            f"bases = {experiment.bases}: a pretrained checkpoint is one of "
            f"{', '.join(BASES)}, so name that one"
        )
    if faults:
        raise UserError("this sweep cannot be run:\n" + "\n".join(faults))


def _check_names(experiment: Experiment) -> None:
    for size in experiment.sizes:
        experiment.decoder(size)
    if experiment.dtype not in DTYPES:
        raise nearest("dtype", experiment.dtype, DTYPES)
    for base in experiment.bases:
        if base not in BASES:
            raise nearest("base", base, BASES)
    for method in (*experiment.methods, *experiment.scales, *experiment.densities):
        if method not in methods.names():
            raise nearest("method", method, methods.names())
    for method in experiment.methods:
        for parameters in experiment.candidates(method):
            built = methods.get(method, **parameters)
            takes = built.takes
            others = [n for n in experiment.experts_merged if takes not in (None, n)]
            if others:
                raise UserError(
                    f"{method} merges {takes} experts, and experts_merged holds "
                    f"{listed(map(str, others), mark=', ')}."
                )
            if built.statistics is not None:
                raise UserError(
                    f"{method} merges by statistics, which a sweep does not gather: "
                    "use `merging collect` and `merging merge`."
                )


def _check_numbers(experiment: Experiment) -> None:
    faults = []
    for name in ("sizes", "bases", "methods", "experts_merged"):
        chosen = getattr(experiment, name)
        if not chosen:
            faults.append(f"{name} is empty; name at least one")
        if len(set(chosen)) < len(chosen):
            faults.append(f"{name} = {chosen} names one twice")
    have = len(experiment.suite.categories)
    for count in experiment.experts_merged:
        if not 2 <= count <= have:
            faults.append(
                f"experts_merged holds {count}: a merge takes 2 to {have} experts, "
                f"one per held-in category of suite {experiment.suite.name!r}"
            )
    for name in ("seeds", "batch_size", "learning_rate"):
        if getattr(experiment, name) <= 0:
            faults.append(f"{name} = {getattr(experiment, name)} must be positive")
    if experiment.runner not in ("", *RUNNERS):
        raise nearest("runner", experiment.runner, RUNNERS)
    if experiment.workers < 0:
        faults.append(f"workers = {experiment.workers} must be 0 (automatic) or more")
    for name in PHASES:
        phase = getattr(experiment, name)
        if phase is None:
            continue
        if phase.steps < 1 or not 0 < phase.rate < 1e6 or phase.validate_every < 0:
            faults.append(
                f"{name} needs steps ≥ 1, a positive rate and validate_every ≥ 0, not "
                f"{phase}"
            )
    if faults:
        raise UserError("this sweep cannot be run:\n" + "\n".join(faults))
