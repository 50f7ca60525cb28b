"""Merging in memory: statistics, masks, donation, what moves, errors."""

import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from methods import cases
from statistics_of import statistics_of

from merging import methods
from merging.merge import (
    cutting,
    kernels,
    memory,
    merge,
    merge_scales,
    on_host,
)
from merging.merge.stored import StoredLeaf
from merging.runtime.errors import UserError

TWO = {"a": (64, 8), "b": (8, 3)}


def assert_same_bits(one, other):
    assert cases.bits(one) == cases.bits(other)


def one_leaf(values, dtype=jnp.float32):
    return {"w": jnp.asarray(values, dtype)}


def test_the_global_trim_ranks_the_whole_model():
    base = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    expert = {"a": jnp.arange(1.0, 5), "b": jnp.arange(10.0, 14)}
    merged = merge(base, {"e": expert}, methods.ties(density=0.5), donate=False)
    # Of eight, k = 4, and keep_all's threshold is the fourth smallest: five stay.
    assert merged["a"].tolist() == [0, 0, 0, 4]
    assert merged["b"].tolist() == [10, 11, 12, 13]


def test_a_zero_sum_takes_the_majority_sign_of_the_model():
    experts = {"a": one_leaf([1, -1, -1, 2.0]), "b": one_leaf([-1, -1, -1, -2.0])}
    base = one_leaf([0, 0, 0, 0.0])
    found = merge(base, experts, methods.ties(density=1), donate=False)
    assert found["w"].tolist() == [-1, -1, -1, -2]
    positive = methods.ties(density=1, zero="positive")
    assert merge(base, experts, positive)["w"].tolist() == [1, -1, -1, 2]


def test_the_trim_after_the_drop_ranks_what_the_drop_left():
    base, experts = cases.models(2)
    dropped = methods.dare_ties(density=0.5, trim_density=1.0)
    assert_same_bits(
        merge(base, experts, dropped, donate=False),
        merge(base, experts, methods.dare_ties(density=0.5), donate=False),
    )
    # A hundredth of half dropped: only the largest magnitudes of all remain.
    strict = methods.dare_ties(density=0.5, trim_density=0.01)
    merged = merge(base, experts, strict, donate=False)
    moved = jax.tree.map(lambda x, y: np.abs(np.asarray(x - y)), merged, base)
    values = np.concatenate([x.ravel() for x in jax.tree.leaves(moved)])
    assert set(np.round(values[values > 0] * 256 * 0.5)) == {11}


def kept_by_dare(experts, seed=0, name="e", path="w", density=0.5):
    """Return where one expert's mask keeps, seen through a merge."""
    size = 4096
    base = {path: jnp.zeros(size)}
    alone = {n: {path: jnp.full(size, float(n == name))} for n in experts}
    method = methods.dare(density=density, scale=1.0)
    return np.asarray(merge(base, alone, method, seed=seed)[path]) > 0


def test_masks_depend_on_seed_expert_and_path_and_nothing_else():
    mask = kept_by_dare(["e"])
    np.testing.assert_array_equal(mask, kept_by_dare(["a", "e", "z"]))
    np.testing.assert_array_equal(mask, kept_by_dare(["z", "e"]))
    assert 0.45 < mask.mean() < 0.55
    others = [
        kept_by_dare(["e"], seed=1),
        kept_by_dare(["f"], name="f"),
        kept_by_dare(["e"], path="v"),
    ]
    for other in others:
        assert 0.4 < (mask == other).mean() < 0.6


def test_an_expert_keeps_more_of_the_same_elements_at_a_higher_density():
    sparse, dense = kept_by_dare(["e"], density=0.2), kept_by_dare(["e"], density=0.6)
    assert not (sparse & ~dense).any()


