"""Given checkpoints of a known family: bases and experts that a sweep does not make.

They are read where they lie, straight to the devices, and never copied: a step that
takes one is keyed by its content, and refuses it should that have changed. An expert
may be a LoRA adapter, whose rows are made on the base's as they are read.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from merging import checkpoints, models
from merging.merge.stored import StoredLeaf
from merging.models import hf as families
from merging.runtime import hub, processes, storage, text
from merging.runtime.errors import UserError, nearest
from merging.tasks import Tokenizer

# What training and loading may change of a decoder; all else must be the base's.
_FREE = ("dtype", "param_dtype", "bos_id", "max_length", "remat", "unroll")


def table(
    entries: Sequence[str], key: str, parts: dict[str, Collection[str]]
) -> dict[tuple[str, ...], str]:
    """Return {names: path} of entries "NAME/NAME=PATH".

    Names may be left out but for the last kind's, and stand for all of their kind; of
    two entries that fit one model, the one that names more counts.

    Args:
      entries: as they are in the config.
      key: the config's key, for messages.
      parts: {kind: its names}, such as {"size": …, "base": …, "category": …}.

    Returns:
      A path for each combination of names that has one, in the order of `parts`.

    Raises:
      UserError: an entry without `=`, an unknown name (with the nearest), two entries
        for the same models.
    """
    chosen: dict[tuple[str, ...], tuple[int, str]] = {}
    *_, last = parts
    for entry in entries:
        names, equals, path = entry.partition("=")
        if not equals or not path:
            shown = "/".join(f"[{kind.upper()}/]" for kind in parts if kind != last)
            raise UserError(
                f"{key}: {entry!r} is no {shown.replace(']/', ']')}{last.upper()}=PATH."
            )
        told = _told(names.split("/"), key, parts)
        if last not in told:
            raise nearest(f"{last} in {key}", names, parts[last])
        for fits in _combinations(told, parts):
            before = chosen.get(fits, (0, ""))
            if before[0] == len(told):
                raise UserError(f"{key}: {'/'.join(fits)} is given twice.")
            chosen[fits] = max(before, (len(told), path))
    return {names: path for names, (_, path) in chosen.items()}


def _told(
    names: Sequence[str], key: str, parts: dict[str, Collection[str]]
) -> dict[str, str]:
    """Return {kind: name} of what an entry names."""
    told = {}
    for name in names:
        kinds = [kind for kind, known in parts.items() if name in known]
        if not kinds:
            known = [name for of in parts.values() for name in of]
            raise nearest(f"name in {key}", name, known)
        told[kinds[-1]] = name
    return told


def _combinations(
    told: dict[str, str], parts: dict[str, Collection[str]]
) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for kind, names in parts.items():
        wanted = [told[kind]] if kind in told else names
        found = [(*before, name) for before in found for name in wanted]
    return found


def model_of(path: str, base: str) -> str:
    """Return the path of the model that an expert is: an adapter's is BASE+ADAPTER.

    Args:
      path: as it was given.
      base: its base's; "" for a base.
    """
    place = hub.fetched(path, weights=False)
    adapter = base and "+" not in place and checkpoints.is_adapter(place)
    return f"{base}+{path}" if adapter else path


def size(path: str) -> str:
    """Return what to call a given base's size: its parameters, such as "135M"."""
    require_folder(path)
    return text.parameters(models.parameter_count(_opened(path).config))


def decoder(
    path: str, tokenizer: Tokenizer, dtype: str, param_dtype: str
) -> models.DecoderConfig:
    """Return a given base's decoder, as a sweep trains, merges and scores it.

    Args:
      path: the checkpoint, with its config.json.
      tokenizer: what the suite's texts are written in.
      dtype: of the activations.
      param_dtype: of the parameters; "" for the checkpoint's own.

    Raises:
      UserError: as `families.open_model`; a tokenizer that has more ids than the model.
    """
    opened = _opened(path)
    config = opened.config
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} ids, but the model in {path} only "
            f"{config.vocab_size}: give data.tokenizer the model's own."
        )
    return dataclasses.replace(
        config,
        dtype=dtype,
        param_dtype=param_dtype or opened.dtype,
        bos_id=tokenizer.bos_id,
    )


