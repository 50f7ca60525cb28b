"""Sums are exact, and so the same whatever they are added up from."""

import math

import numpy as np
import pytest

from merging.methods.reductions import add_exactly, exact_sums, exact_totals


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(np.float32, False), (np.float32, True), (np.float64, True)],
)
def test_terms_add_up_exactly_in_the_totals_of_any_model(dtype, wide):
    """Of a model with a float64 leaf, those of its float32 leaves are as wide."""
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    values = rng.normal(size=999) * 2.0 ** rng.integers(-90, 90, 999)
    edges = [0, info.smallest_subnormal, info.tiny, -info.max / 4]
    for terms in (values.astype(dtype), np.array(edges, dtype)):
        totals = exact_totals((), wide)
        for part in (terms[:1], terms[1:]):
            add_exactly(totals, part)
        assert exact_sums(totals, wide) == math.fsum(terms.tolist())
