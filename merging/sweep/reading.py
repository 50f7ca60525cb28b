"""A sweep's config, checked whole before any work."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from merging import methods, models, tasks
from merging.models.config import DTYPES
from merging.runtime import config_keys, loggers, storage
from merging.runtime.errors import UserError, listed, nearest
from merging.sweep import given
from merging.sweep.experiment import BASES, Experiment, Phase

RUNNERS = ("inline", "local", "ray")
PHASES = ("pretraining", "instruction", "expert", "multitask")
_KEYS = {
    "suite": str,
    "data": ConfigDict(),
    "family": str,
    "sizes": (),
    "bases": tuple,
    "methods": tuple,
    "experts_merged": tuple,
    "seeds": 1,
    "learning_rate": 1e-5,
    "learning_rate_exponent": 0.0,
    "batch_size": 32,
    "scales": ConfigDict(),
    "scale_multiples": (),
    "densities": ConfigDict(),
    **dict.fromkeys(("expert", "multitask", "pretraining", "instruction")),
    "pretrained_bases": (),
    "given_experts": (),
    "vocab_size": 0,
    "dtype": "float32",
    "param_dtype": "",
    "keep_merges": False,
    "method_files": (),
    "runner": "",
    "workers": 0,
    "logger": "tensorboard",
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
    "device_memory": "",
    "resources": ("CPU=1",),
    "plan": ConfigDict(),
}
# These say which cells the grid has and what each chooses from: a sweep goes on with
# others, as a step's key has what it depends on.
GRID = ("sizes", "bases", "methods", "experts_merged", "seeds")
GRID += ("scales", "scale_multiples", "densities")
# Of these keys a sweep's results do not depend: it goes on with others.
HOW = ("workers", "logger", "runner", "mesh", "device_memory", "resources", "plan")
_DEFAULT_VOCABULARY = 32_000  # of a plan that names none


class Unread(NamedTuple):
    """A suite none of whose data is there, as far as a plan asks."""

    name: str
    datasets: tuple[Any, ...]
    tokenizer: range  # as many as the ids
    digest: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        """The held-in categories, in order of appearance."""
        held_in = (d.category for d in self.datasets if d.split == "held_in")
        return tuple(dict.fromkeys(held_in))

    def examples(self, split: str) -> None:
        """Return how many examples a dataset has: nobody knows."""


def planned(config: Any) -> Experiment:
    """Return a config's settings where neither data nor checkpoints need be there.

    Of one of our own families (`family`), that is; of others the bases have to be.

    Raises:
      UserError: as `read`.
    """
    return read(config, planned=True)


def read(config: Any, *, planned: bool = False) -> Experiment:
    """Return the settings of a config (see configs/scaling_curves/tiny.py).

    Args:
      config: a sweep's.
      planned: whether to open neither data nor the checkpoints of our own families.

    Raises:
      UserError: an unknown name (with the nearest valid ones), a K that the suite has
        not enough experts for, a number that cannot be.
    """
    values = config_keys.completed(
        config,
        _KEYS,
        "merging sweep",
        "scaling_curves/tiny",
        remote=("pretrained_bases", "given_experts"),
    ).to_dict()
    values.pop("plan")
    _name_sizes(values)
    values["pretrained_bases"] = bases = _given_bases(values)
    suite = values["suite"] = _suite(values, planned)
    kinds = {"size": values["sizes"], "base": values["bases"]}
    kinds["category"] = suite.categories
    experts = given.table(values["given_experts"], "given_experts", kinds)
    values["given_experts"] = experts
    values["experts_merged"] = values["experts_merged"] or _counts(suite)
    values["resources"] = resources(values["resources"])
    for phase in PHASES:
        if values[phase] is not None:
            values[phase] = config_keys.section(Phase, values[phase], phase)
    experiment = Experiment(**values)
    ours = experiment.family in models.FAMILIES
    learned = experiment.trains() or (not planned and _adapters(experiment))
    if bases and not (ours or experiment.param_dtype) and learned:
        # What was learned, in full.
        experiment = dataclasses.replace(experiment, param_dtype="float32")
    experiment.load_methods()
    if experiment.device_memory:
        storage.parse_size(experiment.device_memory, "device_memory")
    _check_bases(experiment)
    _check_names(experiment)
    _check_numbers(experiment)
    _check_experts(experiment, planned)
    if not planned and experiment.trains():
        loggers.require_known(experiment.logger)
    return experiment


def _adapters(experiment: Experiment) -> bool:
    """Return whether some given expert is a LoRA adapter."""
    return any(
        given.model_of(path, experiment.folder(size, base)) != path
        for (size, base, _), path in experiment.given_experts.items()
    )


def _name_sizes(values: dict[str, Any]) -> None:
    """Name the sizes, where the config does not, after the given bases' parameters."""
    if not values["sizes"]:
        values["sizes"] = tuple(map(given.size, values["pretrained_bases"]))
    if not values["sizes"]:
        raise UserError(
            "sizes is empty; name at least one, or the base to start from: "
            "--config.pretrained_bases=BASE."
        )


def _suite(values: dict[str, Any], planned: bool) -> Any:
    """Return the suite, in the tokens of the first given base; takes out its data."""
    name, data = values["suite"], values.pop("data")
    if planned and values["family"] in models.FAMILIES:
        ids = range(values["vocab_size"] or _DEFAULT_VOCABULARY)
        return Unread(name, tasks.datasets(name, **data), ids)
    for path in values["pretrained_bases"].values():
        given.require_folder(path)
        data["tokenizer"] = data.get("tokenizer") or path
    return tasks.suite(name, **data)


