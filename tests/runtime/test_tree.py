"""Paths, selection, sizes and structural differences of nested dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging.runtime import tree
from merging.runtime.errors import UserError

PARAMS = {
    "layers": {"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float16)},
    "steps": np.arange(4, dtype=np.int32),
}


def test_flatten_joins_keys_in_the_trees_order_and_unflatten_undoes_it():
    leaves = tree.flatten(PARAMS)
    assert list(leaves) == ["layers/w", "layers/b", "steps"]
    again = tree.unflatten(leaves)
    assert list(again["layers"]) == ["w", "b"] and again["steps"] is PARAMS["steps"]


def test_keys_that_would_make_paths_ambiguous_are_all_listed():
    with pytest.raises(UserError, match=r"'a/b'.*layers/0.*layers/''"):
        tree.flatten({"a/b": 1, "layers": {0: 1, "": 2}})
    with pytest.raises(UserError, match="nested dict, not list"):
        tree.flatten([1, 2])


def test_paths_that_are_leaf_and_folder_are_all_listed():
    with pytest.raises(UserError, match="a/b, a/b/c, d/e"):
        tree.unflatten({"a": 1, "a/b": 2, "a/b/c": 3, "d": 4, "d/e": 5, "f/g": 6})


def test_map_named_gives_path_and_every_trees_leaf():
    doubled = tree.map_named(
        lambda path, x, y: (path, float((x + y).sum())), PARAMS, PARAMS
    )
    assert doubled["layers"]["w"] == ("layers/w", 12.0)
    assert doubled["steps"] == ("steps", 12.0)


def test_bytes_of_concrete_and_abstract_trees():
    abstract = {"x": jax.ShapeDtypeStruct((2**20, 2**12), jnp.bfloat16)}
    assert tree.byte_count(PARAMS) == 44
    assert tree.byte_count(abstract) == 2**33


def test_differences_list_every_departure_and_only_those():
    other = {
        "layers": {"w": np.ones((3, 2), np.int8), "extra": np.zeros(1)},
        "steps": np.arange(4, dtype=np.int64),
    }
    close = {**PARAMS, "layers": {**PARAMS["layers"], "b": jnp.zeros(2, jnp.bfloat16)}}
    trees = {"base": PARAMS, "close": close, "math": other}
    assert tree.differences({"base": PARAMS, "close": close}) == []
    assert tree.differences(trees) == [
        "layers/b: missing from 'math'",
        "layers/extra: in 'math', but not in 'base'",
        "layers/w: shape (3, 2) in 'math', (2, 3) in 'base'",
        "layers/w: dtype class integer in 'math', float in 'base'",
    ]
    with pytest.raises(UserError, match="layers/b: missing(.|\n)*class integer"):
        tree.require_same_structure(trees)
    tree.require_same_structure({"base": PARAMS, "close": close})
