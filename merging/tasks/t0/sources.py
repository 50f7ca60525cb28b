"""Where the data of a dataset lies below a data directory, and reading it.

Two layouts, of which the first goes before the second::

    DIR/NAME/PART.jsonl            the dataset's own records, one JSON object a line
    DIR/BUILDER[/CONFIG]/VERSION/  what TFDS prepared

Nothing is ever downloaded from here, and TensorFlow is imported for TFDS folders only.
"""

import functools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.tasks import jsonlines
from merging.tasks.jsonlines import Line
from merging.tasks.suites import file_digests
from merging.tasks.t0.entries import Entry, cut
from merging.tasks.t0.rendering import Record, checked, render


class Located(NamedTuple):
    """Where a dataset was found.

    Attributes:
      kind: "files", "tfds", or "" where there is nothing.
      folders: of the files, or of each builder's version.
      counts: part of the source → examples.
      problem: why it can't be used; "" if it can.
    """

    kind: str
    folders: tuple[Path, ...]
    counts: Mapping[str, int]
    problem: str = ""


def locate(entry: Entry, data_dir: Path) -> Located:
    """Return where a dataset lies. Opens its files to count them, and no more.

    Raises:
      UserError: no such directory, or a file that leads out of it.
    """
    if not data_dir.is_dir():
        raise UserError(
            f"data_dir {data_dir}: there is no such directory.\nMake it and fill it "
            f"with: merging tasks prepare --suite t0 --data_dir {data_dir}"
        )
    parts = {cut(part, 0)[0] for part in entry.parts.values()}
    files = {part: file_of(entry, data_dir, part) for part in sorted(parts)}
    there = {part: path for part, path in files.items() if path.is_file()}
    if there:
        counts = {part: jsonlines.count(path) for part, path in there.items()}
        missing = [str(path) for path in files.values() if not path.is_file()]
        problem = f"no {', '.join(missing)}" if missing else _empty(counts)
        return Located("files", (data_dir / entry.name,), counts, problem)
    return _prepared(entry, data_dir, sorted(parts))


def file_of(entry: Entry, data_dir: Path, part: str) -> Path:
    """Return the file that holds a part of a dataset's source as JSON lines.

    Raises:
      UserError: it leads out of the directory.
    """
    return jsonlines.inside(data_dir, f"{entry.name}/{part}.jsonl")


def size(entry: Entry, located: Located, split: str) -> int:
    """Return the number of examples of "train", "validation" or "test"."""
    part = cut(entry.parts[split], 0)[0]
    if located.kind == "tfds":
        counts = [_tfds_counts(folder)[part] for folder in located.folders]
    else:
        counts = [located.counts[part]]
    cuts = [cut(entry.parts[split], count)[1:] for count in counts]
    return sum(end - first for first, end in cuts)


def fingerprint(located: Located) -> str:
    """Return a hash that changes with the data: files whole, of TFDS what it states."""
    pattern = "*.jsonl" if located.kind == "files" else "*.json"
    paths = [path for f in located.folders for path in sorted(f.glob(pattern))]
    names = [path.name for path in paths]
    return storage.digest(located.kind, names, file_digests(paths))


def records(entry: Entry, located: Located, split: str) -> Iterator[Record]:
    """Yield what ``rendering.checked`` makes of every example.

    Files are read in an order drawn once and for all, since some are sorted by their
    answers; TFDS has shuffled its own. Imports TensorFlow for the latter.

    Raises:
      UserError: errors in lines or records, with their places.
    """
    require_ready(entry, located)
    if located.kind == "tfds":
        yield from _tfds_records(entry, located, split)
        return
    path = _path(entry, located, split)
    for record in jsonlines.at(path, _chosen(entry, located, split)):
        yield checked(entry, record)


def require_ready(entry: Entry, located: Located) -> None:
    """Raise UserError where a dataset cannot be used."""
    if located.problem:
        raise UserError(f"dataset {entry.name} is not ready: {located.problem}")


def require_sound(entry: Entry, located: Located, split: str) -> None:
    """Raise UserError where the file behind a split has errors, with their lines."""
    _chosen(entry, located, split)


