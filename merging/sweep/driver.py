"""From wanted steps to finished ones: what is left, and how far along it is."""

import copy
import json
import sys
from collections.abc import Sequence
from typing import Any

from merging.runtime import config as configs
from merging.runtime import processes, storage
from merging.runtime import workdir as runtime_workdir
from merging.runtime.progress import EventLog, Progress
from merging.runtime.storage import Folder
from merging.runtime.text import duration
from merging.sweep import collecting, restoring, runners
from merging.sweep.experiment import Experiment
from merging.sweep.reading import GRID, HOW
from merging.sweep.steps import Step, with_needs
from merging.sweep.store import Broken, Store

_BASES = ("pretrain", "instruct", "load")


def open_store(
    config: Any, workdir: Folder | str, together: bool = False, *, locked: bool = False
) -> tuple[Store, str]:
    """Return the workdir as this config's store, and the config's hash.

    `reading.HOW` says how to run, not what: changing it continues the run. So does
    another grid (`reading.GRID`): what is finished of it is done.

    Args:
      config: a sweep's.
      workdir: is made if it isn't there.
      together: as `Store` has it.
      locked: whether the caller is the workdir's only driver. Until then the grid of
        one who works there stays as it is.

    Raises:
      UserError: the workdir holds another config's run, or something else.
    """
    identity = copy.deepcopy(config)
    with identity.unlocked():
        for name in HOW:
            if name in identity:
                del identity[name]
    config_hash = configs.config_hash(identity)
    store = Store(storage.place(workdir, "--workdir"), together)
    plain = json.loads(json.dumps(identity.to_dict()))

    def claim() -> None:
        moved = runtime_workdir.moved(store.workdir, plain, GRID)
        if not moved:
            runtime_workdir.claim(store.workdir, plain, config_hash, "sweep")
        elif locked:
            runtime_workdir.renew(store.workdir, plain, config_hash)
            told = ", ".join(
                f"{name} {json.dumps(asked)} (was {json.dumps(held)})"
                for name, (held, asked) in moved.items()
            )
            text = f"sweep: {store.workdir} has another grid from now on: {told}"
            print(f"{text}; what is finished of it is kept", file=sys.stderr)

    store.once(claim)
    return store, config_hash


def finish(
    targets: Sequence[Step], experiment: Experiment, store: Store, label: str
) -> None:
    """Do every step that the targets need and that is not finished yet."""
    every = with_needs(targets)
    alone = Store(store.workdir)  # what one process asks it, for all
    unfinished = store.once(lambda: [step.key for step in _pending(targets, alone)])
    pending = [step for step in every if step.key in set(unfinished)]
    if not pending:
        print(f"{label}: nothing to do, all is in {store.workdir}", file=sys.stderr)
        return
    total = sum(step.cost for step in every)
    runner, workers = runners.chosen(experiment)
    print(
        f"{label}: {len(pending)} of {len(every)} steps to do, {runner}, {workers} at "
        f"a time{runners.placed(experiment, runner)}; finished ones stay in "
        f"{store.workdir}",
        file=sys.stderr,
    )
    if runner == "inline":
        mesh = runners.devices(experiment)
        collecting.require_room(experiment, mesh)
        for line in restoring.notes(experiment, mesh):
            print(f"{label}: {line}", file=sys.stderr)
    first = not store.together or processes.is_first()
    log = EventLog(store.workdir / "events.jsonl" if first else None)
    with Progress(total, label, log=log) as progress:
        progress.skip(total - sum(step.cost for step in pending))
        runners.run(pending, experiment, store, progress)
    print(f"{label}: done in {duration(progress.elapsed)}", file=sys.stderr)


def _pending(targets: Sequence[Step], store: Store) -> list[Step]:
    """Return the unfinished steps, leaving out what only finished ones need.

    A finished step whose record can't be read is forgotten, with a warning.
    """
    ordered = with_needs(targets)
    store.look()
    for step in ordered:
        if store.finished(step):
            try:
                store.output(step)
            except Broken as broken:
                print(f"warning: {broken}; doing that step again", file=sys.stderr)
                store.discard(step)
    front, wanted = list(targets), set()
    while front:
        step = front.pop()
        if step.key not in wanted and not store.finished(step):
            wanted.add(step.key)
            front += step.needs
    # Rows compare every model with its base.
    bases = {n.key for s in ordered for n in s.needs if n.kind in _BASES}
    wanted |= {s.key for s in ordered if s.key in bases and not store.finished(s)}
    return [step for step in ordered if step.key in wanted]
