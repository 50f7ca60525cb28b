"""Programs that XLA compiled once are kept for the next command.

JAX has a cache for that, but writes its entries in place: of a process that is killed
half an entry is left, at which every later one warns. So each process has a folder of
its own, with links to all that was kept before; what it compiled beside that is given
to the others when it ends in its own time, whole and under one name at once.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from merging.runtime.start import import_jax

# Of programs that take longer; smaller ones are compiled as quickly as they are read.
SECONDS = 0.05
# The most that is kept, the oldest first to go.
ENTRIES, BYTES = 2000, 2**30
_OWN = f".process-{socket.gethostname()}-"


def user_cache() -> Path:
    """Return this package's folder among the user's caches."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "merging"


def keep() -> None:
    """Have JAX look for programs in the user's cache, and leave its own there.

    Where JAX was told of a folder (JAX_COMPILATION_CACHE_DIR), or not to keep any
    (JAX_ENABLE_COMPILATION_CACHE), that counts; without a folder to write in, nothing
    is kept. Called before anything imports JAX, it has that begin sooner.
    """
    import_jax()
    import jax

    if (
        jax.config.jax_compilation_cache_dir
        or not jax.config.jax_enable_compilation_cache
    ):
        return
    kept = user_cache() / "compiled" / _machine()
    with contextlib.suppress(OSError):
        own = _begin(kept)
        jax.config.update("jax_compilation_cache_dir", str(own))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
        # XLA's own caches would put this process's folder into the keys.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _begin(kept: Path) -> Path:
    """Make this process's folder, and clear those of processes that were killed."""
    own = kept / f"{_OWN}{os.getpid()}"
    kept.mkdir(parents=True, exist_ok=True)
    for left in kept.glob(f"{_OWN}*"):
        if _is_free(left):
            shutil.rmtree(left, ignore_errors=True)
    own.mkdir()
    folder = os.open(own, os.O_RDONLY)  # held, and with it the lock, until the end
    fcntl.flock(folder, fcntl.LOCK_SH)
    known = set(_files(kept))
    for name in known:
        os.link(f"{kept}/{name}", f"{own}/{name}")
    atexit.register(_end, own, kept, known)
    return own


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of a folder's files."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.is_file())


def _end(own: Path, kept: Path, known: set[str]) -> None:
    """Give what was compiled to the others."""
    with contextlib.suppress(OSError):
        for name in set(_files(own)) - known:
            with open(own / name, "rb") as file:  # no half of it after a power cut
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(own / name, kept / name)
        prune(kept.iterdir())
    shutil.rmtree(own, ignore_errors=True)


def prune(paths: Iterable[Path]) -> None:
    """Remove the oldest files beyond `ENTRIES` and `BYTES`."""
    found = [(p.stat(), p) for p in paths if p.is_file()]
    found.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
    total = 0
    for place, (stat, path) in enumerate(found):
        total += stat.st_size
        if place >= ENTRIES or total > BYTES:
            path.unlink(missing_ok=True)


def _is_free(folder: Path) -> bool:
    """Return whether the process that made a folder has ended."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(descriptor)
    return False


def _machine() -> str:
    """Return what compiled code depends on beside what JAX puts into its keys."""
    import jax
    import jaxlib

    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = {line for line in text.splitlines() if line[:5] in ("flags", "model")}
    found = f"{jax.__version__} {jaxlib.__version__} {sorted(flags)}"
    return hashlib.sha256(found.encode()).hexdigest()[:16]
