"""Rules from leaf paths to mesh axes, and every way they can fail to fit."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from merging import models
from merging.runtime import sharding
from merging.runtime.errors import UserError

PARAMS = {"a": {"kernel": np.zeros((8, 6)), "bias": np.zeros(6)}, "b": np.zeros((4, 8))}
CONFIG = models.DecoderConfig(
    vocab_size=32, d_model=16, layers=3, heads=4, kv_heads=2, head_dim=8, d_ff=24
)


def test_the_first_matching_rule_wins():
    rules = [("kernel$", P("fsdp")), ("^a/", P()), (".*", P(None, "fsdp"))]
    specs = sharding.specs(PARAMS, rules)
    assert specs == {"a/kernel": P("fsdp"), "a/bias": P(), "b": P(None, "fsdp")}


def test_leaves_without_a_rule_are_all_named():
    with pytest.raises(UserError, match="a/bias, b"):
        sharding.specs(PARAMS, [("kernel", P())])


def test_leaves_that_do_not_divide_are_all_named():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    rules = [("bias", P("fsdp")), ("kernel", P(None, ("data", "fsdp"))), ("b", P())]
    with pytest.raises(UserError) as error:
        sharding.shardings(PARAMS, rules, mesh)
    text = str(error.value)
    assert "a/bias: dimension 0 of (6,) does not divide by 4 (fsdp)" in text
    assert "a/kernel: dimension 1 of (8, 6) does not divide by 8 (data x fsdp)" in text


def test_a_rule_longer_than_the_leaf_is_named():
    mesh = sharding.make_mesh({"data": 8})
    with pytest.raises(UserError, match="a/bias.*fewer dimensions"):
        sharding.shardings(PARAMS, [("", P(None, "data"))], mesh)


def test_axes_the_mesh_lacks_split_nothing():
    mesh = sharding.make_mesh({"data": 8})
    placed = sharding.shardings(PARAMS, [("", P("tensor"))], mesh)
    assert placed["b"].is_fully_replicated


def test_every_leaf_of_the_decoder_has_a_rule_that_splits_it():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = models.init(CONFIG, 0)
    placed = jax.device_put(
        params, sharding.shardings(params, models.partition_rules(CONFIG), mesh)
    )
    shard = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, placed)
    assert shard["embed"] == (16, 8)
    assert shard["layers"]["query"] == (3, 8, 16)
    assert shard["layers"]["key"] == (3, 8, 8)
    assert shard["layers"]["down"] == (3, 12, 8)
    assert shard["layers"]["mlp_norm"] == (3, 16)


def test_meshes_are_automatic_and_fill_up():
    mesh = sharding.make_mesh({"data": -1, "tensor": 2})
    assert dict(mesh.shape) == {"data": 4, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"model": 8}, "unknown mesh axes"),
        ({"data": 3}, "8 devices exactly"),
        ({"data": -1, "fsdp": -1}, "8 devices exactly"),
        ({"data": 16}, "8 devices exactly"),
        ({"data": -1, "fsdp": 0}, "8 devices exactly"),
    ],
)
def test_impossible_meshes_are_refused(axes, words):
    with pytest.raises(UserError, match=words):
        sharding.make_mesh(axes)


def test_a_batch_that_does_not_divide_is_refused():
    mesh = sharding.make_mesh({"data": 4, "tensor": 2})
    placed = sharding.place_batch(mesh, np.zeros((3, 8, 5)), leading=1)
    assert placed.addressable_shards[0].data.shape == (3, 2, 5)
    with pytest.raises(UserError, match="batch of 6"):
        sharding.place_batch(mesh, np.zeros((6, 5)))


@pytest.mark.parametrize("leading", [0, 1])
def test_rows_are_placed_where_their_devices_are(leading):
    half = sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[4:])
    rows = np.arange(3 * 8 * 5).reshape(3, 8, 5) if leading else np.eye(8)
    assert list(sharding.rows_here(half, 8)) == list(range(8))
    placed = sharding.place_rows(half, rows, 8, leading)
    np.testing.assert_array_equal(placed, rows)
    assert placed.sharding == sharding.batch_sharding(half, leading)
    assert placed.addressable_shards[0].data.shape[leading] == 2
    assert sharding.place_rows(None, rows, 8, leading) is rows
    with pytest.raises(UserError, match="batch of 6"):
        sharding.rows_here(half, 6)


def test_parameters_made_on_a_mesh_are_those_made_on_one_device():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    made = models.init(CONFIG, 5, mesh)
    assert made["embed"].addressable_shards[0].data.shape == (16, 8)
    jax.tree.map(np.testing.assert_array_equal, made, models.init(CONFIG, 5))
