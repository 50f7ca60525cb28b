"""How the decoder's leaves are split over a mesh's fsdp and tensor axes."""

from collections.abc import Mapping

from jax.sharding import PartitionSpec as P

from merging.models.config import DecoderConfig
from merging.runtime.errors import UserError


def partition_rules(config: DecoderConfig) -> tuple[tuple[str, P], ...]:
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


def require_whole_heads(config: DecoderConfig, axes: Mapping[str, int]) -> None:
    """Refuse a mesh that cuts heads: attention would exchange parts of them.

    Args:
      config: the decoder.
      axes: {name: size} of the mesh.

    Raises:
      UserError: naming the heads that ``tensor`` does not divide, and what would.
    """
    parts = axes.get("tensor", 1)
    counts = {"heads": config.heads}
    if config.kv_heads > 1:
        counts["kv_heads"] = config.kv_heads
    wrong = [f"{n} {name}" for name, n in counts.items() if n % parts]
    if wrong:
        least = min(counts.values())
        fit = [
            n for n in range(1, least + 1) if all(c % n == 0 for c in counts.values())
        ]
        raise UserError(
            f"a mesh with tensor={parts} does not divide {' and '.join(wrong)}; "
            f"tensor may be {', '.join(map(str, fit))}."
        )
