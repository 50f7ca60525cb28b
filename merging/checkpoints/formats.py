"""Which format a checkpoint has, and what reads and writes it.

Orbax and TensorStore take a second to import, and are only where they are needed.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from etils import epath

from merging.checkpoints import errors, safetensors
from merging.checkpoints.source import Source
from merging.checkpoints.writer import Writer, require_free_output
from merging.runtime import locks, processes, storage
from merging.runtime.errors import UserError, nearest

FORMATS = ("orbax", "safetensors")
_NOT_READ = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")


def open_checkpoint(uri: str | os.PathLike) -> Source:
    """Open a checkpoint, whatever its format, and read its abstract tree.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: its metadata can't be read.
      UserError: its format is not read here.
    """
    uri = storage.supported_path(uri, "checkpoint", storage.REMOTE)
    path = epath.Path(uri)
    if "://" in uri:
        _reach(path)
    if safetensors.holds_safetensors(path):
        return safetensors.SafetensorsSource(uri)
    _refuse_other_formats(path)
    from merging.checkpoints.orbax_source import OrbaxSource

    return OrbaxSource(uri)


@contextlib.contextmanager
def create(
    uri: str,
    format: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    *,
    shard_bytes: int = 5 * 10**9,
) -> Iterator[Writer]:
    """Begin a checkpoint, or go on with one, and be the only one to write it.

    Called by all processes of a program together. What is not finished when the
    context ends is kept, and gone on with the next time.

    Args:
      uri: what it will be called.
      format: `orbax` or `safetensors`.
      abstract: {path: shape and dtype}, in the order to store them.
      shard_bytes: the most in one safetensors file.

    Raises:
      UserError: an unknown format, no space, another layout has been begun there, or
        another program is writing it, or has written it.
    """
    if format not in FORMATS:
        raise nearest("format", format, FORMATS)
    with contextlib.ExitStack() as stack:
        processes.broadcast(lambda: stack.enter_context(_only_writer(uri)))
        if format == "safetensors":
            from merging.checkpoints.safetensors_writer import SafetensorsWriter

            writer: Writer = SafetensorsWriter(uri, abstract, shard_bytes)
        else:
            from merging.checkpoints.orbax_writer import OrbaxWriter

            writer = OrbaxWriter(uri, abstract)
        stack.callback(writer.close)
        yield writer


@contextlib.contextmanager
def _only_writer(uri: str) -> Iterator[None]:
    """Hold the lock of an output, which lies beside it: it outlives the renaming."""
    lock = Path(os.path.abspath(uri) + ".lock")

    def taken(who: str) -> UserError:
        return UserError(
            f"{who} writes {uri}. Wait for it, stop it, or choose another output."
        )

    with errors.writing(uri):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(lock, str(lock.parent), taken, remove=True):
        require_free_output(uri, ())  # another may have finished it meanwhile
        yield


def _reach(path: epath.Path) -> None:
    """Refuse an object store that does not answer, whatever its library raises."""
    try:
        path.exists()
    except Exception as error:
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be reached ({type(error).__name__}: {first}); see to the "
            "network and to the credentials, or copy the checkpoint to this machine."
        ) from error


def _refuse_other_formats(path: epath.Path) -> None:
    files = list(path.iterdir()) if path.is_dir() else [path]
    found = sorted(f.name for f in files if f.suffix in _NOT_READ)
    if found:
        raise UserError(
            f"{path} holds {', '.join(found)}; safetensors and Orbax are read here. "
            "PyTorch's files are pickles, which can run code when they are opened: "
            "save the model as safetensors first (save_pretrained of transformers "
            "does). A llama in a GGUF file is imported by merging convert."
        )


def granularity(
    format: str, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, int]:
    """Return {path: of how many elements the starts of pieces should be multiples}."""
    if format != "orbax":
        return dict.fromkeys(abstract, 1)
    from merging.checkpoints import orbax_writer

    return {path: orbax_writer.granularity(leaf) for path, leaf in abstract.items()}
