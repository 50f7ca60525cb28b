"""Partitions: every element once, under the budget, the same for all processes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import methods
from merging.merge.cutting import partition, workers
from merging.merge.partition import ROW
from merging.merge.pipeline import Pipeline
from merging.runtime.errors import UserError

SHAPES = {
    "embed": (5000, 300),
    "layers/w": (3, 700, 400),
    "layers/norm": (3, 300),
    "bias": (1,),
    "none": (0, 4),
    "scalar": (),
    "wide": (2, 250_000),
}


def abstract(dtype=jnp.bfloat16, **other):
    return {
        path: jax.ShapeDtypeStruct(shape, other.get(path, dtype))
        for path, shape in SHAPES.items()
    }


def planned(method, budget=10**8, models=3, of=None, **settings):
    models = [of or abstract()] * models
    recipe = dict.fromkeys(models[0], method)
    return partition(models, recipe, budget, **settings)


def covered(cut):
    found = {path: [] for path in cut.paths}
    for block in cut.blocks:
        for piece in block.pieces:
            found[cut.paths[piece.leaf]].append((piece.start, piece.stop))
    return {path: sorted(parts) for path, parts in found.items()}


def row_trim():
    trim = methods.trim(0.5, "row")
    return methods.compose("x", trim, combiner=methods.elect_sign(), scale=1.0)


@pytest.mark.parametrize(
    "method", [methods.task_arithmetic(), methods.ties(), methods.rht(), row_trim()]
)
@pytest.mark.parametrize("budget", [9 * 10**6, 10**7, 10**9])
def test_every_element_is_in_one_block(method, budget):
    for path, parts in covered(planned(method, budget)).items():
        size = math.prod(SHAPES[path])
        ends = [0, *itertools.chain.from_iterable(parts), size]
        if size:
            assert ends[::2] == ends[1::2], path
        else:
            assert not parts


def test_blocks_stay_under_the_budget():
    cut = planned(methods.ties(), 10**6)
    largest = max(block.size for block in cut.blocks)
    assert cut.kinds[0].bytes_per_element == 3 * 2 + 2
    # Three are worked on and a fourth is read; each worker needs 18 bytes more.
    assert (4 * 6 + 3 * 18) * largest <= 10**6
    assert workers(cut, 10**6) == 3


@pytest.mark.parametrize("budget", [10**7, 10**9])
@pytest.mark.parametrize("method", [methods.task_arithmetic(), methods.ties()])
def test_blocks_through_the_leaves_have_one_shape(method, budget):
    cut = planned(method, budget)
    rows = [sum(block.counts) for block in cut.blocks]
    assert len(rows) == math.ceil(sum(rows) / max(rows)) and {*rows[:-1]} <= {max(rows)}
    # What is read into, the last one filled up; and no more than the budget holds.
    told = Pipeline(cut, [], False, budget)
    (shape,) = {told._rows(block) for block in cut.blocks}
    told.close()
    assert max(rows) <= shape and shape * len(rows) <= 1.25 * sum(rows)
    assert (4 * 6 + 3 * 18) * shape * ROW <= budget


def test_a_small_leaf_alone_is_not_filled_up_to_the_rows_of_large_ones():
    shapes = {"w": (3000, 1024), **{f"norm{i}": (1024,) for i in range(20)}}
    of = {
        path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in shapes.items()
    }
    cut = planned(methods.ties(scope="tensor"), 3 * 10**7, of=of)
    told = Pipeline(cut, [], False, 3 * 10**7)
    rows = [told._rows(block) for block in cut.blocks if block.whole]
    told.close()
    assert len(rows) == 20 and max(rows) <= jax.local_device_count()


def test_rows_are_never_cut_where_magnitudes_are_ranked_in_them():
    cut = planned(row_trim(), 10**7)
    for block in cut.blocks:
        (piece,) = block.pieces
        shape = cut.shapes[piece.leaf]
        last = shape[-1] if shape else 1
        assert block.columns == last
        assert piece.start % last == 0


def test_a_row_larger_than_the_budget_is_named():
    with pytest.raises(UserError, match="wide: 250000 elements .* raise memory_budget"):
        planned(row_trim(), 10**6)


def test_a_tensor_that_fits_is_one_block_and_a_larger_one_is_cut():
    cut = planned(methods.rht(), 10**7)
    whole = {cut.paths[b.pieces[0].leaf]: b.whole for b in cut.blocks}
    assert whole["layers/norm"]
    assert not whole["embed"]
    assert len(covered(cut)["embed"]) > 1


def test_cuts_are_at_the_multiples_that_the_writer_wants():
    cut = planned(methods.ties(), 10**7, granularity=lambda path: 30_000)
    starts = {start for parts in covered(cut).values() for start, _ in parts}
    assert len(starts) > 3
    assert all(start % 30_000 == 0 for start in starts)


def test_leaves_of_other_dtypes_or_methods_are_other_groups():
    of = abstract(embed=jnp.float32, bias=jnp.int32)
    recipe = dict.fromkeys(of, methods.ties()) | {"scalar": None}
    cut = partition([of, of], recipe, 10**8)
    found = {
        cut.paths[leaf]: (kind.method, [str(d) for d in kind.read])
        for kind in cut.kinds
        for leaf in kind.leaves
    }
    assert found["embed"] == (methods.ties(), ["float32", "float32"])
    assert found["wide"] == (methods.ties(), ["bfloat16", "bfloat16"])
    assert found["bias"] == (None, ["int32", "int32"])
    assert found["scalar"] == (None, ["bfloat16"])


@pytest.mark.parametrize(("leaves", "width"), [(12, 2850), (40, 3000)])
def test_processes_share_out_all_blocks_and_equal_bytes(leaves, width):
    leaf = jax.ShapeDtypeStruct((1000, width), "float32")
    cut = planned(methods.ties(), 10**9, of={f"w{i}": leaf for i in range(leaves)})
    total = sum(cut.bytes_of(block) for block in cut.blocks)
    for processes in (1, 2, 4):
        shares = [cut.share(i, processes) for i in range(processes)]
        assert sorted(itertools.chain(*shares)) == list(range(len(cut.blocks)))
        sizes = [sum(cut.bytes_of(cut.blocks[i]) for i in share) for share in shares]
        assert max(sizes) <= total / processes * 1.02


def test_a_budget_too_small_for_a_row_says_what_is_needed():
    with pytest.raises(UserError, match=r"give at least (\d+)") as caught:
        planned(methods.ties(), 1000)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    cut = planned(methods.ties(), least)
    assert max(sum(block.counts) for block in cut.blocks) == 1
    assert {block.columns for block in cut.blocks} == {ROW}
    assert np.all([block.elements <= ROW for block in cut.blocks])
