"""Named families of decoders, from smallest to largest."""

from merging.models.config import DecoderConfig
from merging.models.functional import parameter_count
from merging.runtime.errors import nearest

# d_model, layers, heads, head_dim of each size; multi-query attention.
_TINY = {
    "1x": (16, 2, 2, 16),
    "8x": (48, 3, 3, 16),
    "24x": (96, 3, 6, 16),
    "64x": (128, 4, 8, 16),
    "256x": (256, 5, 16, 16),
    "1024x": (448, 6, 28, 16),
}
_TINY_MLP = 48

# The same of PaLM's shape; 8b and 64b are its published 8B and 62B (arXiv 2204.02311,
# table 1), the others lie on their line. MLPs are four times as wide as the model.
_PALM = {
    "1b": (1536, 18, 12, 128),
    "8b": (4096, 32, 16, 256),
    "24b": (6144, 42, 24, 256),
    "64b": (8192, 64, 32, 256),
}
FAMILIES = ("tiny", "palm")


def sizes(family: str, *, vocab_size: int) -> dict[str, DecoderConfig]:
    """Return the decoders of a family of sizes, smallest first.

    ``tiny``: multi-query SwiGLU decoders whose parameters stand 1 : 8 : 24 : 64 : 256 :
    1024 at any vocabulary, from 12,500 to 12.8 million at the miniworld's 299 tokens:
    the smallest one's size is given, the others' MLPs are made as wide as their share
    asks for.

    ``palm``: 1B, 8B, 24B and 64B in PaLM's shape (parallel blocks, multi-query
    attention, SwiGLU, tied embeddings), in bfloat16, each block recomputed in the
    backward pass. At PaLM's 256,000 tokens they have 0.99, 8.63, 23.90 and 62.50
    billion parameters.

    Raises:
      UserError: an unknown family.
    """
    if family == "palm":
        return {size: _palm(size, vocab_size) for size in _PALM}
    if family != "tiny":
        raise nearest("family", family, FAMILIES)
    smallest = _tiny("1x", vocab_size, _TINY_MLP)
    unit = parameter_count(smallest)
    found = {"1x": smallest}
    for size in list(_TINY)[1:]:
        found[size] = _tiny(size, vocab_size, _mlp_width(size, vocab_size, unit))
    return found


def size(family: str, size: str, *, vocab_size: int) -> DecoderConfig:
    """Return one decoder of a family.

    Raises:
      UserError: an unknown family or size, with the nearest names.

    >>> import merging
    >>> decoder = merging.models.size("tiny", "8x", vocab_size=400)
    >>> decoder.layers, decoder.d_model
    (3, 48)
    """
    found = sizes(family, vocab_size=vocab_size)
    if size not in found:
        raise nearest(f"size of family {family!r}", size, found)
    return found[size]


def _tiny(size: str, vocab_size: int, d_ff: int) -> DecoderConfig:
    d_model, layers, heads, head_dim = _TINY[size]
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        layers=layers,
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        d_ff=d_ff,
        unroll=layers,
        max_length=128,
    )


def _palm(size: str, vocab_size: int) -> DecoderConfig:
    d_model, layers, heads, head_dim = _PALM[size]
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        layers=layers,
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        d_ff=4 * d_model,
        parallel_block=True,
        dtype="bfloat16",
        param_dtype="bfloat16",
        remat=True,
        max_length=2048,
    )


def _mlp_width(size: str, vocab_size: int, unit: int) -> int:
    """Return the multiple of 8 nearest to a total of ``unit`` times the share."""
    narrow, wide = (parameter_count(_tiny(size, vocab_size, w)) for w in (8, 16))
    slope = (wide - narrow) / 8
    return 8 * round(((int(size[:-1]) * unit - narrow) / slope + 8) / 8)
