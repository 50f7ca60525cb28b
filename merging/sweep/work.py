"""What a worker does for each kind of step."""

import collections
import functools
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from merging import checkpoints, methods, models, tasks, training
from merging.merge import in_memory as resident
from merging.models import hf as families
from merging.runtime import tree
from merging.runtime.revision import git_revision
from merging.sweep import given, scoring
from merging.sweep.settings import Settings
from merging.sweep.steps import Step
from merging.sweep.store import Broken, Store

KEPT = 2e9  # bytes of parameters kept in memory for the next steps
Tick = Callable[..., None]
Scores = dict[str, float]
_restored: collections.OrderedDict[str, models.Params] = collections.OrderedDict()


def execute(
    step: Step, settings: Settings, store: Store, folder: Path, tick: Tick
) -> None:
    """Do a step in the folder that it was claimed with, and publish its output.

    Raises:
      Broken: the output of a step that this one needs can't be read.
      Lost: another process has taken over the step.
    """
    tick(0.0)
    begin = time.monotonic()
    make = {"data": _data, "given": _given, "merge": _merge}.get(step.kind, _train)
    output = make(step, settings, store, folder, tick)
    if "test" in output:
        decoder, tested = settings.decoder(step.settings["size"]), output["test"]
        output["examples"] = scoring.examples(
            settings, decoder, "test", tested, store.data
        )
    output["wall_seconds"] = round(time.monotonic() - begin, 3)
    output["git_revision"] = git_revision()
    store.publish(step, folder, output)


def _data(step, settings: Settings, store: Store, folder: Path, tick: Tick) -> dict:
    suite = settings.suite
    wanted = [] if settings.given else [("pretrain", "train"), ("instruct", "train")]
    if step.settings["what"] == "experts":
        wanted = [(category, "train") for category in suite.categories]
        if settings.multitask:
            wanted += [("multitask", "train"), ("multitask", "validation")]
    for done, (what, split) in enumerate(wanted):
        tick(done / (len(wanted) + 2), f"preparing {what}")
        _examples(settings, store, what, split)
    if step.settings["what"] == "bases":
        for split in ("validation", "test"):
            tasks.load_suite(suite, split, cache_dir=store.data)
    return {}


def _given(step, settings: Settings, store: Store, folder: Path, tick: Tick) -> dict:
    config = settings.decoder(step.settings["size"])
    params = restore(settings, store, step)
    return {"test": _score(config, params, settings, store, "test", step)}


def _train(step, settings: Settings, store: Store, folder: Path, tick: Tick) -> dict:
    config = settings.decoder(step.settings["size"])
    recipe = training.Recipe(
        **step.settings["recipe"],
        checkpoint_every=1000,
        # A call ends before a stop is looked for, and steps of large models take long.
        log_every=5 if settings.given else 50,
    )
    if step.kind == "pretrain":
        params = models.init(config, step.settings["seed"])
    else:
        params = restore(settings, store, step.needs[0])
    validation = None
    if recipe.validate_every:
        validation = _examples(settings, store, "multitask", "validation")
    trained = training.train(
        config,
        params,
        _examples(settings, store, step.settings["what"], "train"),
        recipe,
        workdir=folder / "training",
        validation=validation,
        report=lambda now: tick(
            0.95 * now.step / recipe.steps, f"{step.name} loss {now.losses[-1]:.3f}"
        ),
    )
    checkpoints.save(folder / "checkpoint", trained.params)
    tokenizer = settings.suite.tokenizer
    files = families.files_of_trained(
        config,
        settings.folder(step.settings["size"]),
        tokenizer=tokenizer.files,
        eos_id=tokenizer.eos_id,
    )
    for name, content in files.items():
        (folder / "checkpoint" / name).write_bytes(content)
    output = {
        "steps": int(trained.steps),
        "loss": float(np.mean(trained.losses[-100:])),
        "test": _score(config, trained.params, settings, store, "test", step),
    }
    if recipe.validate_every:
        best = _score(config, trained.best, settings, store, "test", step)
        output |= {"best_step": trained.best_step, "best_test": best}
    if step.kind == "expert":
        scores = _score(config, trained.params, settings, store, "validation", step)
        output["validation"] = scores
    shutil.rmtree(folder / "training", ignore_errors=True)
    return output


