"""The grid as steps: what each depends on, and the key that follows from it.

    data/bases ── pretrain(size) ── instruct(size)
                        └──────┬──────────┘
    data/experts ───────┬──────┴── multitask(size, base)
                        └───────── expert(size, base, category, seed) ─┬─ merge(…)
                                                                       └─ collect(…)

Given bases take the place of those that are pretrained or instructed: load(size, base);
and an expert that is given is only scored. Methods that merge by statistics need those
that are collected of each expert, too.

A step's key is the hash of everything its output depends on: its settings after all
defaults, the content of what it is given, the keys of the steps before it, and the
version of the code that computes it. Equal key, equal output: that is what makes a
sweep resumable. Versions are raised by hand, where a change of code changes what comes
out (`VERSIONS`); an edit that changes nothing redoes nothing. What merely runs the code
(the number of workers, JAX's version, which may change last bits) is not in it: a sweep
goes on after an upgrade, and its rows say the revision that made each of them.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from merging import methods, models
from merging.runtime import storage
from merging.sweep import given
from merging.sweep.experiment import Experiment, Phase
from merging.training import Hyperparameters

# Raise one when its code changes what comes out: `training/` and `models/` for all that
# is trained or loaded, `merge/` and `methods/` for merges, `evaluation/` for all
# scores.
VERSIONS = {"training": 3, "models": 1, "merge": 4, "evaluation": 1}
_CODE = {
    "data": (),
    "collect": ("training", "models"),
    "load": ("models", "evaluation"),
    "merge": ("models", "merge", "evaluation"),
}
_TRAINED = ("training", "models", "evaluation")
HOW_IT_RUNS = ("checkpoint_every", "log_every")
COLLECTED = 256  # training examples of an expert that statistics are gathered on
FLOPS_PER_SECOND = 15e9  # one CPU core on small models; only weighs the progress bar


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One unit of work.

    Attributes:
      kind: "data", "pretrain", "instruct", "load", "expert", "multitask",
        "single_task", "collect" or "merge".
      name: unique in the grid and readable, e.g. "expert/8x/it/sentiment/seed0".
      settings: what the output depends on beside `needs`; JSON values.
      needs: the steps whose outputs are read.
      cost: rough seconds on one core.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    needs: tuple["Step", ...]
    cost: float

    @property
    def given(self) -> bool:
        """Whether its model is a checkpoint that is read where it lies."""
        return self.kind in ("load", "expert") and "digest" in self.settings

    @property
    def trained(self) -> bool:
        """Whether its model is trained."""
        return "hyperparameters" in self.settings

    @functools.cached_property
    def key(self) -> str:
        """Return the hash of all that this step's output depends on."""
        kind = "load" if self.given else self.kind
        code = {part: VERSIONS[part] for part in _CODE.get(kind, _TRAINED)}
        needs = [need.key for need in self.needs]
        return storage.digest(code, self.kind, self.settings, needs)


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a grid's method that makes a step for each set of arguments once."""

    @functools.wraps(make)
    def made(grid: "Grid", *arguments: Any) -> Any:
        key = (make.__name__, *arguments)
        if key not in grid._asked:
            grid._asked[key] = make(grid, *arguments)
        return grid._asked[key]

    return made


