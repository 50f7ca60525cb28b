"""Chip-hours of a whole sweep, and whether its steps fit: step by step, as it runs."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from merging import methods, models
from merging.models import DecoderConfig
from merging.planning import decoding, estimates, memory_merge
from merging.planning.compiling import Target
from merging.planning.estimates import COUNTED, CostEstimate, Memory, Work
from merging.planning.settings import Settings, Training
from merging.planning.sharding_layout import sharding_layout
from merging.runtime import text, tree
from merging.sweep import Grid, with_needs
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.training import statistics


class Cost(NamedTuple):
    """Chip-hours of one size of a grid.

    Attributes:
      size: of the family.
      merges: how many.
      training: of all that is trained.
      merging: of all merges and trials, and of reading their models once for each base
        and run.
      evaluation: of every model, and of trials of λ.
      limits: what bounds a training step, a merge and a scored batch.
    """

    size: str
    merges: int
    training: float
    merging: float
    evaluation: float
    limits: tuple[str, str, str]

    @property
    def total(self) -> float:
        """All three."""
        return self.training + self.merging + self.evaluation


def costs(grid: Grid, settings: Settings, target: Target) -> list[Cost] | None:
    """Return what each size costs; None where the chip's figures are not known.

    Args:
      grid: the sweep's steps.
      settings: what is assumed.
      target: the devices; nothing is compiled for them.

    Raises:
      UserError: a mesh that does not fit a size.
    """
    found = []
    for size in grid.experiment.sizes:
        clock = _Clock(grid.experiment.decoder(size), settings, target)
        if clock.step.seconds is None or clock.batch.seconds is None:
            return None
        found.append(_cost(size, _steps(grid, size), grid, clock))
    return found


def warnings(grid: Grid, settings: Settings, target: Target) -> list[str]:
    """Return a note for each kind of step of each size that does not fit the chips."""
    experiment, found = grid.experiment, []
    room, most = target.topology.chip.memory, max(experiment.experts_merged)
    for size in experiment.sizes if room else ():
        clock = _Clock(experiment.decoder(size), settings, target)
        names = [f"expert{i}" for i in range(most)]
        merges = []
        for name in experiment.methods:
            taken = names[: max(experiment.counts(name))]
            merges.append((clock.estimate(name, taken), len(taken)))
        largest, count = max(merges, key=lambda merge: merge[0].memory.peak)
        needed = [(f"a merge of {count} experts in memory", largest)]
        needed.append(("scoring", clock.scoring))
        if experiment.trains():
            needed.append(("a training step", clock.training))
        needed += [(f"gathering {k}", clock.gathering(k)) for k in _kinds(experiment)]
        for what, estimate in needed:
            if not estimates.fits(estimate, target.topology):
                peak, instead = text.size(estimate.memory.peak), "a smaller batch"
                if estimate is largest:
                    instead = "experts stay in storage, and are read for each trial"
                elif what.startswith("gathering"):
                    instead = "no method that merges by it"
                found.append(
                    f"{size}: {what} does not fit: {peak} of a chip's "
                    f"{text.size(room)}; more chips, or {instead}"
                )
    return found


def assumptions(grid: Grid, settings: Settings) -> list[str]:
    """Return what a grid's hours rest on, in words."""
    experiment, counted = grid.experiment, settings.evaluation
    steps = with_needs(grid.targets())
    kinds = Counter("given" if step.given else step.kind for step in steps)
    trained = [s for s in steps if s.trained]
    made = sum(s.settings["hyperparameters"]["steps"] for s in trained)
    every = experiment.experts_merged
    few = sum(experiment.counts(name) != every for name in experiment.methods)
    rows = f"{experiment.batch_size} x {settings.training.length:,} tokens"
    return [
        f"{kinds['merge']} merges: {len(experiment.sizes)} sizes x"
        f" {len(experiment.bases)} bases x {len(experiment.methods)} methods x K of"
        f" {', '.join(map(str, every))} x {experiment.seeds} runs"
        + (f", of {few} at K = 2 alone" if few else ""),
        f"{len(trained)} trainings of {made:,} steps in all, a step being {rows}; "
        f"{kinds['given']} models are given",
        f"a model's test is {counted.rows:,} rows of {settings.scoring.length:,} tokens"
        f" and its validation {counted.validation_rows:,}, shared alike by datasets",
        f"chips reach {settings.efficiency:.0%} of what bounds them; storage gives a"
        f" host {settings.storage.read:g} GB/s; merged models are not written",
    ]


class _Timed(NamedTuple):
    seconds: float | None
    limit: str


