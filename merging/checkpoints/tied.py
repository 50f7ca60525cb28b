"""Output weights that only repeat the embedding that they are tied to.

A tied model has one matrix for both. Some programs store it twice all the same; merged
as two leaves, the copies would part where a method masks or trims at random or by leaf.
"""

import math

import numpy as np

from merging.checkpoints.adapter_source import AdapterSource
from merging.checkpoints.safetensors import SafetensorsSource
from merging.checkpoints.source import Source

HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
# Elements that are compared at a time; most models differ in the first.
_PART = 2**20


def stored_head(source: Source) -> str | None:
    """Return the path of a model's output weights, if it stores some."""
    return _only(source, (HEAD,))


def repeats_embedding(source: Source) -> bool:
    """Return whether the stored output weights are the embedding, bit for bit.

    Reads no more of them than tells.
    """
    head, embedding = stored_head(source), _only(source, _EMBEDDINGS)
    if head is None or embedding is None:
        return False
    one, other = (source.abstract[path] for path in (head, embedding))
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    size = math.prod(one.shape)
    parts = np.empty((2, min(_PART, size)), one.dtype)
    for start in range(0, size, _PART):
        both = parts[:, : min(_PART, size - start)]
        source.read_into(head, start, both[0])
        source.read_into(embedding, start, both[1])
        if both[0].tobytes() != both[1].tobytes():
            return False
    return True


def forget_head(source: Source) -> None:
    """Leave the output weights out of a model that was opened."""
    source.forget(stored_head(source))


def _only(source: Source, names: tuple[str, ...]) -> str | None:
    """Return the one path that has, or ends with, one of these names."""
    if not isinstance(source, (SafetensorsSource, AdapterSource)):
        return None
    endings = tuple(f".{name}" for name in names)
    found = [p for p in source.abstract if p in names or p.endswith(endings)]
    return found[0] if len(found) == 1 else None
