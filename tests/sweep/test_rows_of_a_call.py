"""How many rows a sweep's calls of a model have."""

from types import SimpleNamespace

import pytest

from merging import evaluation
from merging.sweep import scoring


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
    assert scoring.rows_of_a_call(asked(*datasets)) == rows
