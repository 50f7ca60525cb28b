"""A collect step: an expert's statistics, for methods that merge by some.

They are of the expert's own training examples, as `merging collect` gathers them, and
lie as a checkpoint in the step's folder. Gram matrices are several times a wide model:
a merge reads those of one leaf at a time from there.
"""

import dataclasses
import itertools
from collections.abc import Callable

from jax.sharding import Mesh

from merging import checkpoints, methods, models, tasks, training
from merging.runtime import processes, storage, text, tree
from merging.runtime.errors import UserError
from merging.sweep import restoring
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Store
from merging.training import batches, collect, statistics


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
    kind = settings["statistics"]
    decoder = dataclasses.replace(
        experiment.decoder(settings["size"], settings["base"]),
        param_dtype="float32",
        bos_id=suite.tokenizer.bos_id,
    )
    functions = statistics.collector(
        decoder, models.abstract(decoder, mesh), (kind,), mesh
    )
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
    checkpoints.save(folder / "checkpoint", means[kind])
    if processes.is_first():
        storage.remove(folder / "sums")
    return {"examples": found.examples, "tokens": found.tokens}


def stored(
    experiment: Experiment, store: Store, step: Step, mesh: Mesh | None
) -> tree.Tree:
    """Return a finished step's statistics as leaves that stay in storage.

    Raises:
      Broken: the checkpoint is damaged; also where a leaf is read.
    """
    kind = step.settings["statistics"]
    decoder = experiment.decoder(step.settings["size"], step.settings["base"])
    like = statistics.abstract_sums(decoder, (kind,))[kind]
    return restoring.stored_like(store, step, like, mesh)


def beside(
    experiment: Experiment, size: str, kind: str, experts: int, mesh: Mesh | None
) -> int:
    """Return the most bytes of a device that experts' statistics take in a merge."""
    return experts * max(
        statistics.bytes_beside(experiment.decoder(size, base), kind, mesh)
        for base in experiment.bases
    )


def require_room(experiment: Experiment, mesh: Mesh | None) -> None:
    """Refuse a grid whose statistics the devices can't gather or merge by.

    Raises:
      UserError: of some size they can't; says what would do.
    """
    room = restoring.room(experiment)
    for name in experiment.methods if room else ():
        method = methods.get(name, **experiment.candidates(name)[0])
        if method.statistics is None:
            continue
        kind, most = method.statistics.name, max(experiment.counts(name))
        for size, base in itertools.product(experiment.sizes, experiment.bases):
            decoder = experiment.decoder(size, base)
            whole = room / restoring.FILLED
            statistics.require_room(decoder, (kind,), mesh, whole, f"{size} {base}")
            told = beside(experiment, size, kind, most, mesh)
            if not restoring.fits(experiment, size, 0, mesh, told):
                raise UserError(
                    f"{size}: {name} of {most} experts takes {text.size(told)} of each "
                    f"device for a leaf's {kind} statistics, beside two models of "
                    f"{text.size(restoring.model_bytes(experiment, size, mesh))}, and "
                    f"models may fill {text.size(room)}: merge fewer experts, or leave "
                    f"{name} out."
                )
