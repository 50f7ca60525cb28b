"""The families: ratios and exact counts, slices that they divide over, wrong names."""

import dataclasses
import math

import jax
import pytest

from merging import models
from merging.models import hf as families
from merging.runtime import sharding
from merging.runtime.errors import UserError


@pytest.mark.parametrize("vocab_size", [50, 300, 400, 1000])
def test_sizes_stand_as_their_names_say(vocab_size):
    family = models.sizes("tiny", vocab_size=vocab_size)
    counts = {size: models.parameter_count(c) for size, c in family.items()}
    assert list(counts) == ["1x", "8x", "24x", "64x", "256x", "1024x"]
    for size, count in counts.items():
        assert count / counts["1x"] == pytest.approx(int(size[:-1]), rel=0.05)


def test_the_ladder_runs_from_some_15_thousand_to_near_a_million():
    family = models.sizes("tiny", vocab_size=400)
    assert 13_000 < models.parameter_count(family["1x"]) < 17_000
    assert 850_000 < models.parameter_count(family["64x"]) < 1_050_000


@pytest.mark.parametrize(("name", "size"), [("tiny", "24x"), ("palm", "64b")])
def test_a_ladders_decoder_is_read_back_from_its_config_json(name, size):
    config = models.size(name, size, vocab_size=320)
    for bos_id in (0, 5, None):
        config = dataclasses.replace(config, bos_id=bos_id)
        family, read = families.read_config(families.describe(config, 1))
        assert read == config and family.name == name


def test_a_config_json_that_would_compile_without_end_is_refused():
    config = models.size("tiny", "1x", vocab_size=320)
    endless = dataclasses.replace(config, unroll=10_000)
    with pytest.raises(UserError, match="unroll = 10000 writes out more than 64"):
        families.read_config(families.describe(endless, 1))


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(UserError, match="did you mean tiny"):
        models.sizes("tinny", vocab_size=400)
    with pytest.raises(UserError, match="24x"):
        models.size("tiny", "25x", vocab_size=400)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("1b", 994_865_664),
        ("8b", 8_632_012_800),
        ("24b", 23_901_505_536),
        ("64b", 62_495_662_080),
    ],
)
def test_palm_has_its_published_shape_and_exact_counts(size, parameters):
    config = models.size("palm", size, vocab_size=256_000)
    assert models.parameter_count(config) == parameters
    assert config.parallel_block and config.kv_heads == 1 and config.tied_embeddings
    assert (config.dtype, config.param_dtype, config.remat) == (*["bfloat16"] * 2, True)


@pytest.mark.parametrize("size", ["1b", "8b", "24b", "64b"])
@pytest.mark.parametrize("axes", [{"fsdp": 32, "tensor": 4}, {"fsdp": 128}])
def test_palm_divides_over_a_slice_of_128_chips(size, axes):
    config = models.size("palm", size, vocab_size=256_000)
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    params = models.abstract(config)
    placed = sharding.shardings(params, models.partition_rules(config), mesh)
    per_chip = sum(
        math.prod(place.shard_shape(leaf.shape))
        for leaf, place in zip(
            jax.tree.leaves(params), jax.tree.leaves(placed), strict=True
        )
    )
    # All but norms (and the one key head over `tensor`) is split.
    assert per_chip < 1.05 * models.parameter_count(config) / 128