def test_every_scale_is_the_merge_with_that_scale():
    base, experts = cases.models()
    method = methods.dare_ties(density=0.6, trim_density=0.5)
    scales = [0.0, 0.3, 1.0]
    for scale, merged in zip(
        scales, merge_scales(base, experts, method, scales), strict=True
    ):
        alone = methods.dare_ties(density=0.6, trim_density=0.5, scale=scale)
        assert_same_bits(merged, merge(base, experts, alone, donate=False))
    with pytest.raises(UserError, match="average has no scale"):
        next(merge_scales(base, experts, methods.average(), [1.0]))


def test_new_numbers_compile_nothing():
    base, experts = cases.models(shapes=TWO)
    for name, first, second in (
        ("sce", {"density": 0.2}, {"density": 0.7}),
        ("ties", {"density": 0.2}, {"density": 0.7, "scale": 0.1}),
        ("dare_ties", {"weights": (1, 2, 3)}, {"weights": (3, 2, 1), "density": 0.3}),
        ("rht", {"scale": 0.1}, {"scale": 0.2, "density": 0.1}),
    ):
        before = merge(base, experts, methods.get(name, **first), donate=False)
        with jax.no_tracing():  # raises where something would be compiled
            method = methods.get(name, **second)
            after = merge(base, experts, method, seed=5, donate=False)
        # And the new numbers were not ignored.
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        assert any((a != b).any() for a, b in pairs)


def mesh_of(*shape):
    names = ("x", "y")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


# On a mesh, one of each that asks for something else: nothing, keys, sums, a selection
# among scores, whole matrices.
PLACED = [(name, False) for name in cases.KINDS]
PLACED += [(n, True) for n in ("average", "ties", "model_stock", "sce", "iso_c")]
placed = pytest.mark.parametrize(("name", "sharded"), PLACED)


@placed
def test_the_bases_buffers_are_kept_or_reused(name, sharded):
    sharding = NamedSharding(mesh_of(8), P("x")) if sharded else None
    base, experts = cases.models(cases.experts_for(name), shapes=TWO)
    base = jax.tree.map(lambda x: jax.device_put(x, sharding), base)
    before = cases.bits(base)
    kept = merge(base, experts, methods.get(name), donate=False)
    assert cases.bits(base) == before
    where = {p: x.addressable_shards[0].data.unsafe_buffer_pointer() for p, x in
             base.items()}  # fmt: skip
    merged = merge(base, experts, methods.get(name), donate=True)
    assert_same_bits(merged, kept)
    assert all(x.is_deleted() for x in base.values())
    assert not any(x.is_deleted() for e in experts.values() for x in e.values())
    for path, leaf in merged.items():
        shard = leaf.addressable_shards[0].data
        assert shard.unsafe_buffer_pointer() == where[path]


@pytest.mark.parametrize("sharded", [False, True])
def test_merges_of_several_scales_can_share_the_memory_of_one(sharded):
    base, experts = cases.models(shapes=TWO)
    if sharded:
        over = NamedSharding(mesh_of(8), P("x"))
        base = jax.tree.map(lambda x: jax.device_put(x, over), base)
    method, scales = methods.ties(density=0.5), [0.3, 1.0, 0.0]
    alone = [merge(base, experts, methods.ties(density=0.5, scale=s)) for s in scales]
    earlier, place = None, None
    for expected, merged in zip(
        alone, merge_scales(base, experts, method, scales, reuse=True), strict=True
    ):
        assert_same_bits(merged, expected)
        pointers = {
            path: leaf.addressable_shards[0].data.unsafe_buffer_pointer()
            for path, leaf in merged.items()
        }
        assert earlier is None or all(x.is_deleted() for x in earlier.values())
        assert place in (None, pointers)
        earlier, place = merged, pointers
    assert not any(x.is_deleted() for x in base.values())


