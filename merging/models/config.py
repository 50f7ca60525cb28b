"""What a decoder is: one record of sizes and switches, checked when it is made."""

import dataclasses

import jax.numpy as jnp

from merging.errors import UserError

ACTIVATIONS = ("swiglu", "geglu")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of one decoder; hashable, so that jit caches key on it.

    Attributes:
      vocab_size: tokens, padding included.
      width: model dimension.
      layers: blocks, stacked on a leading axis of every layer's parameters.
      heads: query heads.
      kv_heads: key and value heads; 1 is multi-query, ``heads`` is multi-head.
      head_dim: dimensions of a head; even, for RoPE.
      mlp_width: hidden dimension of the gated MLP.
      activation: ``"swiglu"`` or ``"geglu"``.
      parallel_block: attention and MLP read the same normalised input (PaLM).
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      tied_embeddings: the output projection is the embedding table.
      scaled_embeddings: embeddings enter the first block times sqrt(width).
      dtype: dtype of the activations.
      param_dtype: dtype of the parameters.
      remat: recompute each block in the backward pass instead of storing it.
      unroll: layers of one iteration of the scan; small models on a CPU are fastest
        with all of them (a third off a training step), large ones compile fastest at 1.
      max_length: longest sequence the model is meant for, BOS included.

    Raises:
      UserError: naming every field with an impossible value.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    activation: str = "swiglu"
    parallel_block: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied_embeddings: bool = True
    scaled_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    unroll: int = 1
    max_length: int = 2048

    def __post_init__(self):
        if faults := _faults(self):
            raise UserError("impossible decoder: " + "; ".join(faults) + ".")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The activations' dtype, as JAX wants it."""
        return jnp.dtype(self.dtype)


def _faults(config: DecoderConfig) -> list[str]:
    sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim")
    sizes += ("mlp_width", "unroll", "max_length")
    values = {name: getattr(config, name) for name in sizes}
    faults = [
        f"{name} = {value} must be positive"
        for name, value in values.items()
        if value < 1
    ]
    if config.kv_heads > 0 and config.heads % config.kv_heads:
        faults.append(
            f"heads = {config.heads} is no multiple of kv_heads = {config.kv_heads}"
        )
    if config.head_dim % 2:
        faults.append(f"head_dim = {config.head_dim} must be even, for RoPE")
    if config.activation not in ACTIVATIONS:
        faults.append(f"activation {config.activation!r} is none of {ACTIVATIONS}")
    for name in ("dtype", "param_dtype"):
        if getattr(config, name) not in DTYPES:
            faults.append(f"{name} {getattr(config, name)!r} is none of {DTYPES}")
    return faults
