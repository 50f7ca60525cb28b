"""Getting suite t0's datasets into a data directory, and saying what is there.

Downloads are TFDS's own, or Hugging Face's library writing JSON lines. Every host is
asked first whether it answers, since both libraries try for minutes where none does.
"""

import contextlib
import importlib.util
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.tasks.contamination import Overlap, check
from merging.tasks.t0 import sources, tables
from merging.tasks.t0.entries import Entry, cut
from merging.tasks.t0.rendering import content
from merging.tasks.t0.sources import Located

HUB = "huggingface.co"
PATIENCE = 3.0  # seconds that all hosts together have to answer
# Where the hub keeps what it made of datasets that are scripts, which never run here.
_CONVERTED = "refs/convert/parquet"


class State(NamedTuple):
    """What became of a dataset.

    Attributes:
      dataset: its name.
      ready: whether it can be used.
      about: where it lies and how much of it, or why not and how to get it.
    """

    dataset: str
    ready: bool
    about: str


def prepare(
    data_dir: Path,
    only: Iterable[str] = (),
    *,
    reachable: Callable[[Iterable[str]], set[str]] | None = None,
) -> Iterator[State]:
    """Fetch what is missing and can be fetched; yield the state of each dataset.

    Args:
      data_dir: made if it does not exist.
      only: names; all by default.
      reachable: hosts → those that answer (``answering``).

    Raises:
      UserError: an unknown name.
    """
    entries = [tables.entry(name) for name in only or tables.names()]
    data_dir.mkdir(parents=True, exist_ok=True)
    hosts = {h for e in entries for h in _hosts(e) if _is_wanted(e, data_dir)}
    answered = (reachable or answering)(hosts) if hosts else set()
    for entry in entries:
        wanted = _is_wanted(entry, data_dir)
        reason = _fetch(entry, data_dir, answered) if wanted else ""
        yield _state(entry, data_dir, reason)


def overlaps(data_dir: Path, only: Iterable[str] = ()) -> list[Overlap]:
    """Return what the evaluation of any dataset shares with any one's training.

    Evaluation is "test" and "validation" of every dataset that is ready; training is
    "train" of those that are held in.
    """
    entries = [tables.entry(name) for name in only or tables.names()]
    located = {e: sources.locate(e, data_dir) for e in entries}
    located = {e: found for e, found in located.items() if not found.problem}
    evaluated = {
        f"{e.name} ({split})": _contents(e, found, split)
        for split in ("test", "validation")
        for e, found in located.items()
    }
    trained = {
        e.name: _contents(e, found, "train")
        for e, found in located.items()
        if e.split == "held_in"
    }
    return check(evaluated, trained)


