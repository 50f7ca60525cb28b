"""What a decoder on a mesh needs, counted from its shapes alone.

Times always come from these counts of work. Memory and exchanges come from a compiler
where there is one; these are what is said where there is none. They follow the layout
of `models.partition_rules`: every layer's weights are gathered over ``fsdp`` when it
runs, and its two products are summed over ``tensor``.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from merging import models
from merging.models import DecoderConfig
from merging.planning import collectives
from merging.planning.collectives import Collective
from merging.planning.estimates import Memory, Work, total
from merging.planning.settings import Scoring, Training
from merging.planning.sharding_layout import Leaf
from merging.training import cross_entropy

Leaves = Mapping[str, Leaf]
# Of so many tokens that are scored, one is a continuation's: only they need logits.
CONTINUED = 4


class _Share(NamedTuple):
    """What one device of several holds of a batch; `each` is bytes of an activation."""

    rows: float
    length: int
    tensor: int
    each: int
    devices: int

    @property
    def tokens(self) -> float:
        return self.rows * self.length


def scoring(
    decoder: DecoderConfig, leaves: Leaves, batch: Scoring, domain: int
) -> tuple[Memory, tuple[Collective, ...]]:
    """Return the memory and the exchanges of one batch.

    Args:
      decoder: the model.
      leaves: where it lies.
      batch: rows and tokens.
      domain: neighbours that need no network.
    """
    share = _share(decoder, leaves, batch)
    # Tokens, segments and targets, prefix, length and first tokens (`Predictor.score`).
    asked = share.tokens * (4 + 8 / CONTINUED) + 24 * share.rows
    arguments = sum(leaf.bytes for leaf in leaves.values()) + asked
    layer = _layer_weights(decoder, leaves) + _layer_activations(decoder, share)
    ends = _output_table(decoder, leaves) + 2 * _logits(decoder, share) / CONTINUED
    stream = 2 * share.tokens * decoder.d_model * share.each
    # Four log-likelihoods of a row.
    memory = Memory(arguments, 16 * share.rows, max(layer, ends) + stream)
    return memory, _exchanged(
        decoder, leaves, share, domain, gathers=1, sums=1, scatters=0
    )


def training(
    decoder: DecoderConfig, leaves: Leaves, step: Training, domain: int
) -> tuple[Memory, tuple[Collective, ...]]:
    """Return the memory and the exchanges of one step; arguments as `scoring`."""
    share = _share(decoder, leaves, step)
    params = sum(leaf.bytes for leaf in leaves.values())
    stream = share.tokens * decoder.d_model * share.each
    one = _layer_activations(decoder, share)
    if decoder.remat:  # streams are kept, and one layer at a time is done again
        kept = decoder.layers * stream + one
    else:
        kept = decoder.layers * one
    layer = 2 * _layer_weights(decoder, leaves) + 2 * one
    ends = 2 * _output_table(decoder, leaves) + 3 * _logits_at_once(decoder, share)
    scratch = params + kept + max(layer, ends)  # gradients are as large as parameters
    memory = Memory(3 * params + 8 * share.tokens, 0, scratch)
    again = 1 + decoder.remat
    found = _exchanged(
        decoder, leaves, share, domain, gathers=1 + again, sums=2 + again, scatters=1
    )
    return memory, found


def scoring_work(decoder: DecoderConfig, leaves: Leaves, batch: Scoring) -> Work:
    """Return the operations and the memory traffic of one batch."""
    share = _share(decoder, leaves, batch)
    unread = share.tokens * (1 - 1 / CONTINUED) / share.tensor
    return Work(
        flops=_forward_flops(decoder, share)
        - 2 * unread * decoder.vocab_size * decoder.d_model,
        traffic=_weights_traffic(leaves, decoder)
        + _activation_traffic(decoder, share)
        + 4 * _logits(decoder, share) / CONTINUED,
    )


def training_work(decoder: DecoderConfig, leaves: Leaves, step: Training) -> Work:
    """Return the operations and the memory traffic of one step.

    A backward pass takes twice the forward one; AdamW reads gradient, parameter and
    two moments, and writes three of them.
    """
    share = _share(decoder, leaves, step)
    passes = 3 + decoder.remat
    params = sum(leaf.bytes for leaf in leaves.values())
    return Work(
        flops=passes * _forward_flops(decoder, share),
        traffic=passes * _weights_traffic(leaves, decoder)
        + passes * _activation_traffic(decoder, share)
        + 8 * _logits(decoder, share)
        + 7 * params,
    )


def _share(decoder: DecoderConfig, leaves: Leaves, batch: Scoring | Training) -> _Share:
    mesh = next(iter(leaves.values())).sharding.mesh.shape
    parts = mesh.get("data", 1) * mesh.get("fsdp", 1)
    each = decoder.compute_dtype.itemsize
    tensor, devices = mesh.get("tensor", 1), math.prod(mesh.values())
    return _Share(batch.batch / parts, batch.length, tensor, each, devices)


def _forward_flops(decoder: DecoderConfig, share: _Share) -> float:
    """Return two operations for each weight and token, and attention over all pairs."""
    table = decoder.vocab_size * decoder.d_model
    matrices = models.parameter_count(decoder) - table * (
        0 if decoder.tied_embeddings else 1  # looking a token up multiplies nothing
    )
    attended = 4 * decoder.layers * decoder.heads * decoder.head_dim * share.length
    return share.tokens * (2 * matrices + attended) / share.tensor


def _gathered(leaf: Leaf, decoder: DecoderConfig) -> float:
    """Return the bytes of a leaf on a device while it is used, all layers of it."""
    size = decoder.compute_dtype.itemsize
    return leaf.elements * leaf.over("fsdp") * size


def _layer_weights(decoder: DecoderConfig, leaves: Leaves) -> float:
    """Return the bytes of one layer's gathered weights, and of the next one's."""
    stacked = (leaf for path, leaf in leaves.items() if path.startswith("layers/"))
    return 2 * sum(_gathered(leaf, decoder) for leaf in stacked) / decoder.layers


def _output_table(decoder: DecoderConfig, leaves: Leaves) -> float:
    """Return the bytes of the gathered output table."""
    return _gathered(leaves.get("head", leaves["embed"]), decoder)


def _logits(decoder: DecoderConfig, share: _Share) -> float:
    return share.tokens * decoder.vocab_size / share.tensor * 4


def _logits_at_once(decoder: DecoderConfig, share: _Share) -> float:
    """Return the bytes of the logits that a training step has at a time."""
    rows = math.ceil(share.rows)
    of_a_row = cross_entropy.positions(
        rows, share.length, decoder.vocab_size, share.devices
    )
    return _logits(decoder, share) * of_a_row / share.length


def _layer_activations(decoder: DecoderConfig, share: _Share) -> float:
    """Return the bytes one layer has at once: MLP, heads, scores in float32."""
    heads = decoder.heads * decoder.head_dim + 2 * decoder.kv_heads * decoder.head_dim
    inner = (3 * decoder.d_ff + heads) / share.tensor + 4 * decoder.d_model
    scores = decoder.heads / share.tensor * share.length * (4 + share.each)
    return share.tokens * (inner * share.each + scores)


def _weights_traffic(leaves: Leaves, decoder: DecoderConfig) -> float:
    """Return a pass over the weights: read, and where gathered written and read."""
    total = 0.0
    for leaf in leaves.values():
        again = 2 * _gathered(leaf, decoder) if leaf.over("fsdp") > 1 else 0
        total += leaf.bytes + again
    return total


def _activation_traffic(decoder: DecoderConfig, share: _Share) -> float:
    """Return what a forward pass reads and writes besides weights and logits."""
    return 2 * decoder.layers * _layer_activations(decoder, share)


def _exchanged(
    decoder: DecoderConfig,
    leaves: Leaves,
    share: _Share,
    domain: int,
    *,
    gathers: int,
    sums: int,
    scatters: int,
) -> tuple[Collective, ...]:
    """Return what a device sends: weights over fsdp, sums over tensor, copies' sums."""
    found = []
    mesh = next(iter(leaves.values())).sharding.mesh.shape
    split = [leaf for leaf in leaves.values() if leaf.over("fsdp") > 1]
    turns = [decoder.layers if len(leaf.shape) > 2 else 1 for leaf in split]
    pieces = [_gathered(x, decoder) / n for x, n in zip(split, turns, strict=True)]
    fsdp = mesh.get("fsdp", 1)
    for kind, times in (("all-gather", gathers), ("reduce-scatter", scatters)):
        if split and times:
            results = pieces if kind == "all-gather" else [p / fsdp for p in pieces]
            moved = sum(
                n * collectives.sent(kind, r, fsdp)
                for n, r in zip(turns, results, strict=True)
            )
            count = times * sum(turns)
            network = _span(mesh, "fsdp") > domain
            found.append(Collective(kind, network, count, times * moved, max(results)))
    if share.tensor > 1:
        result = share.tokens * decoder.d_model * share.each
        count = sums * decoder.layers * 2  # attention's and the MLP's, also in parallel
        moved = count * collectives.sent("all-reduce", result, share.tensor)
        network = _span(mesh, "tensor") > domain
        found.append(Collective("all-reduce", network, count, moved, result))
    copies = mesh.get("data", 1)
    if scatters and copies > 1:
        sizes = [leaf.bytes for leaf in leaves.values()]
        moved = sum(collectives.sent("all-reduce", size, copies) for size in sizes)
        network = _span(mesh, "data") > domain
        found.append(Collective("all-reduce", network, len(sizes), moved, max(sizes)))
    return total([tuple(found)])


def _span(mesh: Mapping[str, int], axis: str) -> int:
    """Return over how many neighbours, numbered in order, a group of an axis goes."""
    inside = list(mesh)[list(mesh).index(axis) :]
    return math.prod(mesh[name] for name in inside)
