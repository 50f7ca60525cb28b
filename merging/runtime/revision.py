"""Which revision of the code runs, and beside what."""

import functools
import importlib.metadata
import json
import platform
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse


def git_revision() -> str:
    """Return the revision of the code that runs: 12 digits, `-dirty` if changed since.

    Found for a checkout, for an installation from one that still holds the same files,
    and for an installation from a repository's address; otherwise `v` and the version.
    """
    return look().result()


@functools.cache
def look() -> Future[str]:
    """Begin to look for the revision, which takes git a tenth of a second."""
    thread = ThreadPoolExecutor(1, "git")
    found = thread.submit(_git_revision)
    thread.shutdown(wait=False)
    return found


def _git_revision() -> str:
    package = Path(__file__).resolve().parents[1]
    if _git(package, "ls-files", "__init__.py"):
        return _revision_of(package)
    try:
        installed = importlib.metadata.distribution("merging")
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    if "vcs_info" in origin:
        return origin["vcs_info"]["commit_id"][:12]
    source = Path(unquote(urlparse(origin.get("url", "")).path)) / "merging"
    if "dir_info" in origin and _same_code(package, source):
        return _revision_of(source) or f"v{installed.version}"
    return f"v{installed.version}"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, of this code (its revision), and of packages."""
    found = {"python": platform.python_version(), "git": git_revision()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def _revision_of(package: Path) -> str:
    revision = _git(package, "rev-parse", "--short=12", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", ".")
    return revision + "-dirty" if revision and changed else revision


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints, or nothing where there is no git or no repository."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _same_code(one: Path, other: Path) -> bool:
    def files(folder: Path) -> dict[Path, bytes]:
        # An installation holds the configs as well, which compute nothing.
        code = (f for f in folder.rglob("*.py") if folder / "configs" not in f.parents)
        return {f.relative_to(folder): f.read_bytes() for f in code}

    return files(one) == files(other)
