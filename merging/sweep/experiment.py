"""What a sweep is to do: its grid, and how models are made, merged and scored."""

import dataclasses
import itertools
import random
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from merging import methods, models, tasks
from merging.sweep import given

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
class Experiment:
    """The grid, and how its models are trained, merged and evaluated.

    Attributes:
      suite: what is learned and measured.
      family: name of the family of sizes; of given bases, whatever it is to be
        called.
      sizes: names of the family's sizes, smallest first; of given bases likewise.
      bases: "pt" (pretrained) and "it" (instruction-tuned).
      methods: names of merge methods.
      experts_merged: the values of K.
      seeds: runs with experts and subsets of their own.
      learning_rate: peak rate of pretraining for the family's smallest model.
      learning_rate_exponent: another size's rate is this power of its parameters
        (as a multiple of the smallest's) times that.
      batch_size: sequences a step, everywhere.
      expert: how experts are trained; None: all are given.
      multitask: how the multitask baselines are; None: there are none.
      pretraining, instruction: how bases are made; None if they are there.
      scales: method -> values of λ to choose from on validation.
      scale_multiples: the same for all other methods with a λ, of their default one.
      densities: method -> densities to choose from.
      pretrained_bases: {(size, base): path} of the bases that are given.
      given_experts: {(size, base, category): path} of the experts that are.
      vocab_size: tokens of the family's models; 0: as many as the suite's words.
      dtype: of activations in training and scoring.
      param_dtype: of the models that are merged and scored; "" for the family's, or a
        given base's own. Training goes on in float32.
      keep_merges: write each merged model, too.
      method_files: Python files that register methods of your own.
      runner: where steps run, "inline" or "local"; "" for what fits (see `runners`).
      workers: processes of the local runner; 0 for one per CPU core.
      logger: of trainings' losses (`runtime.loggers`).
      mesh: {axis: size} of the devices that an inline step runs on; one may be -1.
      device_memory: bytes of a device, "16GB", that models may fill; "" for what JAX
        knows of it. Experts that don't fit are read from storage as they are merged.
      resources: {name: number} that a step needs of a Ray node.
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
    expert: Phase | None
    scales: dict[str, tuple[float, ...]]
    scale_multiples: tuple[float, ...]
    densities: dict[str, tuple[float, ...]]
    multitask: Phase | None = None
    pretraining: Phase | None = None
    instruction: Phase | None = None
    pretrained_bases: Mapping[tuple[str, str], str] = field(default_factory=dict)
    given_experts: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    vocab_size: int = 0
    dtype: str = "float32"
    param_dtype: str = ""
    keep_merges: bool = False
    method_files: tuple[str, ...] = ()
    runner: str = ""
    workers: int = 0
    logger: str = "tensorboard"
    mesh: Mapping[str, int] = field(default_factory=lambda: {"data": 1})
    device_memory: str = ""
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})

    def load_methods(self) -> dict[str, str]:
        """Register the user's own methods here; return {method: its file's SHA-256}."""
        loaded = map(methods.load_file, self.method_files)
        return {name: digest for digest, names in loaded for name in names}

    def folder(self, size: str, base: str) -> str:
        """Return the given checkpoint that a base is, or is made from; "" if none."""
        found = self.pretrained_bases
        return found.get((size, base)) or found.get((size, "pt"), "")

    def decoder(self, size: str, base: str = "") -> models.DecoderConfig:
        """Return the model of a size: of one base, or of its first."""
        path = self.folder(size, base or self.bases[0])
        if path and self.family not in models.FAMILIES:
            tokenizer = self.suite.tokenizer
            return given.decoder(path, tokenizer, self.dtype, self.param_dtype)
        decoder = models.size(self.family, size, vocab_size=self.vocabulary)
        return dataclasses.replace(
            decoder,
            dtype=self.dtype,
            param_dtype=self.param_dtype or decoder.param_dtype,
            # A plan's tokenizer is a number of ids.
            bos_id=getattr(self.suite.tokenizer, "bos_id", decoder.bos_id),
        )

    @property
    def vocabulary(self) -> int:
        """Tokens of the family's models."""
        return self.vocab_size or len(self.suite.tokenizer)

    def experts(self) -> list[tuple[str, str, str]]:
        """Return the (size, base, category) of every expert that some merge takes."""
        counts = {k for method in self.methods for k in self.counts(method)}
        runs = itertools.product(range(self.seeds), counts)
        taken = {c for seed, k in runs for c in self.subset(seed, k)}
        categories = [c for c in self.suite.categories if c in taken]
        return list(itertools.product(self.sizes, self.bases, categories))

    def trains(self) -> bool:
        """Return whether anything is trained."""
        phases = (self.pretraining, self.instruction, self.multitask)
        return any(phases) or not self.given_experts.keys() >= set(self.experts())

    def peak_rate(self, size: str) -> float:
        """Return a size's peak learning rate, of which phases take shares."""
        smallest = self.sizes[0]
        if not self.pretrained_bases:
            smallest = next(iter(models.sizes(self.family, vocab_size=self.vocabulary)))
        counts = [models.parameter_count(self.decoder(s)) for s in (size, smallest)]
        ratio = counts[0] / counts[1]
        return self.learning_rate * ratio**self.learning_rate_exponent

    def subset(self, seed: int, count: int) -> tuple[str, ...]:
        """Return the `count` categories whose experts are merged in run `seed`.

        The same for every size, base and method, so that those are compared on equal
        experts; a larger subset of a seed contains its smaller ones, so that a curve
        over K shows experts being added.
        """
        chosen = self.order(seed)[:count]
        return tuple(c for c in self.suite.categories if c in chosen)

    def order(self, seed: int) -> tuple[str, ...]:
        """Return the categories in the order in which run `seed` adds their experts."""
        order = list(self.suite.categories)
        random.Random(f"subset/{self.suite.name}/{seed}").shuffle(order)
        return tuple(order)

    def counts(self, method: str) -> tuple[int, ...]:
        """Return the values of K that a method merges: those of two, 2 alone."""
        takes = methods.get(method, **self.candidates(method)[0]).takes
        return tuple(k for k in self.experts_merged if takes in (None, k))

    def defaults(self, method: str) -> dict[str, Any]:
        """Return a method's parameters where no candidate says otherwise."""
        return methods.parameters(method)

    def candidates(self, method: str) -> list[dict[str, float]]:
        """Return the parameters of a method to choose from on validation."""
        scales = self.scales.get(method, ())
        usual = self.defaults(method).get("scale")
        if not scales and usual is not None:
            # Of 0.1 × 3, 0.3 is meant.
            scales = tuple(float(f"{usual * m:.12g}") for m in self.scale_multiples)
        grid = [{}]
        for name, values in (
            ("density", self.densities.get(method, ())),
            ("scale", scales),
        ):
            if values:
                grid = [{**point, name: value} for point in grid for value in values]
        return grid