class _Clock:
    """How long the steps of a grid take at one size."""

    def __init__(self, decoder: DecoderConfig, settings: Settings, target: Target):
        self._settings, self._target, self._decoder = settings, target, decoder
        self.leaves = sharding_layout(decoder, target.mesh)
        step: Training = settings.training
        self.training = decoding.train(decoder, step, target)
        self.scoring = decoding.score(decoder, self.leaves, settings.scoring, target)
        self.step, self.batch = self.timed(self.training), self.timed(self.scoring)
        self.load = self._loaded(models.abstract(decoder))
        self.batched = settings.scoring.batch
        self._merges: dict[tuple, _Timed] = {}

    def estimate(self, name: str, experts: Sequence[str]) -> CostEstimate:
        """Return one merge, of models that are in memory."""
        method, target = methods.get(name), self._target
        told = memory_merge.told_bytes(method, len(experts), self._decoder, target)
        return memory_merge.estimate(method, experts, self.leaves, target, True, told)

    def gathering(self, kind: str) -> CostEstimate:
        """Return what gathering statistics takes; its work is a training step's."""
        size = statistics.bytes_to_gather(self._decoder, (kind,), self._target.mesh)
        what = Memory(size, 0, 0), COUNTED, (), Work()
        return CostEstimate(f"gathering {kind}", "at least", *what)

    def told(self, kind: str) -> float:
        """Return the seconds that reading one expert's statistics takes."""
        return self._loaded(statistics.abstract_sums(self._decoder, (kind,))[kind])

    def _loaded(self, of: tree.Tree) -> float:
        rate = self._settings.storage.read * 1e9
        return tree.byte_count(of) / self._target.topology.hosts / rate

    def merge(self, step: Step) -> _Timed:
        """Return the time of a merge step's trials, its models in memory already."""
        name, experts = step.settings["method"], len(step.settings["subset"])
        tried = [tuple(sorted(c.items())) for c in step.settings["candidates"]]
        key = name, experts, tuple(tried)
        if key not in self._merges:
            found = self.estimate(name, [f"expert{i}" for i in range(experts)])
            # The reductions once for each density, and each λ writes a model.
            kinds = {tuple(p for p in one if p[0] != "scale") for one in tried}
            kept = sum(leaf.bytes for leaf in self.leaves.values())
            again = (len(tried) - len(kinds) + (len(tried) > 1)) * (experts + 2) * kept
            traffic = found.work.traffic * len(kinds) + again
            work = found.work._replace(traffic=traffic, read=0, written=0)
            self._merges[key] = self.timed(found._replace(work=work))
        return self._merges[key]

    def timed(self, estimate: CostEstimate) -> _Timed:
        """Return the time that is expected, and what bounds it."""
        terms = estimates.times(estimate, self._target.topology, self._settings.storage)
        seconds = estimates.expected(terms, self._settings.efficiency)
        return _Timed(seconds, estimates.bottleneck(terms))

    def hours(self, seconds: float) -> float:
        """Return chip-hours."""
        return seconds * self._target.topology.devices / 3600

    def rows(self, step: Step, grid: Grid) -> float:
        """Return the rows that a step scores."""
        datasets = grid.experiment.suite.datasets
        held_in = [d for d in datasets if d.split == "held_in"]
        counted = self._settings.evaluation
        each = counted.validation_rows / len(held_in)
        if step.kind in ("data", "collect"):
            return 0.0
        if step.kind == "merge":
            merged = [d for d in held_in if d.category in step.settings["subset"]]
            tried = len(step.settings["candidates"])
            return counted.rows + (tried if tried > 1 else 0) * each * len(merged)
        tested = len(step.settings["evaluates"]) / len(datasets) * counted.rows
        if step.kind == "expert":
            return tested + each * len(step.settings["evaluates"])
        # Of early stopping's model as well.
        return tested * (1 + (step.kind == "multitask"))


def _cost(size: str, steps: Sequence[Step], grid: Grid, clock: _Clock) -> Cost:
    merges = [step for step in steps if step.kind == "merge"]
    trained = [step for step in steps if step.trained]
    timed = [clock.merge(step) for step in merges]
    rows = sum(clock.rows(step, grid) for step in steps)
    count = sum(step.settings["hyperparameters"]["steps"] for step in trained)
    read = {n.key for step in merges for n in step.needs if n.kind != "collect"}
    # A model stays for the next merge, its statistics don't.
    told = Counter(
        need.settings["statistics"]
        for step in merges
        for need in step.needs
        if need.kind == "collect"
    )
    reading = len(read) * clock.load
    reading += sum(count * clock.told(kind) for kind, count in told.items())
    # A gradient of each example, as a training step has it of its batch.
    count += sum(
        step.settings["examples"] / step.settings["batch_size"]
        for step in steps
        if step.kind == "collect"
    )
    return Cost(
        size,
        len(merges),
        clock.hours(count * clock.step.seconds + len(trained) * clock.load),
        clock.hours(sum(t.seconds or 0 for t in timed) + reading),
        clock.hours(rows / clock.batched * clock.batch.seconds),
        (clock.step.limit, timed[-1].limit if timed else "", clock.batch.limit),
    )


def _kinds(experiment: Experiment) -> list[str]:
    """Return the kinds of statistics that a sweep's methods merge by."""
    wanted = (
        methods.get(name, **experiment.candidates(name)[0]).statistics
        for name in experiment.methods
    )
    return sorted({of.name for of in wanted if of is not None})


def _steps(grid: Grid, size: str) -> list[Step]:
    """Return the steps of one size that models come from."""
    every = with_needs(grid.targets())
    return [step for step in every if step.settings.get("size") == size]
