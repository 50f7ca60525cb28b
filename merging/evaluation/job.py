"""A checkpoint's scores on a suite, kept dataset by dataset; and two of them compared.

The logic of `merging evaluate`. A finished dataset is a file in the workdir, named
after all that its values depend on: the same command continues, and redoes nothing.
"""

import functools
import io
import time
from pathlib import Path
from typing import Any

from merging import evaluation, tasks
from merging.evaluation import comparison, export, store, tables
from merging.evaluation.model import Opened, bind, compilation, open_suite, opened
from merging.evaluation.rows import reference, rows
from merging.evaluation.running import Work, evaluated, key, read_work
from merging.evaluation.settings import Settings, read
from merging.runtime import preemption, processes, results
from merging.runtime.config import config_hash
from merging.runtime.errors import Preempted
from merging.runtime.progress import EventLog, Progress
from merging.runtime.revision import git_revision

__all__ = ["compare", "run"]


def run(config: Any, workdir: Path) -> None:
    """Evaluate what a config names, and print a table; see `configs/evaluate/`.

    Raises:
      UserError: a config, checkpoint, tokenizer or dataset that can't be used, or a
        model that does not know the tokenizer's tokens.
      Preempted: the system asked to stop; finished datasets are kept.
    """
    processes.initialize(workdir / "logs")
    settings = read(config)
    base = reference(settings.base_results, settings)
    expert = reference(settings.expert_results, settings)
    model = opened(settings)
    suite = open_suite(settings, model)
    keys = {name: key(settings, model, suite, name) for name in settings.names(suite)}
    missing = processes.broadcast(
        lambda: [name for name, k in keys.items() if not store.load(workdir, name, k)]
    )
    if missing:
        _evaluate(settings, model, suite, workdir, {n: keys[n] for n in missing})
    if processes.is_first():
        records = [store.load(workdir, name, k) for name, k in keys.items()]
        store.listed(workdir, keys, {"model": model.uri, "suite": suite.name})
        summaries = [tables.summary(record, settings) for record in records]
        made = rows(settings, model, summaries, base, expert, config_hash(config))
        path = results.write(workdir / results.FILE, made)
        exported = export.write(workdir, settings, model, summaries)
        print(tables.table(summaries, settings).text())
        print("\n".join(tables.notes(summaries)))
        print(f"Rows: {path}\nFor lm-evaluation-harness's readers: {exported}")
    processes.barrier("the results are written")


def compare(one: Path, other: Path) -> str:
    """Return the table of two workdirs' values and their differences.

    Raises:
      UserError: a workdir without a finished evaluation, or two that did not answer the
        same examples of any dataset.
    """
    found = comparison.compared(one, other)
    return f"{found.title}\n{found.text()}"


def _evaluate(
    settings: Settings,
    model: Opened,
    suite: tasks.Suite,
    workdir: Path,
    keys: dict[str, str],
) -> None:
    first = processes.is_first()
    say = print if first else (lambda text: None)
    progress = functools.partial(Progress, stream=None if first else io.StringIO())
    works: list[Work] = []
    with progress(len(keys), "reading", check=preemption.raise_if_asked) as shown:
        for name in keys:
            works.append(read_work(settings, model, suite, name, workdir / "data"))
            shown.advance(note=name)
    for line in filter(None, (work.warning for work in works)):
        say(line)
    sets = [one for work in works for one in work.eval_sets]
    shapes = evaluation.chosen_shapes(sets, compilation(model))
    say(f"Reading {model.parameters / 1e6:,.1f}M parameters of {model.uri}.")
    bound = bind(settings, model)
    log = EventLog(workdir / "events.jsonl" if first else None)
    total = sum(work.cost for work in works)
    with progress(total, "evaluating", log=log, check=_stop) as shown:
        for work in works:
            start, name = time.monotonic(), work.dataset.name
            tick = functools.partial(shown.advance, note=name)
            record = evaluated(work, bound, settings.batch_size, shapes, tick)
            record["seconds"] = round(time.monotonic() - start, 3)
            record["git_revision"] = git_revision()
            if first:
                store.save(workdir, keys[name], record)


def _stop() -> None:
    # Between the same two batches on every process, which meet in collectives.
    if processes.preempted():
        raise Preempted("stopped by SIGTERM")
