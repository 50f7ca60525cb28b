"""What is done for each kind of step."""

import collections
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from merging import checkpoints, methods, models, tasks, training
from merging.merge import merge, merge_scales
from merging.models import hf as families
from merging.runtime import tree
from merging.runtime.revision import git_revision
from merging.sweep import pretrained_bases, scoring
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store
from merging.training.job import Training, fit

KEPT = 2e9  # bytes of parameters kept in memory for the next steps
Tick = Callable[..., None]
_restored: collections.OrderedDict[str, models.Params] = collections.OrderedDict()


def execute(step: Step, experiment: Experiment, store: Store, tick: Tick) -> None:
    """Do a step in its unfinished folder, and publish its output.

    Args:
      step: whose needs are finished.
      experiment: what it belongs to.
      store: the workdir.
      tick: told the share done, from 0 to 1, and a note; what it raises ends the step.

    Raises:
      Broken: the output of a step that this one needs can't be read.
    """
    tick(0.0)
    begin = time.monotonic()
    make = {"data": _data, "load": _load, "merge": _merge}.get(step.kind, _train)
    output = make(step, experiment, store, tick)
    if "test" in output:
        decoder, tested = experiment.decoder(step.settings["size"]), output["test"]
        output["examples"] = scoring.examples(
            experiment, decoder, "test", tested, store.data
        )
    output["wall_seconds"] = round(time.monotonic() - begin, 3)
    output["git_revision"] = git_revision()
    store.publish(step, output)


def _data(step, experiment: Experiment, store: Store, tick: Tick) -> dict:
    suite = experiment.suite
    wanted = [("pretrain", "train"), ("instruct", "train")]
    if experiment.pretrained_bases:
        wanted = []
    if step.settings["what"] == "experts":
        wanted = [(category, "train") for category in suite.categories]
        if experiment.multitask:
            wanted += [("multitask", "train"), ("multitask", "validation")]
    for done, (what, split) in enumerate(wanted):
        tick(done / (len(wanted) + 2), f"preparing {what}")
        _examples(experiment, store, what, split)
    if step.settings["what"] == "bases":
        # Validation chooses λ, against experts: of held-in datasets alone.
        held_in = [d.name for d in suite.datasets if d.split == "held_in"]
        for split, names in (("validation", held_in), ("test", None)):
            tasks.load_suite(suite, split, datasets=names, cache_dir=store.data)
    return {}


def _load(step, experiment: Experiment, store: Store, tick: Tick) -> dict:
    config = experiment.decoder(step.settings["size"])
    params = restore(experiment, store, step)
    return _tested(config, experiment, store, step, params)


def _train(step, experiment: Experiment, store: Store, tick: Tick) -> dict:
    decoder = experiment.decoder(step.settings["size"])
    large = bool(experiment.pretrained_bases)
    hparams = training.Hyperparameters(
        **step.settings["hyperparameters"],
        # Steps of large models take long: what a kill may cost, and how long a call is,
        # before the end of which no stop is looked for.
        checkpoint_every=20 if large else 1000,
        log_every=5 if large else 50,
    )
    if step.kind == "pretrain":
        params = models.init(decoder, step.settings["seed"])
    else:
        params = restore(experiment, store, step.needs[0])
    validation = None
    if hparams.validate_every:
        validation = _examples(experiment, store, "multitask", "validation")
    tokenizer = experiment.suite.tokenizer
    files = families.files_of_trained(
        decoder,
        experiment.folder(step.settings["size"]),
        tokenizer=tokenizer.files,
        eos_id=tokenizer.eos_id,
    )
    examples = _examples(experiment, store, step.settings["what"], "train")
    folder = store.partial(step)
    trained = fit(
        Training(decoder, params, examples, hparams, validation, files),
        folder,
        report=lambda now: tick(
            0.95 * now.step / hparams.steps, f"{step.name} loss {now.losses[-1]:.3f}"
        ),
        keep_best=False,
    )
    tested = functools.partial(_tested, decoder, experiment, store, step)
    output = {
        "steps": int(trained.steps),
        "loss": float(np.mean(trained.losses[-100:])),
    } | tested(trained.params)
    if hparams.validate_every:
        best = {f"best_{key}": of for key, of in tested(trained.best).items()}
        output |= {"best_step": trained.best_step} | best
    if step.kind == "expert":
        wanted = step.settings["evaluates"]
        output["validation"] = scoring.scores(
            experiment, decoder, trained.params, "validation", wanted, store.data
        )
    shutil.rmtree(folder / "training", ignore_errors=True)
    return output