@placed
def test_experts_that_stay_in_storage_are_read_a_leaf_at_a_time(name, sharded):
    base, experts = cases.models(cases.experts_for(name), shapes=TWO)
    if sharded:
        over = NamedSharding(mesh_of(8), P("x"))
        base = jax.tree.map(lambda x: jax.device_put(x, over), base)
    held, most = [], 0

    def stored(leaf):
        def read(sharding):
            nonlocal held, most
            held = [(kept, shape) for kept, shape in held if kept() is not None]
            array = jax.device_put(leaf, sharding)
            held.append((weakref.ref(array), leaf.shape))
            most = max(most, len({shape for _, shape in held}))
            return array

        return StoredLeaf(leaf.shape, leaf.dtype, read)

    method = methods.get(name)
    expected = merge(base, experts, method, donate=False)
    there = {n: jax.tree.map(stored, expert) for n, expert in experts.items()}
    assert_same_bits(merge(base, there, method), expected)
    # On a mesh one leaf of each expert; small leaves on one device come packed.
    assert most == 1 or (most == 2 and not sharded)


def test_what_is_wrong_with_a_stored_leaf_is_named():
    base = {"w": jnp.zeros(3), "n": jnp.arange(3)}
    expert = {"w": jnp.array([1.0, jnp.nan, 0.0]), "n": jnp.arange(3)}

    def stored(leaf):
        return StoredLeaf(leaf.shape, leaf.dtype, lambda at: jax.device_put(leaf, at))

    there = jax.tree.map(stored, expert)
    with pytest.raises(UserError, match="w.*expert e"):
        merge(base, {"e": there}, methods.ties())
    there["n"] = stored(jnp.arange(1, 4))
    with pytest.raises(UserError, match="n: 'expert e' differs from 'base'"):
        merge(base, {"e": there}, methods.ties())
    with pytest.raises(UserError, match="merged on a base in memory"):
        merge(None, {"e": there}, methods.average())


def test_a_base_that_is_also_an_expert_or_tied_or_numpy_can_be_donated():
    tied = jnp.arange(4.0)
    owned = np.arange(4.0, dtype=np.float32)
    base = {"a": tied, "b": tied, "c": owned}
    expert = {"a": tied, "b": tied + 1, "c": owned + 1}
    merged = merge(base, {"e": expert}, methods.task_arithmetic(scale=1.0), donate=True)
    assert_same_bits(merged, {"a": np.float32([0, 1, 2, 3]), "b": expert["b"],
                              "c": expert["c"]})  # fmt: skip
    assert owned.tolist() == [0, 1, 2, 3]
    assert not tied.is_deleted()


LAYOUTS = {
    "leading": ((8,), P("x")),
    "trailing": ((8,), P(None, "x")),
    "both": ((2, 4), P("y", "x")),
    "folded": ((2, 4), P(None, ("x", "y"))),
}


RANKED = methods.ties(ties="exact")
CUT = [(layout, RANKED) for layout in ("leading", "trailing")]
CUT += [
    (layout, method)
    for layout in ("both", "folded")
    for method in (
        RANKED,
        methods.ties(scope="row", ties="exact"),
        methods.dare_ties(trim_density=0.1),
        methods.rht(),
        methods.average(),
    )
]


@pytest.mark.parametrize(
    ("layout", "method"), CUT, ids=[f"{at}-{m.name}-{m.granularity}" for at, m in CUT]
)
def test_no_leaf_is_gathered(layout, method, monkeypatch):
    shape, spec = LAYOUTS[layout]
    sharding = NamedSharding(mesh_of(*shape), spec)
    base, experts = cases.models(2, shapes={"w": (16, 64)})
    base, experts = jax.tree.map(lambda x: jax.device_put(x, sharding), (base, experts))
    programs = []

    def recording(jitted):
        def run(*args, **static):
            program = jitted.lower(*args, **static).compile()
            programs.append(program)
            return program(*args, **{k: static[k] for k in static if k == "statistics"})

        return run

    for name in ("merge", "merge_over", "keys", "count", "reduced"):
        monkeypatch.setattr(kernels, name, recording(getattr(kernels, name)))
    merge(base, experts, method, donate=True)
    assert len(programs) >= (1 if method.name == "average" else 2)
    for program in programs:
        moved = re.findall(
            r"(all-gather|all-to-all|collective-permute)\(", program.as_text()
        )
        assert not moved
    # The last program writes over the base: 16 * 64 float32 over eight devices.
    assert programs[-1].memory_analysis().alias_size_in_bytes == 16 * 64 * 4 // 8