def require_like(path: str, base: str) -> None:
    """Refuse an expert that is not the base's decoder, before any work.

    Raises:
      UserError: names what differs.
    """
    expert, start = _opened(path, base), _opened(base)
    one, other = (dataclasses.asdict(of.config) for of in (expert, start))
    wrong = [
        f"{name} is {one[name]!r}, not {other[name]!r}"
        for name in one
        if name not in _FREE and one[name] != other[name]
    ]
    if wrong:
        raise UserError(
            f"given_experts: {path} is no fine-tune of {base}: {'; '.join(wrong)}."
        )


@functools.cache  # processes must all ask, or none
def digest(path: str, described: str = "") -> str:
    """Return a hash of what a checkpoint is; see `families.identity`.

    Of several processes, one reads it.

    Args:
      path: the checkpoint.
      described: the folder with its config.json, if it has none itself.
    """
    opened = _opened(path, described)
    return processes.broadcast(lambda: families.identity(opened))


def load(
    path: str,
    expected: str,
    dtype: str,
    *,
    mesh: Mesh | None = None,
    described: str = "",
) -> models.Params:
    """Return a given checkpoint's parameters.

    Args:
      path: the checkpoint.
      expected: the digest that the sweep began with.
      dtype: of the parameters.
      mesh: where they go.
      described: as for `digest`.

    Raises:
      UserError: another digest by now.
    """
    model = _unchanged(path, expected, described)
    return families.read(model, dtype=dtype, mesh=mesh)[1]


def stored(
    path: str, expected: str, dtype: str, *, described: str = ""
) -> dict[str, StoredLeaf]:
    """Return {path: leaf} of a given checkpoint, none of which has been read.

    Arguments and errors are `load`'s; each leaf is laid out as it is asked for.
    """
    model = _unchanged(path, expected, described)
    return {
        name: StoredLeaf(
            leaf.shape,
            jnp.dtype(dtype),
            functools.partial(families.read_leaf, model, name, dtype=dtype),
        )
        for name, leaf in model.leaves.items()
    }


def _unchanged(path: str, expected: str, described: str) -> families.Model:
    """Open a checkpoint, and refuse another than the sweep began with."""
    fresh = families.open_model(model_of(path, described), _described(path, described))
    # An object in a bucket would be read whole for it.
    if not path.startswith(storage.REMOTE) and expected != processes.broadcast(
        lambda: families.identity(fresh)
    ):
        raise UserError(
            f"{path} has changed since this sweep began; put the checkpoint back, or "
            "choose another --workdir."
        )
    return fresh


def require_folder(path: str, key: str = "pretrained_bases") -> None:
    """Refuse what is no folder; a GGUF file is converted first."""
    place = hub.fetched(path, weights=False)
    if place.startswith(storage.REMOTE):
        return
    if not Path(checkpoints.split(place)[0]).is_dir():
        raise UserError(
            f"{key}: {path!r} is no folder with a checkpoint and its "
            "config.json. SmolLM2's is made by: merging convert "
            f"--config configs/convert/smollm2.py --config.output={path or 'SMOLLM2'}"
        )


def _described(path: str, other: str) -> str | None:
    """Return the folder with a checkpoint's config.json: its own if it has one."""
    path = model_of(path, other)
    own = families.CONFIG in checkpoints.auxiliary_files(path)
    return None if own or not other else other


@functools.lru_cache(maxsize=256)
def _opened(path: str, described: str = "") -> families.Model:
    require_folder(path, "given_experts" if described else "pretrained_bases")
    return families.open_model(model_of(path, described), _described(path, described))