def _merge(step, experiment: Experiment, store: Store, tick: Tick) -> dict:
    config = experiment.decoder(step.settings["size"])
    base, *experts = step.needs
    base = restore(experiment, store, base)
    ours = {e.settings["what"]: restore(experiment, store, e) for e in experts}
    theirs = {}
    for expert in experts:
        theirs |= store.output(expert)["validation"]
    candidates = step.settings["candidates"]
    tried = []
    if len(candidates) > 1:
        for params in _merges(step, base, ours, candidates):
            tick(len(tried) / (len(candidates) + 3))
            values = scoring.scores(
                experiment, config, params, "validation", set(theirs), store.data
            )
            ratios = [values[d] / theirs[d] for d in values if theirs[d] > 0]
            tried.append(float(np.mean(ratios)))
    best = int(np.argmax(tried)) if tried else 0
    (params,) = _merges(step, base, ours, [candidates[best]])
    everything = {d.name for d in experiment.suite.datasets}
    return {
        "parameters": _described(candidates, best),
        "validation": tried,
    } | scoring.tested(experiment, config, params, everything, store.data)


def _merges(
    step: Step, base, experts, candidates: list[dict]
) -> Iterator[models.Params]:
    """Yield the merge for each candidate; what λ does not touch is computed once."""
    name, seed = step.settings["method"], step.settings["seed"]
    without = [{k: v for k, v in c.items() if k != "scale"} for c in candidates]
    for rest, group in itertools.groupby(
        zip(without, candidates, strict=True), key=lambda pair: pair[0]
    ):
        scales = [c["scale"] for _, c in group if "scale" in c]
        method = methods.get(name, **rest)
        if scales:
            yield from merge_scales(base, experts, method, scales, seed=seed)
        else:
            yield merge(base, experts, method, seed=seed)


def _described(candidates: list[dict], best: int) -> dict:
    """Return the chosen parameters, and whether λ is at the end of its grid."""
    chosen = dict(candidates[best])
    scales = sorted({c["scale"] for c in candidates if "scale" in c})
    if len(scales) > 1:
        chosen["scale_at_edge"] = chosen["scale"] in (scales[0], scales[-1])
    return chosen


def restore(experiment: Experiment, store: Store, step: Step) -> models.Params:
    """Return a finished step's parameters, kept in memory for the next steps.

    Raises:
      Broken: the checkpoint is damaged.
      UserError: a given checkpoint has changed.
    """
    if step.key not in _restored:
        _restored[step.key] = _restore(experiment, store, step)
    _restored.move_to_end(step.key)
    while len(_restored) > 1 and sum(map(tree.byte_count, _restored.values())) > KEPT:
        _restored.popitem(last=False)
    return _restored[step.key]


def _restore(experiment: Experiment, store: Store, step: Step) -> models.Params:
    size = step.settings["size"]
    if step.kind == "load":
        return pretrained_bases.load(experiment.folder(size), step.settings["digest"])
    like = models.abstract(experiment.decoder(size))
    try:
        params = checkpoints.restore(store.path(step) / "checkpoint", like)
    # Not other errors of the system, such as a missing permission: it is still there.
    except (checkpoints.CorruptCheckpoint, checkpoints.MissingCheckpoint) as error:
        raise Broken(step.name, step.key, str(error)) from error
    return jax.block_until_ready(params)


def _tested(
    decoder: models.DecoderConfig,
    experiment: Experiment,
    store: Store,
    step: Step,
    params: models.Params,
) -> dict[str, dict]:
    wanted = step.settings["evaluates"]
    return scoring.tested(experiment, decoder, params, wanted, store.data)


def _examples(experiment: Experiment, store: Store, what: str, split: str):
    length = experiment.suite.max_length
    return _arrays(experiment.suite, what, split, length, store.data)


@functools.lru_cache(maxsize=6)
def _arrays(suite: tasks.Suite, what: str, split: str, length: int, cache_dir: Path):
    return training.Examples(
        *tasks.materialise(suite, what, split, length, cache_dir=cache_dir)
    )
