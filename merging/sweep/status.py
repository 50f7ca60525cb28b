"""The state of a workdir's grid: done, running, failed, and the time left."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from merging.runtime.errors import UserError
from merging.runtime.text import duration
from merging.sweep.settings import read
from merging.sweep.steps import Grid, Step, with_needs
from merging.sweep.store import Broken, Store

STATES = ("done", "running", "failed", "stopped", "waiting")


class Doing(NamedTuple):
    """A step that someone works on, or worked on and did not finish.

    Attributes:
      state: "running", "failed" or "stopped".
      who: the process.
      silent: seconds since its last heartbeat.
      note: what it said last; of a failed one the error's first line.
      share: of the step, 0 to 1.
    """

    state: str
    who: str
    silent: float
    note: str
    share: float


def status(workdir: Path | str) -> str:
    """Return a table of a sweep's workdir in words; changes nothing in it.

    Raises:
      UserError: it holds no sweep.
    """
    store = Store(Path(workdir))
    steps = with_needs(_grid(store).targets())
    done = [step for step in steps if store.finished(step)]
    finished = {step.key for step in done}
    doing = {
        step: found
        for step in steps
        if step.key not in finished and (found := _doing(store, step))
    }
    lines = [_table(steps, finished, doing)]
    for state in ("running", "failed", "stopped"):
        lines += _listed(state, doing)
    lines.append(_left(store, steps, done, doing))
    return "\n".join(lines)


def _grid(store: Store) -> Grid:
    path = store.workdir / "config.json"
    try:
        config = json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{store.workdir} holds no sweep (no config.json that can be read); name "
            "the --workdir of one."
        ) from None
    return Grid(read(ConfigDict(config)))


def _doing(store: Store, step: Step) -> Doing | None:
    found = store.holder(step)
    if found is None:
        return None
    holder, changed = found
    state, silent = holder.state, max(0.0, time.time() - changed)
    # Its machine may count time differently, so this is a guess; taking over is not.
    if state == "running" and (holder.gone() or silent > store.claims.expires):
        state = "stopped"
    who = f"{holder.host}, process {holder.pid}"
    return Doing(state, who, silent, holder.note, holder.share)


def _table(steps: list[Step], finished: set[str], doing: dict[Step, Doing]) -> str:
    counts: dict[str, Counter[str]] = {}
    for step in steps:
        state = "waiting"
        if step.key in finished:
            state = "done"
        elif step in doing:
            state = doing[step].state
        counts.setdefault(step.kind, Counter())[state] += 1
    rows = [["step", *STATES, "all"]]
    for kind, of in counts.items():
        rows.append([kind, *(str(of[s]) for s in STATES), str(of.total())])
    whole = sum(counts.values(), Counter())
    rows.append(["all", *(str(whole[s]) for s in STATES), str(whole.total())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    )


def _listed(state: str, doing: dict[Step, Doing]) -> list[str]:
    lines = []
    for step, found in doing.items():
        if found.state != state:
            continue
        said = found.note if found.note != step.name else ""
        lines.append(
            f"{state}  {step.name}  {found.share:.0%}  {found.who}, heard "
            f"{duration(found.silent)} ago{'  ' + said if said else ''}"
        )
    return [f"\n{lines[0]}", *lines[1:]] if lines else []


def _left(
    store: Store, steps: list[Step], done: list[Step], doing: dict[Step, Doing]
) -> str:
    """Return the time left at the speed of the finished steps' workers."""
    left = sum(step.cost for step in steps) - sum(step.cost for step in done)
    left -= sum(found.share * step.cost for step, found in doing.items())
    if len(done) == len(steps):
        return "\nAll is done."
    working = sum(found.state == "running" for found in doing.values())
    if not working:
        return "\nNobody works on it; `merging sweep` with its config goes on."
    cost = seconds = 0.0
    for step in done:
        try:
            seconds += store.output(step)["wall_seconds"]
        except (Broken, KeyError):
            continue
        cost += step.cost
    if not cost:
        return f"\n{working} steps running; time left unknown."
    needed = duration(left * seconds / cost / working)
    return f"\n{working} steps running; about {needed} left at this rate."
