"""The entropy of a merged model's predictions, and its gradient in the coefficients.

What is predicted is one of an example's choices, as rank classification has them; or
the next token, where a dataset has no choices. Which is right is not looked at.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging import models
from merging.evaluation import Requests, batches
from merging.evaluation.requests import Request, TemplateRequests
from merging.evaluation.shapes import STEP, Shape, power_of_2
from merging.runtime import tree
from merging.runtime.errors import UserError
from merging.sweep.coefficients import Groups


class Prompts(NamedTuple):
    """Unlabelled prompts, and what may follow; N of a dataset, or [D, B] of a step.

    Attributes:
      prefixes, tokens, lengths, firsts, segments, targets: as `models.Predictor` has
        them.
      choices: [N], how many; 0 where the next token is predicted.
      weights: [N], 0 on what only fills a batch.
    """

    prefixes: Any
    tokens: Any
    lengths: Any
    firsts: Any
    segments: Any
    targets: Any
    choices: Any
    weights: Any


class Functions(NamedTuple):
    """The jitted functions of a merge of K experts by G groups of leaves.

    Of arguments, `base` and `experts` are parameters, and prompts [D, B] come as B of
    each of D datasets.

    Attributes:
      start: ``(values [G, K]) -> (values, Adam's state)``, on all devices.
      step: ``(values, state, base, experts, prompts) -> (values, state, entropy)``, in
        nats, the mean over datasets of the mean over prompts.
      totals: ``(values, base, experts, prompts) -> [D]``, sums over prompts.
    """

    start: Any
    step: Any
    totals: Any


def prompts(requests: Requests) -> tuple[dict[str, Prompts], dict[str, int]]:
    """Return the prompts of each dataset, in rows of one shape.

    Returns:
      Them, and of each dataset how many examples are left out: those whose choices do
      not stand behind one prompt.

    Raises:
      UserError: datasets of which nothing is left.
    """
    rows: dict[str, list[Request]] = {}
    left_out: dict[str, int] = {}
    for one in requests.sets:
        name, found = one.dataset.name, _unlabelled(one)
        rows.setdefault(name, []).extend(found)
        left_out[name] = left_out.get(name, 0) + one.eval_set.examples - len(found)
    if empty := [name for name, of in rows.items() if not of]:
        raise UserError(
            f"{', '.join(empty)}: no example's choices stand behind one prompt, so that"
            " there is no distribution over them; choose other datasets."
        )
    every = [row for of in rows.values() for row in of]
    longest = max(len(row.prompt) + row.tail for row in every)
    tail = max(row.tail for row in every)
    shape = Shape(
        -(-(longest + 1) // STEP) * STEP - 1,
        max(power_of_2(tail), STEP) if tail else 0,
    )
    most = max(max(len(row.choices) for row in every), 1)
    made = {}
    for name, of in rows.items():
        choices = np.array([len(row.choices) for row in of], np.int32)
        weights = np.ones(len(of), np.float32)
        arrays = batches.arrays(of, shape, most)
        made[name] = Prompts(*arrays, choices, weights)
    return made, {name: n for name, n in left_out.items() if n}


def _unlabelled(one: TemplateRequests) -> list[Request]:
    """Return a request for each example whose choices stand behind one prompt."""
    if one.answers is None:
        return list(one.requests)
    where: dict[int, set[int]] = {}
    for group, request in zip(one.eval_set.groups, one.answers[0], strict=True):
        where.setdefault(int(group), set()).add(int(request))
    return [one.requests[of.pop()] for of in where.values() if len(of) == 1]


def entropies(
    config: models.DecoderConfig, params: models.Params, rows: Prompts
) -> jax.Array:
    """Return the entropy [B] of what a model predicts behind each prompt, in nats."""
    following, scores = models.likelihoods(config, params, *rows[:6])
    there = jnp.arange(scores.shape[1]) < rows.choices[:, None]
    # Finite, so that no gradient is NaN: what is not there has probability 0.
    scores = jnp.where(there, scores, jnp.finfo(scores.dtype).min / 2)
    of_choices = _entropy(jax.nn.log_softmax(scores))
    return jnp.where(rows.choices > 0, of_choices, _entropy(following))


def _entropy(log_p: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


@functools.lru_cache(maxsize=8)
def functions(
    config: models.DecoderConfig,
    groups: Groups,
    learning_rate: float,
    bounds: tuple[float, float],
    mesh: Mesh | None,
) -> Functions:
    """Return the functions of a merge on a mesh, the same ones for equal arguments.

    Args:
      config: the decoder; its dtype is that of activations.
      groups: of leaves.
      learning_rate: of Adam.
      bounds: least and most of a coefficient, to which every step's are clipped.
      mesh: the devices; None for one.
    """
    optimizer = optax.adam(learning_rate)

    def mean(params, rows):
        weight = jnp.maximum(rows.weights.sum(), 1e-6)
        found = entropies(config, _cast(params, config.param_dtype), rows)
        return jnp.sum(found * rows.weights) / weight

    def gradient(values, base, experts, rows):
        # θ is made once, and its gradient summed dataset by dataset: what lies between
        # a forward pass and its backward is that of one dataset's rows.
        merge = functools.partial(merged, groups, base=base, experts=experts)
        params, pull = jax.vjp(merge, values)

        def one(carry, rows):
            found = jax.value_and_grad(mean)(params, rows)
            return jax.tree.map(jnp.add, carry, found), None

        zero = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
        total, slope = jax.lax.scan(one, zero, rows)[0]
        count = len(rows.weights)
        return total / count, pull(slope)[0] / count

    def start(values):
        return values, optimizer.init(values)

    def step(values, state, base, experts, rows):
        entropy, slope = gradient(values, base, experts, rows)
        updates, state = optimizer.update(slope, state)
        values = jnp.clip(optax.apply_updates(values, updates), *bounds)
        return values, state, entropy

    def totals(values, base, experts, rows):
        params = _cast(merged(groups, values, base, experts), config.param_dtype)
        sums = jax.lax.map(
            lambda rows: jnp.sum(entropies(config, params, rows) * rows.weights), rows
        )
        return sums

    # Coefficients and sums are read by every process.
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    jit = functools.partial(jax.jit, out_shardings=everywhere)
    return Functions(jit(start), jit(step), jit(totals))


def merged(
    groups: Groups, values: jax.Array, base: models.Params, experts: Sequence[Any]
) -> models.Params:
    """Return θ₀ + Σ λ Δ in float32; λ is [G, K], of K experts."""
    flat, group = [tree.flatten(expert) for expert in experts], dict(groups.of)

    def leaf(path: str, start: jax.Array) -> jax.Array:
        start = start.astype(jnp.float32)
        found, share = start, values[np.array(group[path])]  # [layers, K], [K]
        for k, expert in enumerate(flat):
            each = share[..., k].reshape(-1, *[1] * (start.ndim - 1))
            each = each if share.ndim > 1 else share[k]
            found = found + each * (expert[path].astype(jnp.float32) - start)
        return found

    return tree.map_named(leaf, base)


def _cast(params: models.Params, dtype: Any) -> models.Params:
    return jax.tree.map(lambda x: x.astype(dtype), params)


def dealt(
    of: Mapping[str, Prompts], places: Mapping[str, np.ndarray], filled: int
) -> Prompts:
    """Return prompts [D, B] by their numbers in each dataset; beyond, weight 0.

    Args:
      of: each dataset's.
      places: [up to B], likewise.
      filled: B.
    """

    def rows(name: str) -> Prompts:
        own, chosen = of[name], places[name]
        numbers = np.resize(chosen, filled) if len(chosen) else np.zeros(filled, int)
        found = Prompts(*(array[numbers] for array in own))
        return found._replace(weights=found.weights * (np.arange(filled) < len(chosen)))

    stacked = zip(*(rows(name) for name in of), strict=True)
    return Prompts(*(np.stack(arrays) for arrays in stacked))
