"""A collect step: an expert's statistics, for methods that merge by some.

They are of the expert's own training examples, as `merging collect` gathers them, and
lie as a checkpoint in the step's folder.
"""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from merging import checkpoints, models, tasks, training
from merging.runtime import processes, storage, tree
from merging.sweep import restoring
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Store
from merging.training import batches, collect, statistics
from merging.training.statistics import Collector


def run(
    step: Step,
    experiment: Experiment,
    store: Store,
    tick: Callable[..., None],
    mesh: Mesh | None,
) -> dict:
    """Gather a step's statistics, and go on where it was stopped.

    Raises:
      Preempted: it was asked to stop; the sums are saved.
    """
    settings = step.settings
    suite, (expert, *_) = experiment.suite, step.needs
    functions = _functions(step, experiment, mesh)
    params = tree.cast(restoring.restore(experiment, store, expert, mesh), "float32")
    of, length = settings["what"], suite.max_length
    arrays = tasks.materialise(suite, of, "train", length, cache_dir=store.data)
    examples = batches.opened(training.Examples(*arrays), experiment.vocabulary)
    folder = store.partial(step)
    total = min(settings["examples"], examples.count)
    found = collect.gathered(
        functions,
        params,
        examples,
        mesh,
        folder / "sums",
        int(storage.digest(step.key, examples.digest)[:8], 16),
        count=total,
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        save_every=total,
        told=lambda done, new: tick(0.95 * done / total, step.name),
    )
    means = statistics.means(found.sums, found.examples, found.tokens)
    checkpoints.save(folder / "checkpoint", means[settings["statistics"]])
    if processes.is_first():
        storage.remove(folder / "sums")
    return {"examples": found.examples, "tokens": found.tokens}


def restore(
    experiment: Experiment, store: Store, step: Step, mesh: Mesh | None
) -> tree.Tree:
    """Return a finished step's statistics, on the mesh; called by all processes.

    Raises:
      Broken: the checkpoint is damaged.
    """
    like = _functions(step, experiment, mesh).abstract[step.settings["statistics"]]
    return restoring.restore_like(store, step, like, mesh)


def _functions(step: Step, experiment: Experiment, mesh: Mesh | None) -> Collector:
    decoder = dataclasses.replace(
        experiment.decoder(step.settings["size"], step.settings["base"]),
        param_dtype="float32",
        bos_id=experiment.suite.tokenizer.bos_id,
    )
    kinds = (step.settings["statistics"],)
    return statistics.collector(decoder, models.abstract(decoder, mesh), kinds, mesh)
