"""Indices, magnitude keys, row selection, and the masks' randomness."""

import itertools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import references
from scipy import stats

from merging.runtime import numerics
from merging.runtime.numerics import Index

N = 2**17
ROOT = Path(__file__).parents[2]


def hashes(seed=0, expert="law", path="w", start=0, count=N):
    index = numerics.element_index(
        (count,), (1,), numerics.as_index(start, start + count)
    )
    key = tuple(np.uint32(word) for word in numerics.mask_key(seed, expert, path))
    return np.asarray(jax.jit(numerics.random_bits)(index, key))


@pytest.mark.parametrize("start", [0, 2**32 - 3, 5 * 2**33 + 1])
def test_an_index_is_that_of_the_whole_leaf_beyond_32_bits_too(start):
    # A block [2, 3, 5] that begins at [s, 1, 2] of a leaf [s + 2, 7, 2**31 + 11].
    shape, strides = (2, 3, 5), (7 * (2**31 + 11), 2**31 + 11, 1)
    index = numerics.element_index(
        shape, strides, numerics.as_index(start, start + 2 * strides[0])
    )
    for place in itertools.product(*map(range, shape)):
        expected = start + sum(a * b for a, b in zip(place, strides, strict=True))
        found = int(index.high[place]) << 32 | int(index.low[place])
        assert found == expected


def test_narrow_and_wide_indices_hash_alike():
    narrow = hashes(start=1000, count=64)
    low = jnp.arange(1000, 1064, dtype=jnp.uint32)
    key = tuple(np.uint32(word) for word in numerics.mask_key(0, "law", "w"))
    wide = numerics.random_bits(Index(low, jnp.zeros_like(low)), key)
    np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("start", [0, 2**32 - 8, 2**40 + 3])
def test_the_hash_is_the_documented_one(start):
    words = numerics.mask_key(7, "law", "w")
    expected = [references.hash_index(start + i, *words) for i in range(16)]
    assert hashes(seed=7, start=start, count=16).tolist() == expected