def _counts(suite: tasks.Suite) -> tuple[int, ...]:
    """Return the values of K where none is named: every second one, and all experts."""
    have = len(suite.categories)
    return tuple(sorted({*range(2, have + 1, 2), have}))


def resources(entries: tuple[str, ...]) -> dict[str, float]:
    """Return {name: number} of what a step needs of a Ray node, "GPU=1"."""
    found = {}
    for entry in entries:
        name, _, number = entry.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if not name or not 0 <= found[name] < math.inf:
            raise UserError(
                f"resources: {entry!r} is no NAME=NUMBER, such as CPU=4, GPU=1 or TPU=4"
                " (chips)."
            )
    return found


def _given_bases(values: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return {(size, base): path}: of named entries, or of one path for each size."""
    entries, sizes, bases = (values[k] for k in ("pretrained_bases", "sizes", "bases"))
    names = {name for entry in entries for name in entry.partition("=")[0].split("/")}
    if entries and names <= {*sizes, *bases}:
        kinds = {"size": sizes, "base": bases}
        return given.table(entries, "pretrained_bases", kinds)
    faults = []
    if entries and len(entries) != len(sizes):
        faults.append(
            f"{len(entries)} checkpoints are given for {len(sizes)} sizes; name one "
            "for each"
        )
    if entries and len(bases) != 1:
        faults.append(
            f"bases = {bases}: a pretrained checkpoint is one of {', '.join(BASES)}, so"
            " name that one; or say which each is, SIZE/BASE=PATH"
        )
    if faults:
        raise UserError("this sweep cannot be run:\n" + "\n".join(faults))
    return {(size, bases[0]): path for size, path in zip(sizes, entries, strict=False)}


def _check_bases(experiment: Experiment) -> None:
    """Refuse bases that are neither given nor made, and trainings that make none."""
    have = experiment.pretrained_bases
    every = list(itertools.product(experiment.sizes, experiment.bases))
    made = {pair for pair in every if pair not in have}
    started = {(s, "pt") for s, base in made if base == "it"} - have.keys()
    wanted = {
        "pretraining": {pair for pair in made | started if pair[1] == "pt"},
        "instruction": {pair for pair in made if pair[1] == "it"},
    }
    faults = []
    for phase, wanted_ in wanted.items():
        there = getattr(experiment, phase) is not None
        if wanted_ and not there:
            shown = ", ".join("/".join(pair) for pair in sorted(wanted_))
            faults.append(f"{shown}: bases that are not given need the section {phase}")
        if have and there and not wanted_:
            faults.append(f"{phase}: pretrained bases are not trained")
    if faults:
        raise UserError("this sweep cannot be run:\n" + "\n".join(faults))


def _check_experts(experiment: Experiment, planned: bool) -> None:
    """Refuse given experts that are no fine-tunes, and those that nobody makes."""
    missing = [e for e in experiment.experts() if e not in experiment.given_experts]
    if missing and experiment.expert is None:
        shown = listed(["/".join(of) for of in missing], mark=", ")
        raise UserError(
            f"no expert is given for {shown}: name them in given_experts, as "
            "CATEGORY=PATH, or say how to train them (the section expert)."
        )
    for (size, base, _), path in experiment.given_experts.items():
        start = experiment.folder(size, base)
        if not start:
            raise UserError(
                f"given_experts: the base {size}/{base} of {path} is not given; name it"
                " in pretrained_bases."
            )
        if not planned:
            given.require_like(path, start)


def _check_names(experiment: Experiment) -> None:
    for base in experiment.bases:
        if base not in BASES:
            raise nearest("base", base, BASES)
    for name in ("dtype", "param_dtype"):
        dtype = getattr(experiment, name)
        if dtype not in DTYPES and (dtype or name == "dtype"):
            raise nearest(name, dtype, DTYPES)
    for size, base in itertools.product(experiment.sizes, experiment.bases):
        experiment.decoder(size, base)
    if 0 < experiment.vocab_size < len(experiment.suite.tokenizer):
        raise UserError(
            f"vocab_size = {experiment.vocab_size} is less than the "
            f"{len(experiment.suite.tokenizer)} tokens of the suite's tokenizer."
        )
    for method in (*experiment.methods, *experiment.scales, *experiment.densities):
        if method not in methods.names():
            raise nearest("method", method, methods.names())
    for method in experiment.methods:
        for parameters in experiment.candidates(method):
            built = methods.get(method, **parameters)
            if not experiment.counts(method):
                held = listed(map(str, experiment.experts_merged), mark=", ")
                raise UserError(
                    f"{method} merges {built.takes} experts, and experts_merged holds "
                    f"{held}."
                )
            source = getattr(experiment.suite, "source", None)  # a plan reads none
            if built.statistics and not getattr(source, "train", True):
                raise UserError(
                    f"{method} merges by statistics of the experts' training examples, "
                    "and these files have none: give lines of them, with data.train = "
                    "true, or take another method."
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
    for multiple in experiment.scale_multiples:
        if isinstance(multiple, str) or not 0 < multiple < 1e6:
            faults.append(f"scale_multiples holds {multiple!r}, no positive number")
    if experiment.vocab_size < 0:
        faults.append(f"vocab_size = {experiment.vocab_size} must be 0 or more")
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
