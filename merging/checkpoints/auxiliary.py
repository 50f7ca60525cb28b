"""The small files that belong to weights: config, tokenizer, processors, licence."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping

from etils import epath

from merging.checkpoints import files
from merging.checkpoints.location import folders_of
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder

# A folder of them, of a tokenizer with several chat templates.
TEMPLATES = "additional_chat_templates"
LARGEST = 100_000_000
# Nothing that could be executed or unpickled, and nothing that speaks of other weights.
_NAMES = re.compile(
    r"""
    (generation_)?config\.json
    | ((pre|image_|video_|audio_)*processor_config | feature_extractor\w*)\.json
    | (tokenizer|vocab|special_tokens_map|added_tokens|chat_template|normalizer|tekken)
      .*\.(json|txt|model|jinja)(\.v\d+)?
    | merges\.txt
    | .+\.(model|spm|tiktoken|jinja)
    | (licen[cs]e|notice|copying|use_policy)[-\w]*(\.(txt|md))?
    """,
    re.I | re.X,
)


def auxiliary_files(uri: str | os.PathLike) -> dict[str, epath.Path]:
    """Return {name: path} of the config, tokenizer and licence files of a checkpoint.

    Those of the folders that belong to it (`location.folders_of`). A name in
    `additional_chat_templates` has that folder before it. Files that are links to
    outside, no regular files, or too large are warned of, and left out.

    Raises:
      MissingCheckpoint: nothing has that name.
    """
    found = {}
    for folder in folders_of(uri):
        refused = {}
        for name in sorted(_candidates(folder)):
            if reason := _fault(folder, name):
                refused[name] = reason
            else:
                found[name] = folder / name
        if refused:
            lines = "; ".join(f"{name} {reason}" for name, reason in refused.items())
            warnings.warn(f"{folder}: not read: {lines}", stacklevel=2)
    return found


def read_auxiliary_files(uri: str | os.PathLike) -> dict[str, bytes]:
    """Return {name: content} of `auxiliary_files`."""
    paths = auxiliary_files(uri)
    return {name: files.read_small(path, LARGEST) for name, path in paths.items()}


def write_auxiliary_files(folder: Folder, contents: Mapping[str, bytes]) -> None:
    """Write them into a folder, each stored on the disk before this returns.

    Raises:
      ValueError: a name that `auxiliary_files` has for none.
    """
    for name, content in contents.items():
        if not files.lies_in(files.path_of(os.fspath(folder)), name):
            raise ValueError(f"{name!r} is no name for a file beside weights")
        path = folder / name
        if isinstance(path, ObjectPath):
            path.write_bytes(content)
            continue
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())


def _candidates(folder: epath.Path) -> Iterator[str]:
    for path in folder.iterdir():
        if _NAMES.fullmatch(path.name):
            yield path.name
    if (folder / TEMPLATES).is_dir():
        for path in (folder / TEMPLATES).iterdir():
            if path.suffix == ".jinja":
                yield f"{TEMPLATES}/{path.name}"


def _fault(folder: epath.Path, name: str) -> str | None:
    """Return why a file isn't read, if it isn't."""
    if not files.lies_in(folder, name):
        return "is a link to outside its folder"
    try:
        size = files.size(folder / name)
    except (ValueError, OSError):
        return "is no file that can be read"
    return "is too large" if size > LARGEST else None