class Grid:
    """Makes the steps of a sweep, each once.

    Args:
      experiment: the sweep.
      identify: gives the identity of a given checkpoint, and of one that another
        describes; planning a grid reads none.
    """

    def __init__(
        self,
        experiment: Experiment,
        identify: Callable[[str, str], str] = given.digest,
    ):
        self.experiment, self._identify = experiment, identify
        self._made: dict[str, Step] = {}
        self._asked: dict[tuple, Any] = {}

    @_once
    def targets(self) -> list[Step]:
        """Return every step that result rows come from, in a fixed order."""
        s = self.experiment
        steps = []
        for size in s.sizes:
            for base in s.bases:
                steps.append(self.base(size, base))
                if s.multitask:
                    steps.append(self.multitask(size, base))
                for seed in range(s.seeds):
                    steps += [
                        self.merge(size, base, method, count, seed)
                        for count in s.experts_merged
                        for method in s.methods
                        if count in s.counts(method)
                    ]
        return steps

    @_once
    def data(self, what: str) -> Step:
        """Arrays read through seqio: all that "bases" or all that "experts" need."""
        digest = {"digest": self.experiment.suite.digest, "what": what}
        return self._step("data", f"data/{what}", digest, (), 40.0)

    @_once
    def base(self, size: str, base: str) -> Step:
        """The pretrained model, made here or loaded, or the one instructed from it."""
        if (size, base) in self.experiment.pretrained_bases:
            return self._load(size, base)
        if base == "pt":
            texts = self.data("bases")
            return self._training("pretrain", size, texts, "pretrain", seed=0)
        before = self.base(size, "pt")
        return self._training("instruct", size, before, "instruct", seed=0)

    def _load(self, size: str, base: str, category: str = "") -> Step:
        """A base that is given, or an expert."""
        s = self.experiment
        path, described = s.folder(size, base), ""
        kind, needs = "load", (self.data("bases"),)
        if category:
            kind, needs = "expert", (self.base(size, base), *needs)
            path, described = s.given_experts[size, base, category], path
        settings = {
            "size": size,
            "base": base,
            "seed": 0,
            "decoder": dataclasses.asdict(s.decoder(size, base)),
            "digest": self._identify(path, described),
            "evaluates": self._evaluated(kind, category),
        }
        settings |= {"what": category} if category else {}
        parts = [kind, size, base, category, "seed0"]
        scored = len(settings["evaluates"]) * (s.suite.examples("test") or 1000)
        cost = self._scoring(size, scored)
        return self._step(kind, "/".join(filter(None, parts)), settings, needs, cost)

    @_once
    def expert(self, size: str, base: str, category: str, seed: int) -> Step:
        """A base fine-tuned on one held-in category; if given, for all runs."""
        if (size, base, category) in self.experiment.given_experts:
            return self._load(size, base, category)
        before = self.base(size, base)
        return self._training("expert", size, before, category, seed, base)

    @_once
    def multitask(self, size: str, base: str) -> Step:
        """A base trained on all held-in categories together.

        One training gives both baselines: the last parameters, and with early
        stopping those of the lowest validation loss.
        """
        before = self.base(size, base)
        return self._training("multitask", size, before, "multitask", 0, base)

    @_once
    def single_task(self, size: str, base: str, dataset: str) -> Step:
        """A base fine-tuned on one dataset alone: is the dataset learnable?"""
        before = self.base(size, base)
        return self._training("single_task", size, before, dataset, 0, base)

    @_once
    def collected(self, expert: Step, statistics: str) -> Step:
        """Statistics of an expert on its own training examples."""
        of = ("size", "base", "what", "seed")
        settings = {key: expert.settings[key] for key in of}
        settings |= {"statistics": statistics, "examples": COLLECTED}
        settings |= {"batch_size": self.experiment.batch_size}
        name = expert.name.replace("expert/", f"collect/{statistics}/", 1)
        cost = 3 * self._scoring(settings["size"], COLLECTED)
        return self._step("collect", name, settings, (expert,), cost)

    @_once
    def merge(self, size: str, base: str, method: str, count: int, seed: int) -> Step:
        """A merge, its λ and density chosen on validation, evaluated on everything."""
        s = self.experiment
        subset = s.subset(seed, count)
        experts = tuple(self.expert(size, base, c, seed) for c in subset)
        settings = {
            "size": size,
            "base": base,
            "method": method,
            "seed": seed,
            "subset": subset,
            "candidates": s.candidates(method),
            "defaults": {k: _plain(v) for k, v in s.defaults(method).items()},
            "file": s.load_methods().get(method, ""),
        }
        settings |= {"keep": True} if s.keep_merges else {}
        tried = len(settings["candidates"]) if len(settings["candidates"]) > 1 else 0
        scored = tried * 2 * count * (s.suite.examples("validation") or 256)
        scored += len(s.suite.datasets) * (s.suite.examples("test") or 1000)
        name = f"merge/{size}/{base}/{method}/K{count}/seed{seed}"
        needs = (self.base(size, base), *experts)
        if wanted := methods.get(method, **s.candidates(method)[0]).statistics:
            needs += tuple(self.collected(expert, wanted.name) for expert in experts)
        return self._step("merge", name, settings, needs, self._scoring(size, scored))

    def _training(
        self, kind: str, size: str, before: Step, what: str, seed: int, base: str = ""
    ) -> Step:
        s = self.experiment
        phase = {
            "pretrain": s.pretraining,
            "instruct": s.instruction,
            "multitask": s.multitask,
        }.get(kind, s.expert)
        base_made = base or {"pretrain": "pt", "instruct": "it"}[kind]
        decoder = s.decoder(size, base_made)
        settings = {
            "size": size,
            "base": base_made,
            "what": what,
            "seed": seed,
            "decoder": dataclasses.asdict(decoder),
            "hyperparameters": self._hyperparameters(size, phase, seed),
            "evaluates": self._evaluated(kind, what),
        }
        scored = len(settings["evaluates"]) * (s.suite.examples("test") or 1000)
        length = 48
        tokens = phase.steps * s.batch_size * length
        flops = 6 * models.parameter_count(decoder) * tokens
        cost = flops / FLOPS_PER_SECOND + phase.steps * 1e-3
        parts = [kind, size, base, what if kind in ("expert", "single_task") else ""]
        name = "/".join([p for p in parts if p] + [f"seed{seed}"])
        cost += self._scoring(size, scored)
        needs = (before,)
        if kind in ("expert", "multitask", "single_task"):
            needs += (self.data("experts"),)
        return self._step(kind, name, settings, needs, cost)

    def _hyperparameters(self, size: str, phase: Phase, seed: int) -> dict[str, Any]:
        s = self.experiment
        chosen = Hyperparameters(
            steps=phase.steps,
            batch_size=s.batch_size,
            learning_rate=s.peak_rate(size) * phase.rate,
            warmup_steps=max(10, phase.steps // 20),
            seed=seed,
            validate_every=phase.validate_every,
            dtype=s.dtype,
        )
        # How often it saves and reports changes nothing that comes out.
        every = dataclasses.asdict(chosen)
        return {k: v for k, v in every.items() if k not in HOW_IT_RUNS}

    def _evaluated(self, kind: str, what: str) -> list[str]:
        """Return the datasets that a trained model is tested on."""
        datasets = self.experiment.suite.datasets
        if kind == "expert":
            return [d.name for d in datasets if d.category == what]
        if kind == "single_task":
            return [what]
        return [d.name for d in datasets]

    def _scoring(self, size: str, examples: int) -> float:
        flops = 2 * models.parameter_count(self.experiment.decoder(size)) * 36
        return 0.5 + examples * (flops / FLOPS_PER_SECOND + 1e-4)

    def _step(self, kind, name, settings, needs, cost) -> Step:
        if name not in self._made:
            settings = json.loads(json.dumps(settings))
            self._made[name] = Step(kind, name, settings, needs, cost)
        return self._made[name]


def with_needs(targets: Iterable[Step]) -> list[Step]:
    """Return the targets and all they need, each once, needs first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in ordered:
            for need in step.needs:
                visit(need)
            ordered[step.key] = step

    for target in targets:
        visit(target)
    return list(ordered.values())


def _plain(value: Any) -> Any:
    """Return a default as JSON has it; a function, say, as its type's name.

    Its own text may hold an address, another one in every process, and what it is
    follows from its method's code.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return type(value).__name__
    return value


def part(targets: list[Step], index: int, count: int) -> list[Step]:
    """Return part `index` of `count` of the targets.

    Parts are runs of neighbours of nearly equal cost. Targets are ordered by size,
    base and seed, so a part needs few models that another part trains as well.
    """
    whole = sum(step.cost for step in targets)
    low, high = whole * index / count, whole * (index + 1) / count
    chosen, passed = [], 0.0
    for step in targets:
        middle = passed + step.cost / 2
        if low <= middle < high:
            chosen.append(step)
        passed += step.cost
    return chosen
