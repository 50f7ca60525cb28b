"""The state of a workdir's grid: done, running, failed, and the time left."""

from collections import Counter

from merging.runtime import storage, text, workdir
from merging.runtime.storage import Folder
from merging.sweep.finished import grid_of
from merging.sweep.steps import Step, part, with_needs
from merging.sweep.store import Broken, Store

STATES = ("done", "begun", "failed", "waiting")


def status(folder: Folder | str) -> str:
    """Return a table of a sweep's workdir in words; changes nothing in it.

    Raises:
      UserError: it holds no sweep.
    """
    store = Store(storage.place(folder, "--workdir"))
    store.look()
    steps = with_needs(part(grid_of(store).targets(), *store.part()))
    states = {step: _state(store, step) for step in steps}
    counts: dict[str, Counter[str]] = {}
    for step, state in states.items():
        counts.setdefault(step.kind, Counter())[state] += 1
    counts["all"] = sum(counts.values(), Counter())
    rows = [["step", *STATES, "all"]]
    rows += [[k, *(of[s] for s in STATES), of.total()] for k, of in counts.items()]
    lines = [text.table(rows, right=range(1, len(STATES) + 2))]
    for state in ("begun", "failed"):
        listed = [step for step in steps if states[step] == state]
        lines += ["", *(_line(store, step, state) for step in listed)] * bool(listed)
    lines += ["", _driver(store), _left(store, states)]
    return "\n".join(line for line in lines if line is not None)


def _state(store: Store, step: Step) -> str:
    if store.finished(step):
        return "done"
    if store.failure(step) is not None:
        return "failed"
    return "begun" if store.begun(step) else "waiting"


def _line(store: Store, step: Step, state: str) -> str:
    reason = store.failure(step)
    return f"{state}  {step.name}" + (f"  {reason}" if reason else "")


def _driver(store: Store) -> str:
    """Return who works here."""
    found = workdir.driver(store.workdir)
    if found is None or found["alive"] is False:
        return "Nobody works on it; `merging sweep` with its config goes on."
    sure = "" if found["alive"] else " (its machine would know whether it still does)"
    return (
        f"Process {found['pid']} on {found['host']} works on it, since "
        f"{found['since']}{sure}."
    )


def _left(store: Store, states: dict[Step, str]) -> str | None:
    """Return the time left of one worker, at the speed of the finished steps."""
    left = sum(step.cost for step, state in states.items() if state != "done")
    if not left:
        return "All is done."
    cost = seconds = 0.0
    for step, state in states.items():
        if state == "done":
            try:
                seconds += store.output(step)["wall_seconds"]
            except (Broken, KeyError):
                continue
            cost += step.cost
    if not cost:
        return None
    needed = text.duration(left * seconds / cost)
    return f"About {needed} of one worker's time left, at the rate so far."