def answering(hosts: Iterable[str], patience: float = PATIENCE) -> set[str]:
    """Return the hosts that answer over HTTPS, through a proxy if one is set.

    Never takes longer than the patience: looking a name up can hang, so that every
    host has a thread, and those that are late are left behind.
    """
    answered: set[str] = set()
    threads = [
        threading.Thread(target=_ask, args=(host, answered, patience), daemon=True)
        for host in hosts
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return set(answered)


def _ask(host: str, answered: set[str], patience: float) -> None:
    request = urllib.request.Request(f"https://{host}/", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=patience).close()
    except urllib.error.HTTPError:
        pass  # it answers, if only with an error
    except (OSError, ValueError):
        return
    answered.add(host)


def _hosts(entry: Entry) -> tuple[str, ...]:
    return entry.source.hosts + ((HUB,) if entry.source.huggingface else ())


def _is_wanted(entry: Entry, data_dir: Path) -> bool:
    """Return whether to fetch a dataset; no builder completes files of one's own."""
    located = sources.locate(entry, data_dir)
    open_ways = located.kind != "files" or entry.source.huggingface
    return bool(located.problem and open_ways)


def _contents(entry: Entry, located: Located, split: str) -> Iterable[list[str]]:
    for record in sources.records(entry, located, split):
        yield content(entry, record)


def _fetch(entry: Entry, data_dir: Path, answered: set[str]) -> str:
    """Fetch a dataset by the ways that are open; return why none of them worked."""
    reasons = []
    if entry.source.tfds and not entry.source.manual:
        silent = [host for host in entry.source.hosts if host not in answered]
        failed = _no_answer(silent) if silent else _try(_from_tfds, entry, data_dir)
        reasons += [failed] if failed else []
    if entry.source.huggingface and (reasons or not entry.source.hosts):
        failed = _unable(answered) or _try(_from_hub, entry, data_dir)
        reasons += [failed] if failed else []
        if not failed:
            return ""
    return "; ".join(reasons)


def _no_answer(hosts: Iterable[str]) -> str:
    return f"no answer from {', '.join(sorted(hosts))}"


def _unable(answered: set[str]) -> str:
    if importlib.util.find_spec("datasets") is None:
        return "the package `datasets` is not installed"
    return "" if HUB in answered else _no_answer([HUB])


def _try(fetch: Callable[[Entry, Path], None], entry: Entry, data_dir: Path) -> str:
    try:
        fetch(entry, data_dir)
    except Exception as error:  # of a download, anything: the next one may work
        told = (str(error).splitlines() or [""])[0]
        return f"the download failed ({type(error).__name__}: {told})"
    return ""


def _from_tfds(entry: Entry, data_dir: Path) -> None:
    from merging.tasks.backend import load_seqio

    load_seqio()
    import tensorflow_datasets as tfds

    for name in entry.source.tfds:
        # What TFDS tells in between does not belong into our table.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
            builder.download_and_prepare()


def _from_hub(entry: Entry, data_dir: Path) -> None:
    import datasets

    for part in entry.source.examples:
        where = {"path": entry.source.huggingface[0], "split": part}
        if entry.source.huggingface[1:]:
            where["name"] = entry.source.huggingface[1]
        try:
            found = datasets.load_dataset(**where)
        except (RuntimeError, ValueError):
            found = datasets.load_dataset(**where, revision=_CONVERTED)
        write_part(entry, data_dir, part, found)


def write_part(
    entry: Entry, data_dir: Path, part: str, records: Iterable[Mapping[str, Any]]
) -> None:
    """Write the fields of records that the dataset's table reads as JSON lines.

    Nobody sees the file before it is whole. It is written line by line, as some are
    larger than memory.
    """
    keys = dict.fromkeys(place.split(".")[0] for place in entry.places)
    path = sources.file_of(entry, data_dir, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: the same command may run elsewhere.
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in records:
                kept = {key: record[key] for key in keys}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    storage.sync_folder(path.parent)


def _state(entry: Entry, data_dir: Path, reason: str) -> State:
    located = sources.locate(entry, data_dir)
    if problem := located.problem or _fault(entry, located):
        why = "; ".join(filter(None, [problem, reason]))
        return State(entry.name, False, f"{why}\n{remedy(entry, data_dir)}")
    counts = ", ".join(f"{part} {count:,}" for part, count in located.counts.items())
    lines = [f"{located.folders[0]}: {counts}"]
    for part, count in located.counts.items():
        known = entry.source.examples[part]
        if count != known:
            lines.append(f"differs: {part} has {known:,} examples elsewhere")
    return State(entry.name, True, "\n".join(lines))


def _fault(entry: Entry, located: Located) -> str:
    """Return what is wrong with lines of a dataset's files, which are all read."""
    if located.kind != "files":
        return ""
    try:
        for split in entry.parts:
            sources.require_sound(entry, located, split)
    except UserError as error:
        return str(error)
    return ""


def remedy(entry: Entry, data_dir: Path) -> str:
    """Return how to get a dataset that is not there, in lines."""
    lines = []
    if entry.source.tfds:
        names = ", ".join(entry.source.tfds)
        lines.append(f"with a network: run this again (TFDS: {names})")
        if entry.source.manual:
            lines[-1] = f"TFDS ({names}) prepares it from files that you fetch yourself"
    if entry.source.huggingface:
        repository = " ".join(entry.source.huggingface)
        lines.append(
            f"with a network: pip install datasets, run this again ({repository})"
        )
    keys = ", ".join(dict.fromkeys(p.split(".")[0] for p in entry.places))
    parts = dict.fromkeys(cut(p, 0)[0] for p in entry.parts.values())
    files = ", ".join(f"{part}.jsonl" for part in parts)
    lines.append(f"or put {files} into {data_dir / entry.name}, with fields {keys}")
    if entry.source.homepage:
        lines.append(f"from {entry.source.homepage}")
    return "\n".join(lines)
