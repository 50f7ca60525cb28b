"""What is done for each kind of step."""

import dataclasses
import functools
import time
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from merging import models, tasks, training
from merging.models import hf as families
from merging.runtime import loggers, processes, storage, tree
from merging.runtime.revision import git_revision
from merging.runtime.storage import Folder
from merging.sweep import collecting, merges, restoring, scoring
from merging.sweep.experiment import Experiment
from merging.sweep.restoring import restore
from merging.sweep.steps import Step
from merging.sweep.store import Store
from merging.training.job import Training, fit
from merging.training.run_state import RunState
from merging.training.told import Told

# AdamW's small updates vanish in 16-bit parameters: half a unit in the last place of a
# bfloat16 is a four-hundredth of the weight.
TRAINED_IN = "float32"
LARGE = 1e8  # parameters of a model whose steps take long
Tick = Callable[..., None]


def execute(
    step: Step,
    experiment: Experiment,
    store: Store,
    tick: Tick,
    mesh: Mesh | None = None,
) -> None:
    """Do a step in its unfinished folder, and publish its output.

    Args:
      step: whose needs are finished.
      experiment: what it belongs to.
      store: the workdir.
      tick: told the share done, from 0 to 1, and a note; what it raises ends the step.
      mesh: all devices of all processes, which do it together; None for one device.

    Raises:
      Broken: the output of a step that this one needs can't be read.
    """
    tick(0.0)
    begin = time.monotonic()
    restoring.make_room(step)
    if step.kind == "data":
        output = _data(step, experiment, store, tick)
    elif step.kind == "merge":
        output = merges.run(step, experiment, store, tick, mesh)
    elif step.kind == "collect":
        output = collecting.run(step, experiment, store, tick, mesh)
    elif step.given:
        output = _load(step, experiment, store, mesh)
    else:
        output = _train(step, experiment, store, tick, mesh)
    if "test" in output:
        decoder = experiment.decoder(step.settings["size"], step.settings["base"])
        output["examples"] = scoring.examples(
            experiment, decoder, "test", output["test"], store.data
        )
    output["wall_seconds"] = round(time.monotonic() - begin, 3)
    output["git_revision"] = git_revision()
    store.publish(step, output)


def _data(step, experiment: Experiment, store: Store, tick: Tick) -> dict:
    suite = experiment.suite
    wanted = [("pretrain", "train"), ("instruct", "train")]
    if not experiment.pretraining:
        wanted.remove(("pretrain", "train"))
    if not experiment.instruction:
        wanted.remove(("instruct", "train"))
    if step.settings["what"] == "experts":
        given = experiment.given_experts
        trained = {of[2] for of in experiment.experts() if of not in given}
        wanted = [(c, "train") for c in suite.categories if c in trained]
        if experiment.multitask:
            wanted += [("multitask", "train"), ("multitask", "validation")]
    for done, (what, split) in enumerate(wanted):
        tick(done / (len(wanted) + 2), f"preparing {what}")
        _examples(experiment, store, what, split)
    if step.settings["what"] == "bases":
        # Validation chooses λ, against experts: of held-in datasets alone.
        held_in = [d.name for d in suite.datasets if d.split == "held_in"]
        for split, names in (("validation", held_in), ("test", None)):
            # Of several processes one reads them; the others find what it has kept.
            how = {"datasets": names, "cache_dir": store.data}
            load = functools.partial(tasks.load_suite, suite, split, **how)
            store.once(lambda load=load: bool(load()))
    return {}


def _load(step: Step, experiment: Experiment, store: Store, mesh: Mesh | None) -> dict:
    """Score a model that is given."""
    params = restore(experiment, store, step, mesh)
    output = _tested(experiment, store, step, mesh, params)
    if step.kind == "expert":
        output["validation"] = _validated(experiment, store, step, mesh, params)
    return output


def _train(
    step: Step, experiment: Experiment, store: Store, tick: Tick, mesh: Mesh | None
) -> dict:
    size, base = step.settings["size"], step.settings["base"]
    kept = experiment.decoder(size, base)
    decoder = dataclasses.replace(kept, param_dtype=TRAINED_IN)
    large = bool(experiment.pretrained_bases) or models.parameter_count(decoder) > LARGE
    hparams = training.Hyperparameters(
        **step.settings["hyperparameters"],
        # Of large models: what a kill may cost, and how long a call is, before the end
        # of which no stop is looked for.
        checkpoint_every=20 if large else 1000,
        log_every=5 if large else 50,
    )
    if step.kind == "pretrain":
        params = models.init(decoder, step.settings["seed"], mesh)
    else:
        start = restore(experiment, store, step.needs[0], mesh)
        params = tree.cast(start, TRAINED_IN)
    validation = None
    if hparams.validate_every:
        validation = _examples(experiment, store, "multitask", "validation")
    tokenizer = experiment.suite.tokenizer
    files = families.files_of_trained(
        decoder,
        experiment.folder(size, base),
        tokenizer=tokenizer.files,
        eos_id=tokenizer.eos_id,
    )
    examples = _examples(experiment, store, step.settings["what"], "train")
    folder = store.partial(step)
    logger = experiment.logger if processes.is_first() else loggers.NONE
    with loggers.opened(logger, folder, step.settings) as opened:
        told = Told(folder / "losses.jsonl", opened)

        def report(now: RunState) -> None:
            told(now)
            note = f"{step.name} loss {now.losses[-1]:.3f}"
            tick(0.95 * now.step / hparams.steps, note)

        trained = fit(
            Training(decoder, params, examples, hparams, validation, files),
            folder,
            mesh=mesh,
            report=report,
            dtype=kept.param_dtype,
        )
        told.settle()
    tested = functools.partial(_tested, experiment, store, step, mesh)
    output = {
        "steps": int(trained.steps),
        "loss": float(np.mean(trained.losses[-100:])),
    } | tested(trained.params)
    if hparams.validate_every:
        best = {f"best_{key}": of for key, of in tested(trained.best).items()}
        output |= {"best_step": trained.best_step} | best
    if step.kind == "expert":
        output["validation"] = _validated(experiment, store, step, mesh, trained.params)
    if processes.is_first():
        storage.remove(folder / "training")
    return output


def _tested(
    experiment: Experiment,
    store: Store,
    step: Step,
    mesh: Mesh | None,
    params: models.Params,
) -> dict[str, dict]:
    """Return what the step's output holds of the model's test."""
    decoder = experiment.decoder(step.settings["size"], step.settings["base"])
    wanted = step.settings["evaluates"]
    return scoring.tested(experiment, decoder, params, wanted, store.data, mesh)


def _validated(
    experiment: Experiment,
    store: Store,
    step: Step,
    mesh: Mesh | None,
    params: models.Params,
) -> dict[str, float]:
    decoder = experiment.decoder(step.settings["size"], step.settings["base"])
    return scoring.scores(
        *(experiment, decoder, params, "validation", step.settings["evaluates"]),
        *(store.data, mesh),
    )


def _examples(experiment: Experiment, store: Store, what: str, split: str):
    length = experiment.suite.max_length
    return _arrays(experiment.suite, what, split, length, store.data)


@functools.lru_cache(maxsize=6)
def _arrays(suite: tasks.Suite, what: str, split: str, length: int, cache_dir: Folder):
    return training.Examples(
        *tasks.materialise(suite, what, split, length, cache_dir=cache_dir)
    )
