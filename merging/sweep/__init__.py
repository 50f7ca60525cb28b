"""The experiment grid: train, merge, evaluate, report; every step resumable.

The room is named as what it does: `merging.sweep(config, workdir)` is
`merging.sweep.sweep`.
"""

import contextlib
import sys
from typing import Any

from ml_collections import ConfigDict

from merging.report import report, summary_text
from merging.runtime import processes, results, storage, workdir
from merging.runtime.errors import UserError
from merging.runtime.naming import callable_as
from merging.runtime.storage import Folder
from merging.sweep import runners
from merging.sweep.driver import finish, open_store
from merging.sweep.experiment import Experiment
from merging.sweep.finished import groups
from merging.sweep.reading import planned, read
from merging.sweep.rows import rows
from merging.sweep.status import status
from merging.sweep.steps import Grid, part, with_needs
from merging.sweep.store import Store

__all__ = ["Experiment", "Grid", "Store", "finish", "open_store", "read", "status"]
__all__ += ["groups", "planned", "rows", "sweep", "with_needs"]


def sweep(config: Any, folder: Folder | str, shard: tuple[int, int] = (0, 1)) -> Folder:
    """Do what is left of a sweep, then write its rows and report.

    Called by every process of a job, it runs each step on all their devices together
    (`mesh`). Stopped at any moment and called again, on any number of devices and
    processes, it goes on.

    Args:
      config: a sweep's config, see configs/scaling_curves/tiny.py.
      folder: the workdir, here or in `gs://`, where every finished step is kept;
        continued if it holds this config's, also under another grid (`reading.GRID`).
      shard: (i, n): do the i-th of n parts of the grid only, in a workdir of its own.

    Returns:
      The report's page; the workdir where the part is empty.

    Raises:
      UserError: a config that can't be run, another config's workdir, or one in which
        another process works.
      Preempted: the system asked to stop; what is finished is kept.

    >>> import merging
    >>> from merging.runtime import config
    >>> small = {"bases": "pt", "methods": "average", "experts_merged": "2"}
    >>> small |= {"data.categories": "sentiment,paraphrase,coreference"}
    >>> trainings = ("pretraining", "expert", "multitask")
    >>> small |= {f"{name}.steps": "2" for name in trainings} | {"runner": "inline"}
    >>> smoke = config.load("configs/scaling_curves/smoke.py", small)
    >>> merging.sweep(smoke, "curves")  # doctest: +ELLIPSIS
    size  base  method ...
    Report: .../curves/report/index.html...
    """
    together = _joined(config, folder)
    experiment = read(config)
    if runners.chosen(experiment)[0] == "inline":
        runners.devices(experiment)  # refused before the workdir is taken
    grid = Grid(experiment)
    chosen = part(grid.targets(), *shard)
    store, config_hash = open_store(config, folder, together)
    with contextlib.ExitStack() as held:
        only = workdir.only_driver(store.workdir)
        store.once(lambda: bool(held.enter_context(only)))
        # Again: before the lock, another config's driver may have made it its own.
        open_store(config, folder, together, locked=True)
        store.keep_part(shard)
        if not chosen:
            _record(grid, store, config_hash, report_too=False)
            print(f"part {shard[0]} of {shard[1]} of this grid is empty: nothing to do")
            return store.workdir
        try:
            finish(chosen, experiment, store, "sweep")
        except BaseException:
            if not together or processes.is_first():
                _keep_rows(grid, store, config_hash)
            raise
        return _record(grid, store, config_hash, report_too=True)


def _joined(config: Any, folder: Folder | str) -> bool:
    """Join the other processes of this job, if there are any, and say whether."""
    number, count = processes.process_id()
    local = isinstance(config, ConfigDict) and config.get("runner") == "local"
    if local and count > 1:
        raise UserError(
            f"this is process {number} of {count}, and the local runner's driver is one"
            " process: let them do each step together (--runner inline), start it once,"
            " or give each machine a part and a workdir of its own (--shard i/n); "
            "`merging report` joins their rows."
        )
    return not local and processes.initialize(
        storage.place(folder, "--workdir") / "logs"
    )


def _keep_rows(grid: Grid, store: Store, config_hash: str) -> None:
    """Write the rows of what is finished, which stays usable when the rest fails."""
    try:
        _write(grid, Store(store.workdir), config_hash, report_too=False)
    except Exception as error:  # why the rest failed is what has to be told
        print(f"warning: {store.results} is not up to date: {error}", file=sys.stderr)


def _record(grid: Grid, store: Store, config_hash: str, *, report_too: bool) -> Folder:
    """Have one process write the rows and the report, and tell of them."""

    def write() -> str:
        alone = Store(store.workdir)
        found, page = _write(grid, alone, config_hash, report_too=report_too)
        if report_too:
            print(summary_text(found))
            print(f"\n{len(found)} result rows: {store.results}\nReport: {page}")
        return str(page)

    return storage.place(store.once(write))


def _write(
    grid: Grid, store: Store, config_hash: str, *, report_too: bool
) -> tuple[list[results.Row], Folder]:
    """Write the rows of all that is finished, and the report when they changed."""
    store.look()
    page = store.workdir / "report" / "index.html"
    found = rows(grid, with_needs(grid.targets()), store, config_hash)
    lines = results.lines(found)
    if not store.results.exists() or store.results.read_bytes() != lines:
        # First, or a kill in between would leave it beside rows that it doesn't show.
        page.unlink(missing_ok=True)
        storage.write_bytes(store.results, lines)
    if report_too and not page.exists():
        runs = workdir.runs([store.workdir])
        report(found, store.workdir / "report", runs)
    return found, page


callable_as(__name__, sweep)