def _merge(step, settings: Settings, store: Store, folder: Path, tick: Tick) -> dict:
    config = settings.decoder(step.settings["size"])
    base, *experts = step.needs
    base = restore(settings, store, base)
    ours = {e.settings["what"]: restore(settings, store, e) for e in experts}
    theirs = {}
    for expert in experts:
        theirs |= store.output(expert)["validation"]
    candidates = step.settings["candidates"]
    tried = []
    if len(candidates) > 1:
        for params in _merges(step, base, ours, candidates):
            tick(len(tried) / (len(candidates) + 3))
            values = scoring.scores(
                settings, config, params, "validation", set(theirs), store.data
            )
            ratios = [values[d] / theirs[d] for d in values if theirs[d] > 0]
            tried.append(float(np.mean(ratios)))
    best = int(np.argmax(tried)) if tried else 0
    (params,) = _merges(step, base, ours, [candidates[best]])
    everything = {d.name for d in settings.suite.datasets}
    return {
        "parameters": _described(candidates, best),
        "validation": tried,
        "test": scoring.scores(
            settings, config, params, "test", everything, store.data
        ),
    }


def _merges(step: Step, base, experts, candidates: list[dict]):
    """Yield the merge for each candidate; what λ does not touch is computed once."""
    name, seed = step.settings["method"], step.settings["seed"]
    without = [{k: v for k, v in c.items() if k != "scale"} for c in candidates]
    for rest, group in itertools.groupby(
        zip(without, candidates, strict=True), key=lambda pair: pair[0]
    ):
        scales = [c["scale"] for _, c in group if "scale" in c]
        method = methods.get(name, **rest)
        if scales:
            yield from resident.merge_scales(base, experts, method, scales, seed=seed)
        else:
            yield resident.merge(base, experts, method, seed=seed, donate=False)


def _described(candidates: list[dict], best: int) -> dict:
    """Return the chosen parameters, and whether λ is at the end of its grid."""
    chosen = dict(candidates[best])
    scales = sorted({c["scale"] for c in candidates if "scale" in c})
    if len(scales) > 1:
        chosen["scale_at_edge"] = chosen["scale"] in (scales[0], scales[-1])
    return chosen


def restore(settings: Settings, store: Store, step: Step) -> models.Params:
    """Return a finished step's parameters, kept in memory for the next steps.

    Raises:
      Broken: the checkpoint is damaged.
      UserError: a given checkpoint has changed.
    """
    if step.key not in _restored:
        _restored[step.key] = _restore(settings, store, step)
    _restored.move_to_end(step.key)
    while len(_restored) > 1 and sum(map(tree.byte_count, _restored.values())) > KEPT:
        _restored.popitem(last=False)
    return _restored[step.key]


def _restore(settings: Settings, store: Store, step: Step) -> models.Params:
    size = step.settings["size"]
    if step.kind == "given":
        return given.load(settings.folder(size), step.settings["digest"])
    like = models.abstract(settings.decoder(size))
    try:
        params = checkpoints.restore(store.path(step) / "checkpoint", like)
    except (checkpoints.CorruptCheckpoint, OSError) as error:
        raise Broken(step.name, step.key, str(error)) from error
    return jax.block_until_ready(params)


def _score(config, params, settings, store, split: str, step: Step) -> Scores:
    wanted = step.settings["evaluates"]
    return scoring.scores(settings, config, params, split, wanted, store.data)


def _examples(settings: Settings, store: Store, what: str, split: str):
    length = settings.suite.max_length
    return _arrays(settings.suite, what, split, length, store.data)


@functools.lru_cache(maxsize=6)
def _arrays(suite: tasks.Suite, what: str, split: str, length: int, cache_dir: Path):
    return training.Examples(
        *tasks.materialise(suite, what, split, length, cache_dir=cache_dir)
    )
