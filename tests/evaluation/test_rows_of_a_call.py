"""How many rows calls of a model have, where nobody set it."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging import evaluation
from merging.evaluation.batches import rows_of_a_call


def asked(*datasets):
    """Return requests of datasets, each (category, examples, is it of references)."""
    return evaluation.Requests(
        tuple(
            SimpleNamespace(
                dataset=SimpleNamespace(category=category),
                eval_set=SimpleNamespace(examples=examples),
                references=references,
            )
            for category, examples, references in datasets
        )
    )


@pytest.mark.parametrize(
    ("datasets", "rows"),
    [
        ([("a", 16, False)], 16),
        ([("a", 16, False), ("a", 16, True)], 16),  # references are no more examples
        ([("a", 16, False), ("a", 16, False), ("b", 16, False)], 16),  # 24 a category
        ([("a", 64, False), ("a", 64, False)], 128),
        ([("a", 1000, False)], 128),
        ([("a", 1, False)], 8),
    ],
)
def test_calls_have_the_rows_of_a_category(datasets, rows):
    assert rows_of_a_call(asked(*datasets)) == rows


def test_over_a_mesh_they_are_the_next_number_that_divides():
    mesh = Mesh(np.array(jax.devices()[:6]).reshape(3, 2), ("data", "tensor"))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    assert rows_of_a_call(asked(("a", 16, False)), rows) == 18
    assert (
        rows_of_a_call(asked(("a", 24, False)), NamedSharding(mesh, PartitionSpec()))
        == 16
    )
