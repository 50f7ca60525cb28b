"""A merge step: each λ and density is tried where the models are; the best is scored.

Candidates are merged one after the other into the same buffers, by the engine's jitted
functions, and scored right there. Nothing goes through storage but what is kept.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from jax.sharding import Mesh

from merging import checkpoints, methods, models
from merging.merge import merge, merge_scales
from merging.models import hf as families
from merging.runtime import processes, storage
from merging.runtime.errors import UserError
from merging.sweep import collecting, restoring, scoring
from merging.sweep.experiment import Experiment
from merging.sweep.steps import Step
from merging.sweep.store import Store


def run(
    step: Step,
    experiment: Experiment,
    store: Store,
    tick: Callable[..., None],
    mesh: Mesh | None,
) -> dict:
    """Merge a step's experts and score the result; return the step's output.

    Raises:
      UserError: λ or density is to be chosen, and every expert scores 0.
    """
    decoder = experiment.decoder(step.settings["size"], step.settings["base"])
    base, *needs = step.needs
    experts = [need for need in needs if need.kind == "expert"]
    collected = [need for need in needs if need.kind == "collect"]
    theirs = {}
    for expert in experts:
        theirs |= store.output(expert)["validation"]
    candidates = step.settings["candidates"]
    if len(candidates) > 1 and not any(value > 0 for value in theirs.values()):
        names = " and ".join(e.settings["what"] for e in experts)
        raise UserError(
            f"{names}: no expert scores above 0 on its own validation examples "
            f"({', '.join(sorted(theirs))}), so there is no ratio to choose λ by: are "
            "these experts of these tasks, in their own prompt format?"
        )
    bring, size, beside = restoring.restore, step.settings["size"], 0
    if collected:
        kind = collected[0].settings["statistics"]
        beside = collecting.beside(experiment, size, kind, len(collected), mesh)
    if not restoring.fits(experiment, size, len(experts), mesh, beside):
        bring = restoring.stored
        restoring.forget(experts)
    base = restoring.restore(experiment, store, base, mesh)
    ours = {e.settings["what"]: bring(experiment, store, e, mesh) for e in experts}
    told = {
        of.settings["what"]: collecting.stored(experiment, store, of, mesh)
        for of in collected
    }
    tried, best, params = [], 0, None
    if len(candidates) > 1:
        merged = _merges(step, base, ours, told, candidates)
        for number in range(len(candidates)):
            params = None  # its memory is the next one's
            params = next(merged)
            tick(number / (len(candidates) + 3))
            values = scoring.scores(
                *(experiment, decoder, params, "validation", set(theirs)),
                *(store.data, mesh),
            )
            ratios = [values[d] / theirs[d] for d in values if theirs[d] > 0]
            tried.append(float(np.mean(ratios)))
        best = int(np.argmax(tried))
    if params is None or best < len(candidates) - 1:
        params = None
        (params,) = _merges(step, base, ours, told, [candidates[best]])
    if experiment.keep_merges:
        _keep(experiment, step, params, store, decoder)
    everything = {d.name for d in experiment.suite.datasets}
    return {
        "parameters": _described(candidates, best),
        "validation": tried,
    } | scoring.tested(experiment, decoder, params, everything, store.data, mesh)


def _merges(
    step: Step,
    base: models.Params,
    experts: dict,
    statistics: dict,
    candidates: list[dict],
) -> Iterator[models.Params]:
    """Yield the merge for each candidate; what λ does not touch is computed once.

    Each may be written over once the next is asked for.
    """
    name = step.settings["method"]
    how = {"seed": step.settings["seed"], "statistics": statistics or None}
    without = [{k: v for k, v in c.items() if k != "scale"} for c in candidates]
    for rest, group in itertools.groupby(
        zip(without, candidates, strict=True), key=lambda pair: pair[0]
    ):
        scales = [c["scale"] for _, c in group if "scale" in c]
        method = methods.get(name, **rest)
        if scales:
            yield from merge_scales(base, experts, method, scales, reuse=True, **how)
        else:
            yield merge(base, experts, method, **how)


def _described(candidates: list[dict], best: int) -> dict:
    """Return the chosen parameters, and whether λ is at the end of its grid."""
    chosen = dict(candidates[best])
    scales = sorted({c["scale"] for c in candidates if "scale" in c})
    if len(scales) > 1:
        chosen["scale_at_edge"] = chosen["scale"] in (scales[0], scales[-1])
    return chosen


def _keep(
    experiment: Experiment,
    step: Step,
    params: models.Params,
    store: Store,
    decoder: models.DecoderConfig,
) -> None:
    """Write a merged model beside its step's output, with what says what it is."""
    folder = store.partial(step) / "checkpoint"
    checkpoints.save(folder, params)
    tokenizer = experiment.suite.tokenizer
    start = experiment.folder(step.settings["size"], step.settings["base"])
    if processes.is_first():
        for name, content in families.files_of_trained(
            decoder, start, tokenizer=tokenizer.files, eos_id=tokenizer.eos_id
        ).items():
            storage.write_bytes(folder / name, content)