def _prepared(entry: Entry, data_dir: Path, parts: list[str]) -> Located:
    folders, missing = [], []
    for builder in entry.source.tfds:
        versions = sorted((data_dir / builder).glob("*.*.*"), key=_version)
        versions = [v for v in versions if (v / "dataset_info.json").is_file()]
        folders += versions[-1:]
        missing += [] if versions else [builder]
    if not folders:
        return Located("", (), {}, f"nothing of it in {data_dir}")
    if missing:
        return Located("tfds", tuple(folders), {}, f"no {', '.join(missing)}")
    counts = dict.fromkeys(parts, 0)
    for folder in folders:
        found = _tfds_counts(folder)
        lacking = [part for part in parts if part not in found]
        if lacking:
            problem = f"{folder} has no {', '.join(lacking)}"
            return Located("tfds", tuple(folders), {}, problem)
        counts = {part: counts[part] + found[part] for part in parts}
    return Located("tfds", tuple(folders), counts, _empty(counts))


def _version(folder: Path) -> tuple[int, ...]:
    numbers = folder.name.split(".")
    return tuple(int(n) for n in numbers) if all(map(str.isdigit, numbers)) else ()


def _empty(counts: Mapping[str, int]) -> str:
    empty = [part for part, count in counts.items() if not count]
    return f"no examples in {', '.join(empty)}" if empty else ""


@functools.cache
def _tfds_counts(folder: Path) -> dict[str, int]:
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        return {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/dataset_info.json is none of TFDS ({error!r}): prepare the "
            "dataset again"
        ) from error


def _path(entry: Entry, located: Located, split: str) -> Path:
    part = cut(entry.parts[split], 0)[0]
    return file_of(entry, located.folders[0].parent, part)


def _chosen(entry: Entry, located: Located, split: str) -> list[int]:
    """Return the places of a split's lines in its file, in their drawn order."""
    path = _path(entry, located, split)
    stat = path.stat()
    offsets = _index(entry, path, stat.st_size, stat.st_mtime_ns)
    first, end = cut(entry.parts[split], len(offsets))[1:]
    return list(offsets[first:end])


@functools.lru_cache(maxsize=64)
def _index(entry: Entry, path: Path, size: int, changed: int) -> tuple[int, ...]:
    """Return the places of all lines, shuffled; UserError if any has an error."""
    del size, changed  # they only say when to look again
    offsets: list[int] = []

    def error(_: int, line: Line) -> str:
        offsets.append(line.offset)
        return _error(entry, line.record)

    jsonlines.check([path], error, entry.name)
    random.Random(f"t0/{entry.name}/{path.stem}").shuffle(offsets)
    return tuple(offsets)


def _error(entry: Entry, record: Mapping[str, Any]) -> str:
    prompt = next(iter(entry.prompts.values()))
    try:
        example = render(entry, prompt, checked(entry, record))
    except ValueError as error:
        return str(error)
    if not entry.ranked:
        return "" if example.targets else "the answer is empty"
    if len(example.choices) < 2:
        return f"{len(example.choices)} choices, a rank task needs 2 or more"
    if not all(choice.strip() for choice in example.choices):
        return "a choice is empty"
    return "" if example.label >= 0 else "no choice is the right one"


def _tfds_records(entry: Entry, located: Located, split: str) -> Iterator[Record]:
    from merging.tasks.backend import load_seqio

    load_seqio()
    import tensorflow_datasets as tfds

    number = 0
    for folder in located.folders:
        builder = tfds.builder_from_directory(folder)
        read = builder.as_dataset(split=entry.parts[split], shuffle_files=False)
        for record in tfds.as_numpy(read):
            try:
                yield checked(entry, plain(record))
            except ValueError as error:
                where = f"dataset {entry.name}, {folder}, example {number}"
                raise UserError(f"{where}: {error}") from error
            number += 1


def plain(value: Any) -> Any:
    """Return NumPy's records, arrays and bytes as dicts, lists, text and numbers.

    Raises:
      ValueError: bytes that are not UTF-8.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, list) else value