def test_experts_in_another_layout_are_brought_to_the_bases():
    base, experts = cases.models(2, shapes={"w": (16, 64)})
    expected = cases.bits(merge(base, experts, methods.rht(), donate=False))
    mesh = mesh_of(8)
    base = jax.device_put(base, NamedSharding(mesh, P("x")))
    experts["law"] = jax.device_put(experts["law"], NamedSharding(mesh, P(None, "x")))
    merged = merge(base, experts, methods.rht(), donate=False)
    assert cases.bits(merged) == expected
    assert merged["w"].sharding.spec == P("x")


def test_small_leaves_share_blocks_up_to_a_size(monkeypatch):
    monkeypatch.setattr(cutting, "PACKED_LEAF", 600)
    monkeypatch.setattr(cutting, "PACKED_BLOCK", 650)
    base, experts = cases.models()
    blocks = memory._prepare(base, experts, methods.ties(), 0).cut.blocks
    assert sum(b.elements for b in blocks) == sum(x.size for x in jax.tree.leaves(base))
    assert len(blocks) == 3
    assert [b.shape is not None for b in blocks].count(True) == 2
    small = merge(base, experts, methods.ties(), donate=False)
    monkeypatch.undo()
    assert_same_bits(small, merge(base, experts, methods.ties(), donate=False))


@pytest.mark.parametrize("name", ["ties", "rht", "della"])
def test_leaves_on_an_accelerator_are_counted_there_to_the_same_bits(name, monkeypatch):
    base, experts = cases.models(2)
    expected = merge(base, experts, methods.get(name))
    monkeypatch.setattr(on_host, "on_one_cpu", lambda array: False)
    counted = merge(base, experts, methods.get(name))
    monkeypatch.setattr(cutting, "PACKED_LEAF", 0)
    apart = merge(base, experts, methods.get(name))
    assert_same_bits(counted, expected)
    assert_same_bits(apart, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (70_000,), (3, 5, 257), (300, 1024)])
def test_numpy_ranks_rows_as_the_devices_do(shape, dtype, monkeypatch):
    with jax.enable_x64(True):
        values = np.random.default_rng(0).normal(size=shape)
        base = {"w": jnp.zeros(shape, dtype)}
        expert = {"w": jnp.asarray(np.round(values, 2), dtype)}  # many are equal
        method = methods.della_linear(density=0.5, epsilon=0.4)
        found = merge(base, [expert], method)
        monkeypatch.setattr(on_host, "on_one_cpu", lambda array: False)
        assert_same_bits(found, merge(base, [expert], method))


def test_an_average_needs_no_base():
    base, experts = cases.models()
    without = merge(None, experts, methods.average())
    assert_same_bits(without, merge(base, experts, methods.average()))
    with pytest.raises(UserError, match="ties merges task vectors: it needs the base"):
        merge(None, experts, methods.ties())


def test_mixed_dtypes_are_merged_wide_and_come_back_as_the_bases():
    base = one_leaf([1.0, 2.0], jnp.bfloat16)
    expert = one_leaf([1 + 2**-12, 2.0])
    merged = merge(base, {"e": expert}, methods.task_arithmetic(scale=2.0**11))
    assert merged["w"].dtype == jnp.bfloat16
    assert merged["w"].tolist() == [1.5, 2.0]


def test_nan_and_inf_are_all_named_by_leaf_and_model():
    base, experts = cases.models()
    base["odd"] = base["odd"].at[62].set(jnp.inf)
    experts["math"]["layers"]["norm"] = (
        experts["math"]["layers"]["norm"].at[1, 2].set(jnp.nan)
    )
    for limit in (cutting.PACKED_LEAF, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cutting, "PACKED_LEAF", limit)
            with pytest.raises(UserError) as error:
                merge(base, experts, methods.ties())
        assert str(error.value).splitlines()[1:] == [
            "  odd in 'base'",
            "  layers/norm in 'expert math'",
        ]
    assert not base["scalar"].is_deleted()


