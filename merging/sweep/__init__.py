"""The experiment grid: train, merge, evaluate, report; every step resumable."""

from pathlib import Path
from typing import Any

from merging import report
from merging.runtime import processes, results
from merging.sweep.driver import finish, open_store
from merging.sweep.gates import gates
from merging.sweep.rows import rows
from merging.sweep.settings import Settings, read
from merging.sweep.status import status
from merging.sweep.steps import Grid, part, with_needs
from merging.sweep.store import Store

__all__ = ["Settings", "gates", "run", "status"]


def run(config: Any, workdir: Path | str, shard: tuple[int, int] = (0, 1)) -> Path:
    """Do what is left of a sweep, then write its rows and report.

    Of several processes that a launcher numbered (see `distributed.place`), each is one
    worker among those that share the workdir, and number 0 alone reports.

    Args:
      config: a sweep's config, see configs/scaling_curves/tiny.py.
      workdir: where every finished step is kept; continued if it holds this config's.
      shard: (i, n): do the i-th of n parts of the grid only.

    Returns:
      The report's page; the workdir where the part is empty, or another reports.

    Raises:
      UserError: a config that can't be run, or another config's workdir.
    """
    number, _ = processes.process_id()
    if number:
        processes.print_apart(Path(workdir) / "logs", number)
    settings = read(config)
    grid = Grid(settings)
    store, config_hash = open_store(config, workdir)
    every = grid.targets()
    chosen = part(every, *shard)
    if not chosen:
        print(f"part {shard[0]} of {shard[1]} of this grid is empty: nothing to do.")
        return store.workdir
    try:
        finish(chosen, settings, store, "sweep")
    except BaseException:
        # What is finished stays usable when the rest fails.
        _record(grid, store, config_hash, report_too=False)
        raise
    found, page = _record(grid, store, config_hash, report_too=number == 0)
    if number:
        return store.workdir
    print(report.summary_text(found))
    print(f"\n{len(found)} result rows: {store.results}\nReport: {page}")
    return page


def _record(
    grid: Grid, store: Store, config_hash: str, *, report_too: bool
) -> tuple[list[results.Row], Path]:
    """Write the rows of all that is finished, and the report when they changed.

    One process at a time: the last of several that share the workdir sees every row.
    """
    page = store.workdir / "report" / "index.html"
    with store.alone("results"):
        found = rows(grid, with_needs(grid.targets()), store, config_hash)
        before = store.results.read_bytes() if store.results.exists() else b""
        results.write(store.results, found)
        if store.results.read_bytes() != before:
            page.unlink(missing_ok=True)
        if report_too and not page.exists():
            report.write_report(found, store.workdir / "report")
    return found, page
