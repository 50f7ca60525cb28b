"""The laws that every method keeps, over the whole registry."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from statistics_of import statistics_of
from tolerance import rounding

import merging
from merging import UserError, methods
from merging.merge import cutting, kernels, memory
from merging.runtime import numerics, tree

every_case = pytest.mark.parametrize(("name", "parameters"), cases.ALL, ids=cases.IDS)
# What a method's numbers do not change is held once for each way it looks at leaves.
ways = pytest.mark.parametrize(("name", "parameters"), cases.WAYS)
every_method = pytest.mark.parametrize("name", methods.names())
SPARSE = [e.name for e in methods.catalogue() if "density" in e.parameters]
SCALED = [e.name for e in methods.catalogue() if "scale" in e.parameters]
scaled = pytest.mark.parametrize("name", SCALED)


def some_models(name, **settings):
    """Return `cases.models` with as many experts as the method merges."""
    return cases.models(cases.experts_for(name), **settings)


def merge(base, experts, method, **options):
    """Merge, with statistics of the experts if the method wants some."""
    told = statistics_of(method, experts)
    return merging.merge(base, experts, method, statistics=told, **options)


def expected(name, parameters, base, experts, seed=0):
    full = {**methods.parameters(name), **parameters}
    if full.get("weights", ()) is None:
        full["weights"] = (1.0,) * len(experts)
    if told := statistics_of(methods.get(name, **parameters), experts):
        full["statistics"] = {n: cases.as_float64(of) for n, of in told.items()}
    experts64 = {n: cases.as_float64(e) for n, e in experts.items()}
    return getattr(references, name.replace("@", "_"))(
        base=cases.as_float64(base), experts=experts64, seed=seed, **full
    )


def roundings(name):
    """Return how many roundings an element goes through, of three experts at most.

    Elementwise: the sum of three weighted task vectors (6), a division, the scale, the
    addition to the base. Of matrices: LAPACK's singular vectors are those of a matrix
    that is off by as many roundings as it has rows and columns, 40 + 16 at most here.
    """
    return 9 if methods.get(name).granularity != "matrix" else 40 + 16


def assert_agrees(merged, reference, tolerance):
    """Every element is within the tolerance, of sums that stay below 1 in magnitude."""
    for path, leaf in tree.flatten(merged).items():
        np.testing.assert_allclose(
            np.asarray(leaf, np.float64),
            reference[path],
            rtol=0,
            atol=tolerance,
            err_msg=path,
        )


def test_the_battery_covers_the_registry():
    assert sorted(cases.CASES) == sorted(methods.names())


@pytest.mark.numeric
@pytest.mark.parametrize(("name", "parameters"), [*cases.ALL, *cases.MORE])
def test_agrees_with_the_float64_reference(name, parameters):
    base, experts = some_models(name, shapes=cases.shapes_for(name, parameters))
    merged = merge(base, experts, methods.get(name, **parameters), donate=False)
    reference = expected(name, parameters, base, experts)
    assert_agrees(merged, reference, rounding(roundings(name)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("average", {}),
        ("ties", {"density": 1.0}),
        ("dare_ties", {"density": 1.0}),
        ("rht", {"density": 1.0}),
        ("emr", {}),
        ("fisher", {}),
        ("regmean", {}),
        ("task_arithmetic", {"scale": 1.0, "weights": (0.25, 0.5, 0.25)}),
    ],
)
def test_copies_of_one_model_merge_to_that_model(name, parameters):
    base, experts = cases.models(1, shapes=cases.shapes_for(name, parameters))
    copies = dict.fromkeys("abc", experts["law"])
    merged = merge(base, copies, methods.get(name, **parameters), donate=False)
    # A sum of three, a division, an addition, of weights below 1/6.
    assert_agrees(merged, cases.as_float64(experts["law"]), rounding(5, 1 / 6))


@scaled
def test_a_scale_of_zero_gives_the_base(name):
    parameters = {**cases.CASES[name][0], "scale": 0}
    base, experts = some_models(name, shapes=cases.shapes_for(name, parameters))
    merged = merge(base, experts, methods.get(name, **parameters), donate=False)
    assert cases.bits(merged) == cases.bits(base)


@every_case
def test_zero_task_vectors_give_the_base(name, parameters):
    base, _ = cases.models(shapes=cases.shapes_for(name, parameters))
    merged = merge(
        base,
        dict.fromkeys("abc"[: cases.experts_for(name)], base),
        methods.get(name, **parameters),
        donate=False,
    )
    # As of three copies; of weights up to 1/8.
    assert_agrees(merged, cases.as_float64(base), rounding(5, 1 / 8))


@every_case
def test_the_order_of_experts_and_leaves_changes_no_bit(name, parameters):
    base, experts = some_models(name, shapes=cases.shapes_for(name, parameters))
    method = methods.get(name, **parameters)
    *rest, last = experts
    turned = {n: experts[n] for n in (last, *rest)}
    turned_base = dict(reversed(base.items()))
    if weights := parameters.get("weights"):
        parameters = {**parameters, "weights": (weights[-1], *weights[:-1])}
    if name == "slerp":  # from the other end
        parameters = {**parameters, "t": 1 - parameters["t"]}
    merged = merge(base, experts, method, donate=False)
    again = merge(turned_base, turned, methods.get(name, **parameters), donate=False)
    assert list(again) == list(turned_base)
    assert cases.bits(again) == cases.bits(merged)


def mesh_layouts():
    """Yield two of (description, params -> params laid out over eight devices)."""
    for shape, axes, step in (((8,), ("x",), 1), ((2, 4), ("x", "y"), -1)):
        mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))

        def spec(leaf, axes=axes, mesh=mesh, step=step):
            names, free = [None] * leaf.ndim, list(axes)
            for axis in range(leaf.ndim)[::step]:
                if free and leaf.shape[axis] % mesh.shape[free[0]] == 0:
                    names[axis] = free.pop(0)
            return NamedSharding(mesh, P(*names))

        yield (
            f"{shape}",
            lambda params, spec=spec: jax.tree.map(
                lambda x: jax.device_put(x, spec(x)), params
            ),
        )


def spread_models(name, shapes):
    """Return models of many different magnitudes."""
    base, experts = some_models(name, shapes=shapes)
    rng = np.random.default_rng(3)
    return base, {
        n: jax.tree.map(lambda x: x + rng.normal(size=x.shape) * 1e-2, e)
        for n, e in experts.items()
    }


# Leaves that divide over devices, and that do not.
BOTH = {path: cases.SHAPES[path] for path in ("layers/attention", "odd")}


@pytest.mark.parametrize("name", ["average", "ties", "dare_ties", "rht"])
def test_packed_and_unpacked_agree_bit_for_bit(name, monkeypatch):
    base, experts = spread_models(name, BOTH)
    method = methods.get(name)
    packed = cases.bits(merge(base, experts, method, donate=False))
    monkeypatch.setattr(cutting, "PACKED_LEAF", 0)
    assert cases.bits(merge(base, experts, method, donate=False)) == packed


# Mergekit's that are made of parts which others have, too, are held by `test_stream`
# alone: it merges every method in blocks that are spread over eight devices.
KEPT_APART = ("della@mergekit", "breadcrumbs@mergekit", "model_stock@mergekit")
SPREAD = [(n, p) for n, p in cases.WAYS if "@" not in n or n in KEPT_APART]


@pytest.mark.parametrize(("name", "parameters"), SPREAD)
def test_sharded_and_unsharded_agree_bit_for_bit(name, parameters):
    every = name in cases.KINDS and parameters is cases.CASES[name][0]
    shapes = BOTH if every else cases.one_leaf_for(name, parameters)
    base, experts = spread_models(name, shapes)
    method = methods.get(name, **parameters)
    alone = cases.bits(merge(base, experts, method, donate=False))
    layouts = list(mesh_layouts())
    for label, place in layouts if every else layouts[-1:]:
        sharded = place(base)
        merged = merge(
            sharded, {n: place(e) for n, e in experts.items()}, method, donate=False
        )
        assert cases.bits(merged) == alone, label
        for path, leaf in tree.flatten(merged).items():
            given = tree.flatten(sharded)[path].sharding
            assert leaf.sharding.is_equivalent_to(given, leaf.ndim), path


# What has arithmetic of its own beside the kinds of what the engine does.
CUT_APART = ("della", "nuslerp", "regmean", "iso_cts", "wudi")
# {granularity: elements of the least block of a leaf, and the block's shape}.
CUTS = {"element": (1, (-1,)), "row": (24, (-1, 24)), "matrix": (16 * 24, (-1, 24))}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [(name, cases.CASES[name][0]) for name in (*cases.KINDS, *CUT_APART)],
)
def test_blocks_of_any_size_agree_with_the_whole_leaf(name, parameters):
    method = methods.get(name, **parameters)
    least, shape = CUTS[method.granularity]
    shapes = cases.one_leaf_for(name, parameters)
    (path,) = shapes
    base, experts = some_models(name, shapes=shapes)
    job = memory._prepare(base, experts, method, 0, statistics_of(method, experts))
    merged = merge(base, experts, method, donate=False)
    whole = tree.flatten(merged)[path]
    models = [np.asarray(x[0]) for x in (job.base, *job.experts)]
    states = jax.tree.map(lambda x: x[0], (job.states.transforms, job.states.combined))
    size = least * {"element": 448, "row": 8, "matrix": 1}[method.granularity]
    parts = []
    for start in range(0, whole.size, size):
        piece = slice(start, min(start + size, whole.size))
        base, *experts = [
            m.reshape(-1)[piece].reshape(shape) if m.shape else None for m in models
        ]
        told = job.told[0]
        if told is not None:
            told = [x[piece.start // least : piece.stop // least] for x in told]
        merged = kernels.merge(
            base,
            job.method,
            experts,
            *states,
            numerics.as_index(start, whole.size),
            strides=(24, 1)[-len(shape) :],
            dtype=jnp.dtype(jnp.float32),
            matrix=job.cut.blocks[0].matrix,
            statistics=told,
        )
        parts.append(np.ravel(merged))
    np.testing.assert_array_equal(np.concatenate(parts).reshape(whole.shape), whole)


@pytest.mark.parametrize("name", (*cases.KINDS, "nuslerp", "regmean"))
def test_bfloat16_is_merged_in_float32_and_rounded_once(name):
    parameters = cases.CASES[name][0]
    shapes = cases.one_leaf_for(name, parameters)
    base, experts = some_models(name, dtype=jnp.bfloat16, shapes=shapes)
    method = methods.get(name, **parameters)

    def widen(params):
        return jax.tree.map(lambda x: x.astype(jnp.float32), params)

    merged = merge(base, experts, method, donate=False)
    widened = merge(widen(base), {n: widen(e) for n, e in experts.items()}, method)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), widened)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert cases.bits(merged) == cases.bits(rounded)


@pytest.mark.long
@ways
def test_float64_stays_float64_where_x64_is_on(name, parameters):
    with jax.enable_x64(True):
        base, experts = some_models(
            name, dtype=jnp.float64, shapes=cases.one_leaf_for(name, parameters)
        )
        experts = {
            n: jax.tree.map(lambda x: x * (1 + 2.0**-40), e) for n, e in experts.items()
        }
        merged = merge(base, experts, methods.get(name, **parameters), donate=False)
        assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float64)}
        reference = expected(name, parameters, base, experts)
        assert_agrees(merged, reference, rounding(roundings(name), dtype=np.float64))


def asks_sums(name, parameters):
    method = methods.get(name, **parameters)
    asked = [part.reduction() for part in (*method.of(0), method.combiner)]
    return any(isinstance(one, methods.Sums) for one in asked)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "parameters"), [case for case in cases.WAYS if asks_sums(*case)]
)
def test_a_float64_leaf_changes_no_bit_of_the_sums_of_float32_ones(name, parameters):
    """Each leaf is summed up by itself, in totals that are as wide as the widest."""
    base, experts = some_models(name, shapes=cases.one_leaf_for(name, parameters))
    method = methods.get(name, **parameters)
    with jax.enable_x64(True):
        alone = merge(base, experts, method, donate=False)
        base["wide"] = jnp.ones(5, jnp.float64)
        experts = {n: {**e, "wide": base["wide"] + 1} for n, e in experts.items()}
        merged = merge(base, experts, method, donate=False)
    assert merged.pop("wide").dtype == jnp.float64
    assert cases.bits(merged) == cases.bits(alone)


@pytest.mark.parametrize("density", [1e-9, 1 / 63, 1 - 1e-12])
@pytest.mark.parametrize("name", SPARSE)
def test_tiny_leaves_and_densities_at_the_edges(name, density):
    parameters = {**cases.CASES[name][0], "density": density}
    if "epsilon" in methods.parameters(name):
        parameters["epsilon"] = 0.0
    ones = 1
    if methods.get(name, **parameters).granularity == "element":
        ones = 13  # with the other as many rows as `cases.SHAPES`
    shapes = {f"one_{i}": (1,) for i in range(ones)} | {"odd": (63,)}
    base, experts = cases.models(shapes=shapes)
    merged = merge(base, experts, methods.get(name, **parameters), donate=False)
    reference = expected(name, parameters, base, experts)
    # Three rescaled task vectors; at the least density none of an element is kept.
    weight = sum(map(abs, parameters.get("weights", (1, 1, 1))))
    largest = max(1, weight * 11 / 256 / density) if density > 1e-9 else 1
    assert_agrees(merged, reference, rounding(roundings(name), largest))


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).takes])
def test_another_number_of_experts_is_refused_with_a_method_for_it(name):
    base, experts = cases.models(4)
    other = methods.get(name).combiner.takes[1].split(" ")[0]
    with pytest.raises(UserError, match=f"{name} merges .*, not 4; {other}"):
        merge(base, experts, methods.get(name))
    assert methods.get(other).takes is None


@every_method
def test_a_leaf_without_elements_is_merged_to_one(name):
    base, experts = some_models(name, shapes={"none": (0, 4)})
    merged = merge(base, experts, methods.get(name), donate=False)
    assert merged["none"].shape == (0, 4)


@every_method
def test_one_expert_is_enough(name):
    base, experts = cases.models(1, shapes=cases.one_leaf_for(name, {}))
    if methods.get(name).takes == 2:
        with pytest.raises(UserError, match=f"{name} merges 2 experts, not 1; "):
            merge(base, experts, methods.get(name))
        return
    merged = merge(base, experts, methods.get(name), donate=False)
    assert_agrees(merged, expected(name, {}, base, experts), rounding(roundings(name)))


@pytest.mark.parametrize("name", cases.KINDS)
def test_structure_and_dtypes_are_the_bases(name):
    base, experts = some_models(name, shapes={"norm": (16,), **BOTH})
    base["norm"] = base["norm"].astype(jnp.bfloat16)
    base["steps"] = jnp.arange(3)
    experts = {n: {**e, "steps": jnp.arange(3)} for n, e in experts.items()}
    merged = merge(base, experts, methods.get(name), donate=False)
    assert list(tree.flatten(merged)) == list(tree.flatten(base))
    assert tree.differences({"base": base, "merged": merged}) == []
    for path, leaf in tree.flatten(merged).items():
        assert leaf.dtype == tree.flatten(base)[path].dtype
    np.testing.assert_array_equal(merged["steps"], base["steps"])