def test_integer_leaves_are_copied_and_all_unequal_ones_listed():
    base = {"w": jnp.zeros(2), "ids": jnp.arange(3), "on": jnp.array([True])}
    good = {**base, "w": jnp.ones(2)}
    merged = merge(base, {"good": good}, methods.average(), donate=False)
    assert merged["ids"].tolist() == [0, 1, 2] and merged["on"].tolist() == [True]
    bad = {**base, "ids": jnp.array([0, 1, 3]), "on": jnp.array([False])}
    with pytest.raises(UserError) as error:
        merge(base, {"good": good, "bad": bad}, methods.average())
    assert str(error.value).splitlines()[1:] == [
        "  ids: 'expert bad' differs from 'base'",
        "  on: 'expert bad' differs from 'base'",
    ]


def test_models_that_differ_are_refused_with_every_leaf():
    base = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    experts = {"x": {"a": jnp.zeros(3), "b": jnp.zeros(2)}, "y": {"a": jnp.zeros(2)}}
    with pytest.raises(UserError, match="a: shape .*'expert x'(.|\n)*b: missing"):
        merge(base, experts, methods.average())


def test_experts_and_weights_that_do_not_fit_are_refused():
    base = one_leaf([0.0])
    with pytest.raises(UserError, match="at least one"):
        merge(base, {}, methods.average())
    with pytest.raises(UserError, match="2 weights for 1 experts"):
        merge(base, {"e": base}, methods.average(weights=(1, 2)))
    with pytest.raises(UserError, match="names must be strings, not 3"):
        merge(base, {3: base}, methods.average())
    with pytest.raises(UserError, match="w: complex64 in 'base'"):
        complex_ = one_leaf([1j], jnp.complex64)
        merge(complex_, {"e": complex_}, methods.average())


def test_integers_that_jax_would_cut_in_half_are_copied_whole():
    wide = np.array([2**40 + 5, -1])
    models = [{"steps": wide, "w": np.ones(2, np.float32)} for _ in range(3)]
    found = merge(models[0], {"a": models[1], "b": models[2]}, methods.average())
    assert found["steps"].dtype == np.int64 and found["steps"].tolist() == wide.tolist()
    models[2]["steps"] = np.array([5, -1])
    with pytest.raises(UserError, match="steps: 'expert b' differs"):
        merge(models[0], {"a": models[1], "b": models[2]}, methods.average())


@pytest.mark.parametrize("dtype", [np.float64, jnp.float8_e4m3fn])
def test_dtypes_that_would_be_merged_in_another_are_refused(dtype):
    model = {"w": np.ones(2, dtype)}
    with pytest.raises(UserError, match=f"w: {np.dtype(dtype)} in 'base'"):
        merge(model, {"a": model}, methods.average())


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in methods.names() if "@" not in n])
def test_float64_elsewhere_changes_no_bit_of_float32(name):
    rng = np.random.default_rng(5)
    models = [{"w": rng.normal(size=(16, 24)).astype(np.float32)} for _ in range(4)]
    count = cases.experts_for(name)
    experts = dict(zip("abc"[:count], models[1:], strict=False))
    weighted = "weights" in methods.parameters(name)
    weights = {"weights": (0.1, 0.1, 1.1)[-count:]}
    method = methods.get(name, **(weights if weighted else {}))
    told = statistics_of(method, experts)
    narrow = merge(models[0], experts, method, statistics=told)["w"]
    with jax.enable_x64(True):
        wide = merge(models[0], experts, method, statistics=told)["w"]
        assert wide.dtype == jnp.float32
        assert np.asarray(wide).tobytes() == np.asarray(narrow).tobytes()
