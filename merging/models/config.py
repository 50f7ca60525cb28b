"""What a decoder is: one record of sizes and switches, checked when it is made."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from merging.runtime.errors import UserError

ACTIVATIONS = ("swiglu", "geglu")
DTYPES = ("float32", "bfloat16", "float16")
ROPE_SCALINGS = ("linear", "llama3")


class RopeScaling(NamedTuple):
    """How rotary frequencies are slowed for sequences longer than those trained on.

    Attributes:
      kind: ``"linear"`` divides all by `factor`; ``"llama3"`` only those that turn
        less than `low` times within `original_length`, none that turn more than
        `high` times, and blends in between.
      factor: how many times longer the sequences are.
      low, high: turns, for ``"llama3"``.
      original_length: tokens of the first training's sequences, for ``"llama3"``.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of one decoder; hashable, so that jit caches key on it.

    Attributes:
      vocab_size: tokens, padding included.
      d_model: width of the residual stream.
      layers: blocks, stacked on a leading axis of every layer's parameters.
      heads: query heads.
      kv_heads: key and value heads; 1 is multi-query, ``heads`` is multi-head.
      head_dim: dimensions of a head; even, for RoPE.
      d_ff: hidden dimension of the gated MLP.
      activation: ``"swiglu"`` or ``"geglu"``.
      parallel_block: attention and MLP read the same normalised input (PaLM).
      attention_bias: queries, keys and values have biases (Qwen 2).
      qk_norm: each head's query and key are normalised before they are rotated.
      post_norms: what attention and MLP add to the stream is normalised too (Gemma).
      unit_offset: norms store their gain less one (Gemma).
      query_scalar: scores are divided by its square root; `head_dim` if None.
      attention_softcap: scores s become softcap · tanh(s / softcap); or None.
      logit_softcap: the same for the logits.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are slowed for long sequences, or None.
      window: how many tokens a local layer sees, the query's own among them.
      local_layers: for each layer, whether it sees no further than the window; empty
        if none does.
      local_rope_theta: base in local layers, never scaled; None: as everywhere.
      norm_eps: added to the mean square in RMSNorm.
      tied_embeddings: the output projection is the embedding table.
      scaled_embeddings: embeddings enter the first block times sqrt(d_model).
      dtype: dtype of the activations.
      param_dtype: dtype of the parameters.
      remat: recompute each block in the backward pass instead of storing it.
      unroll: layers of one iteration of the scan; small models on a CPU are fastest
        with all of them (a third off a training step), large ones compile fastest at 1.
      max_length: longest sequence the model is meant for, BOS included.
      bos_id: the token that opens every sequence; None: each sequence's own first one.

    Raises:
      UserError: naming every field with an impossible value.
    """

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    activation: str = "swiglu"
    parallel_block: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    unit_offset: bool = False
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    local_rope_theta: float | None = None
    norm_eps: float = 1e-6
    tied_embeddings: bool = True
    scaled_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    unroll: int = 1
    max_length: int = 2048
    bos_id: int | None = 0

    def __post_init__(self):
        if faults := _faults(self):
            raise UserError("impossible decoder: " + "; ".join(faults) + ".")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The activations' dtype, as JAX wants it."""
        return jnp.dtype(self.dtype)


def _faults(config: DecoderConfig) -> list[str]:
    sizes = ("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim")
    sizes += ("d_ff", "unroll", "max_length")
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
    return faults + _attention_faults(config)


def _attention_faults(config: DecoderConfig) -> list[str]:
    faults = []
    positive = ("query_scalar", "attention_softcap", "logit_softcap", "rope_theta")
    for name in (*positive, "window", "local_rope_theta"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            faults.append(f"{name} = {value} must be positive")
    if config.parallel_block and config.post_norms:
        faults.append("parallel_block and post_norms exclude each other")
    if config.local_layers and len(config.local_layers) != config.layers:
        count = len(config.local_layers)
        faults.append(f"local_layers speaks of {count} layers of {config.layers}")
    if any(config.local_layers) and config.window is None:
        faults.append("local_layers need a window")
    if config.bos_id is not None and not 0 <= config.bos_id < max(config.vocab_size, 1):
        faults.append(f"bos_id = {config.bos_id} is no token of {config.vocab_size}")
    scaling = config.rope_scaling
    if scaling is not None:
        if scaling.kind not in ROPE_SCALINGS:
            faults.append(f"rope_scaling {scaling.kind!r} is none of {ROPE_SCALINGS}")
        if not (scaling.factor > 0 and 0 < scaling.low < scaling.high):
            faults.append(f"{scaling} needs a positive factor and 0 < low < high")
    return faults
