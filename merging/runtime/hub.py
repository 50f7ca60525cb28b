"""Repositories of the Hugging Face Hub, by name, where a folder is taken.

    ORGANISATION/NAME              its main branch
    ORGANISATION/NAME@REVISION     a branch, tag or commit
    hf://ORGANISATION/NAME[@…]     the same, whatever lies here under that name

A folder of that name goes first, and so does any path in a folder that is here. What is
fetched lies in the Hub's own cache (HF_HOME), from where it comes the next time, and
offline (HF_HUB_OFFLINE=1). Nothing of a repository but weights in safetensors and the
small files beside them is fetched, and nothing of it is executed.
"""

import functools
import os
import re
from typing import NamedTuple

from merging.runtime.errors import UserError

SCHEME = "hf://"
_OURS = "runs"  # where workdirs are by default, also when none is there yet
_NAME = re.compile(
    r"(?:hf://)?(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(?P<revision>\w[\w./-]*))?"
)
_SNAPSHOT = re.compile(
    r"(?:.*/)?models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})/?"
)
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "LICENSE*", "NOTICE*")
_WEIGHTS = ("*.safetensors",)
# Subfolders hold other formats of the same weights, and so do Mistral's own files.
_NOT = ("*/*", "consolidated*")


class Repository(NamedTuple):
    """A repository at one commit, as a path in the Hub's cache tells.

    Attributes:
      name: ``ORGANISATION/NAME``.
      commit: 40 hex digits.
    """

    name: str
    commit: str

    @property
    def uri(self) -> str:
        """What `fetched` takes for exactly this."""
        return f"{SCHEME}{self.name}@{self.commit}"


def fetched(name: str, *, weights: bool = True) -> str:
    """Return the folder of a repository in the Hub's cache; a path as it is.

    Args:
      name: as the module has it; ``BASE+ADAPTER`` of two such names, or of one.
      weights: whether they are needed, or only the small files beside them.

    Raises:
      UserError: no such repository or revision, no access to it, or no network and not
        in the cache.
    """
    parts = name.split("+")
    if len(parts) == 2 and all(parts) and any(map(_is_name, parts)):
        return "+".join(fetched(part, weights=weights) for part in parts)
    if not _is_name(name):
        return name
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name}: write hf://ORGANISATION/NAME, and @REVISION for one.")
    return _snapshot(found["repository"], found["revision"], weights)


def repository(path: str) -> Repository | None:
    """Return what a folder in the Hub's cache is of; None for any other."""
    found = _SNAPSHOT.fullmatch(os.fspath(path))
    if found is None:
        return None
    return Repository(f"{found['owner']}/{found['name']}", found["commit"])


def last_part(text: str) -> str | None:
    """Return NAME of a repository that a text names; None for a path."""
    found = _NAME.fullmatch(text) if _is_name(text) else None
    return found and found["repository"].partition("/")[2]


def _is_name(text: str) -> bool:
    if text.startswith(SCHEME):
        return True
    if os.path.lexists(text) or not _NAME.fullmatch(text):
        return False
    # A slip of the pen in a path of this machine asks no server.
    owner = text.partition("/")[0]
    return owner != _OURS and not os.path.lexists(owner)


@functools.lru_cache(maxsize=256)
def _snapshot(name: str, revision: str | None, weights: bool) -> str:
    shown = f"{name}@{revision}" if revision else name
    import huggingface_hub  # late: it takes its time, and most paths are folders

    try:
        return huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*_SMALL, *(_WEIGHTS if weights else ())],
            ignore_patterns=list(_NOT),
        )
    except Exception as error:  # of a network and a service, any
        raise UserError(_explained(shown, error)) from error


def _explained(shown: str, error: Exception) -> str:
    """Return one line on what failed, and what helps."""
    from huggingface_hub import constants, errors

    here = f"there is no folder {shown} here, and "
    if isinstance(error, errors.GatedRepoError):
        return f"{shown} of the Hugging Face Hub is gated: ask for access on its page."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{shown}: the repository has no such revision."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{here}the Hugging Face Hub has no such repository, or a private one: "
            "check the name, or log in with `hf auth login`."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no answer"
        return (
            f"{here}the Hugging Face Hub is out of reach ({offline}) and its cache "
            f"({constants.HF_HUB_CACHE}) holds no such repository: `hf download "
            f"{shown.partition('@')[0]}` where there is a network, or name a folder."
        )
    first = str(error).strip().partition("\n")[0][:200]
    return f"{here}the Hugging Face Hub answers: {type(error).__name__}: {first}"
