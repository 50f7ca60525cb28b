"""Which format a checkpoint has, and what reads and writes it.

Orbax and TensorStore take a second to import, and are only where they are needed.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from merging.checkpoints import errors, safetensors, unfinished
from merging.checkpoints.adapter import WEIGHTS, Adapter, is_adapter, no_base
from merging.checkpoints.adapter_source import AdapterSource
from merging.checkpoints.files import path_of
from merging.checkpoints.location import PARTIAL, locate, split_adapter
from merging.checkpoints.source import Source
from merging.checkpoints.writer import Writer, require_free_output
from merging.runtime import hub, locks, processes, storage
from merging.runtime.errors import Unreachable, UserError, nearest
from merging.runtime.storage import Folder

FORMATS = ("orbax", "safetensors")
# What an adapter is written as; no model is.
PEFT = "peft"


def open_checkpoint(
    uri: str | os.PathLike, base: Source | None = None, *, rounded: bool = False
) -> Source:
    """Open a checkpoint, whatever its format, and read its abstract tree.

    Args:
      uri: a folder, the folder of a CheckpointManager or a step of it, or a part of a
        tree, as `RUN/100#params` (see `merging.checkpoints.location`). Of a training's
        state, the parameters are taken, and a warning says what is left out. A model
        with a LoRA adapter on it is `BASE+ADAPTER`; a repository of the Hugging Face
        Hub is `ORGANISATION/NAME@REVISION` (see `merging.runtime.hub`).
      base: what an adapter that is named alone lies on.
      rounded: give leaves that an adapter changes in the base's dtype, not in float32.

    Raises:
      MissingCheckpoint: nothing has that name.
      CorruptCheckpoint: its metadata can't be read.
      UserError: it is no checkpoint that is read here.

    >>> import jax.numpy as jnp, merging
    >>> merging.checkpoints.save("model", {"layer": {"w": jnp.zeros((2, 3))}})
    >>> source = merging.open_checkpoint("model")
    >>> source.format, source.abstract["layer"]["w"].shape
    ('orbax', (2, 3))
    """
    uri = hub.fetched(storage.supported_path(uri, "checkpoint", storage.REMOTE))
    if "://" in uri:
        reach(path_of(uri))
    model, adapter = split_adapter(uri)
    if adapter is not None:
        base = open_checkpoint(model)
        added = Adapter(storage.supported_path(adapter, "adapter", storage.REMOTE))
        return AdapterSource(added, base, uri, rounded=rounded, with_base=True)
    if is_adapter(uri):
        if base is None:
            raise no_base(uri)
        return AdapterSource(Adapter(uri), base, rounded=rounded)
    found = locate(uri)
    if found.format == "safetensors":
        return safetensors.SafetensorsSource(found.uri)
    from merging.checkpoints.orbax_source import OrbaxSource

    return OrbaxSource(found)


def open_stored(uri: str) -> Source:
    """Open what a folder itself stores: of an adapter without its base, A and B."""
    uri = hub.fetched(uri)
    return Adapter(uri).tensors if is_adapter(uri) else open_checkpoint(uri)


@contextlib.contextmanager
def create(
    uri: str,
    format: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    *,
    shard_bytes: int = 5 * 10**9,
    skeleton: Any = None,
    beside: Collection[str] = (),
) -> Iterator[Writer]:
    """Begin a checkpoint, or go on with one, and be the only one to write it.

    Called by all processes of a program together. What is not finished when the
    context ends is kept, and gone on with the next time.

    Args:
      uri: what it will be called.
      format: `orbax` or `safetensors`; or `peft`, one file as PEFT names it.
      abstract: {path: shape and dtype}, in the order to store them.
      shard_bytes: the most in one safetensors file.
      skeleton: the tree that Orbax stores (see `Source`); nested dicts if None.
      beside: names of the files that `finish` will be given, the last of them last.

    Raises:
      UserError: an unknown format, no space, another layout has been begun there, or
        another program is writing it, or has written it.
    """
    if format not in (*FORMATS, PEFT):
        raise nearest("format", format, FORMATS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(uri))
        # Another may have finished it meanwhile.
        last = next(reversed([*beside]), "")
        processes.broadcast(lambda: require_free_output(uri, (), last))
        if format != "orbax":
            one = WEIGHTS if format == PEFT else None
            writer = begin_safetensors(uri, abstract, shard_bytes, one)
        else:
            from merging.checkpoints.orbax_writer import OrbaxWriter

            writer = OrbaxWriter(uri, abstract, skeleton, beside)
        stack.callback(writer.close)
        yield writer


def begin_safetensors(
    uri: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    shard_bytes: int,
    one: str | None = None,
) -> Writer:
    """Return what writes a safetensors folder where it is to be."""
    from merging.checkpoints.object_writer import ObjectWriter
    from merging.checkpoints.safetensors_writer import SafetensorsWriter

    make = ObjectWriter if storage.is_remote(uri) else SafetensorsWriter
    return make(uri, abstract, shard_bytes, one)


def clear(uri: str) -> None:
    """Remove what a kill left beside an output that it had finished."""
    lock, partial = _lock_of(uri), storage.place(uri.rstrip("/") + PARTIAL)
    # In a store nothing is renamed, and the content stays until it is removed.
    stays = storage.is_remote(uri)
    left = (unfinished.is_begun if stays else unfinished.was_published)(partial)
    if left or lock.exists():
        # Unless another is at it.
        with (
            contextlib.suppress(UserError),
            locks.held(lock, uri, UserError, remove=True, patient=False),
        ):
            if left:
                unfinished.remove(partial)


def _lock_of(uri: str) -> Folder:
    """Return the lock of an output, by a name that nobody else would choose."""
    output = storage.absolute(storage.place(uri.rstrip("/")))
    return output.with_name(f".{output.name}.merging-lock")


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Be the only program that makes something; called by all processes.

    The lock lies beside it: it outlives the renaming.

    Raises:
      UserError: another one does; it is named.
    """
    with contextlib.ExitStack() as stack:
        processes.broadcast(lambda: stack.enter_context(only_writer(uri)))
        yield


@contextlib.contextmanager
def only_writer(uri: str) -> Iterator[None]:
    """Be the only program that makes something; called by one process of it.

    Raises:
      UserError: another one does; it is named.
    """
    lock = _lock_of(uri)

    def taken(who: str) -> UserError:
        return UserError(
            f"{who} writes {uri}. Wait for it, stop it, or choose another output."
        )

    with errors.writing(uri):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(lock, str(lock.parent), taken, remove=True):
        yield


def reach(path: epath.Path) -> None:
    """Raise a UserError if an object store does not answer, whatever that raises."""
    try:
        path.exists()
    except Unreachable:
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be reached ({type(error).__name__}: {first}); see to the "
            "network and to the credentials, or copy the checkpoint to this machine."
        ) from error


def granularity(
    format: str, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, int]:
    """Return {path: of how many elements the starts of pieces should be multiples}."""
    if format != "orbax":
        return dict.fromkeys(abstract, 1)
    from merging.checkpoints import orbax_writer

    return {path: orbax_writer.granularity(leaf) for path, leaf in abstract.items()}
