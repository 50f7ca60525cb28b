"""How the decoder's leaves are split over a mesh's fsdp and tensor axes."""

from jax.sharding import PartitionSpec as P

from merging.models.config import DecoderConfig


def rules(config: DecoderConfig) -> tuple[tuple[str, P], ...]:
    """Return ordered ``(regex, PartitionSpec)`` for the leaves of `init`.

    Layer leaves are [layers, in, out]. Products split ``tensor`` over heads or MLP
    columns on the way in and contract over it on the way out, so that a block needs
    one all-reduce per branch. A single key head is not split: every device needs it.
    """
    many = config.kv_heads > 1
    keys = P(None, "fsdp", "tensor") if many else P(None, "fsdp")
    return (
        (r"^(embed|head)$", P("tensor", "fsdp")),
        (r"layers/(key|value)$", keys),
        (r"layers/(query|gate|up)$", P(None, "fsdp", "tensor")),
        (r"layers/(output|down)$", P(None, "tensor", "fsdp")),
        (r"layers/query_bias$", P(None, "tensor")),
        (r"layers/(key|value)_bias$", P(None, "tensor") if many else P()),
        (r"norm$", P()),
    )