def test_a_mask_is_the_same_in_every_process():
    program = (
        "from merging.runtime import numerics\n"
        "print(numerics.mask_key(3, 'law', 'a/b'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "12", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout.strip() == str(numerics.mask_key(3, "law", "a/b"))
    # Written down once, so that a merge of today can be had again tomorrow.
    assert hashes(count=3).tolist() == [941189438, 1338254752, 3828099849]


STREAMS = {
    "leaf": [{"path": f"layers/{i}"} for i in range(8)],
    "expert": [{"expert": name} for name in ("law", "code", "math", "chat")],
    "seed": [{"seed": s} for s in (0, 1, 2, 3, 2**32, 2**63)],
    "far": [{"start": s} for s in (0, N, 2**32, 2**32 + N, 2**33)],
}


@pytest.mark.parametrize("stream", STREAMS["leaf"] + STREAMS["seed"] + STREAMS["far"])
def test_bits_are_uniform(stream):
    bits = hashes(**stream)
    for part in (bits >> 24, bits >> 8 & 255, bits & 255):
        counts = np.bincount(part, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-5
    assert stats.kstest(bits / 2.0**32, "uniform").pvalue > 1e-5


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("lag", [1, 2, 3, 64, 128, 1024, 4096])
def test_neighbours_at_any_stride_are_independent(lag, density):
    keep = hashes() <= numerics.mask_bound(density)
    assert independence(keep[:-lag], keep[lag:]) > 1e-5


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", STREAMS)
def test_leaves_experts_seeds_and_far_blocks_are_independent(kind, density):
    keeps = [
        hashes(**stream) <= numerics.mask_bound(density) for stream in STREAMS[kind]
    ]
    for one, other in itertools.combinations(keeps, 2):
        assert independence(one, other) > 1e-5


def test_every_bit_of_the_index_and_the_key_flips_half_of_the_hash():
    rng = np.random.default_rng(0)
    low, high, first, second = (
        jnp.asarray(rng.integers(0, 2**32, 4096, dtype=np.uint32)) for _ in range(4)
    )
    bits = jax.jit(lambda a, b, c, d: numerics.random_bits(Index(a, b), (c, d)))
    plain = bits(low, high, first, second)
    for word in range(4):
        for bit in range(32):
            words = [low, high, first, second]
            words[word] = words[word] ^ np.uint32(1 << bit)
            flipped = np.asarray(plain ^ bits(*words))
            shares = [np.mean(flipped >> out & 1) for out in range(32)]
            assert np.abs(np.array(shares) - 0.5).max() < 0.06, (word, bit)


def independence(one, other):
    table = np.array(
        [[(one & other).sum(), (one & ~other).sum()],
         [(~one & other).sum(), (~one & ~other).sum()]]
    )  # fmt: skip
    return stats.chi2_contingency(table, correction=False).pvalue


def test_the_masks_bound_keeps_the_density_and_at_least_one_hash():
    assert numerics.mask_bound(1.0) == 2**32 - 1
    assert numerics.mask_bound(0.25) == 2**30 - 1
    assert numerics.mask_bound(1e-12) == 0


def test_keys_order_as_magnitudes_do():
    values = np.array([0, -1e-45, 1e-40, -1e-38, 1e-5, -1, 1.0000001, 3e38, -np.inf])
    for x64, dtype, key_dtype in (
        (False, jnp.float32, jnp.uint32),
        (False, jnp.bfloat16, jnp.uint32),
        (True, jnp.float64, jnp.uint64),
        (True, jnp.float32, jnp.uint64),
    ):
        with jax.enable_x64(x64):
            x = jnp.asarray(values, dtype)
            keys = np.asarray(numerics.magnitude_keys(x, key_dtype))
            keys_of_opposites = numerics.magnitude_keys(-x, key_dtype)
            np.testing.assert_array_equal(keys, keys_of_opposites)
            order = np.argsort(keys, kind="stable")
            np.testing.assert_array_equal(order, np.arange(len(values)))
            assert int(keys[-1]) == numerics.key_top(key_dtype) - 1


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 63, 64])
def test_rows_keep_their_largest(columns, exact):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 5, (2, 7, columns)).astype(np.uint32) * 3
    for rank in sorted({0, 1, columns // 2, columns, columns + 1, 3 * columns}):
        keep = np.asarray(
            jax.jit(numerics.kept_in_rows, static_argnums=2)(keys, rank, exact)
        )
        for row, kept in zip(
            keys.reshape(-1, columns), keep.reshape(-1, columns), strict=True
        ):
            order = np.lexsort((np.arange(columns), -row.astype(int)))
            wanted = np.isin(np.arange(columns), order[:rank])
            if not exact and rank:
                wanted = row >= row[order[min(rank, columns) - 1]]
            np.testing.assert_array_equal(kept, wanted)
        for dtype, part in ((np.uint32, 3 * columns), (np.uint64, 2**16)):
            host = keys.astype(dtype), np.int32(rank), exact, part
            found = numerics.kept_in_rows_on_host(*host)
            np.testing.assert_array_equal(found, keep)


@pytest.mark.parametrize("exact", [False, True])
def test_each_row_may_have_a_rank_of_its_own(exact):
    keys = np.random.default_rng(0).integers(0, 5, (20, 64)).astype(np.uint32)
    for ranks, part in (([0, 3, 64, 3, 17] * 4, 4 * 64), ([3, 0, 5, 5, 3] * 4, 2**16)):
        ranks = np.array(ranks)[:, None]
        found = numerics.kept_in_rows_on_host(keys, ranks, exact, part)
        for row, rank, kept in zip(keys, ranks[:, 0], found, strict=True):
            alone = numerics.kept_in_rows(row[None], jnp.int32(rank), exact)
            np.testing.assert_array_equal(kept, np.asarray(alone)[0])


def test_counts_past_int32_are_left_in_parts(monkeypatch):
    huge = jax.ShapeDtypeStruct((3, 2**15, 2**16 - 1), bool)
    assert jax.eval_shape(numerics.count, huge).shape == (3,)
    with pytest.raises(ValueError, match="cannot be counted"):
        jax.eval_shape(numerics.count, jax.ShapeDtypeStruct((2**31,), bool))
    mask = jnp.arange(24).reshape(2, 3, 4) % 5 == 0
    assert int(numerics.count(mask)) == 5
    monkeypatch.setattr(numerics, "COUNT_LIMIT", 12)
    assert numerics.count(mask).tolist() == [3, 2]


ROUNDING = """
import jax, numpy as np
from merging.runtime import numerics
x, y = np.random.default_rng(0).normal(size=(2, 8, 1024)).astype(np.float32)
factor = np.float32(0.1)
ours = jax.jit(lambda x, y, f: y + numerics.scaled(x, f))(x, y, factor)
assert np.array_equal(ours, y + x * factor), "contracted"
constant = jax.jit(lambda x, y: y + numerics.scaled(x, 0.1))(x, y)
assert np.array_equal(constant, y + x * factor), "contracted with a constant"
assert np.array_equal(jax.jit(numerics.divided)(x, factor), x / factor), "reciprocal"
thirds = jax.jit(lambda x: numerics.divided(x, 3))(x)
assert np.array_equal(thirds, x / np.float32(3)), "reciprocal of a constant"
"""


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_max_isa=AVX2",
    ],
)
def test_products_and_quotients_round_by_themselves_whatever_the_optimiser(flags):
    run = subprocess.run(
        [sys.executable, "-c", ROUNDING],
        capture_output=True,
        text=True,
        env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
