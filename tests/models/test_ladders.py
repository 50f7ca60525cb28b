"""The tiny ladder keeps its ratios at any vocabulary; wrong names are helped."""

import pytest

from merging import models
from merging.errors import UserError


@pytest.mark.parametrize("vocab_size", [50, 300, 400, 1000])
def test_sizes_stand_one_to_8_to_24_to_64(vocab_size):
    ladder = models.ladder("tiny", vocab_size=vocab_size)
    counts = {size: models.parameter_count(c) for size, c in ladder.items()}
    assert list(counts) == ["1x", "8x", "24x", "64x"]
    for size, count in counts.items():
        assert count / counts["1x"] == pytest.approx(int(size[:-1]), rel=0.05)


def test_the_ladder_runs_from_some_15_thousand_to_near_a_million():
    ladder = models.ladder("tiny", vocab_size=400)
    assert 13_000 < models.parameter_count(ladder["1x"]) < 17_000
    assert 850_000 < models.parameter_count(ladder["64x"]) < 1_050_000


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(UserError, match="did you mean tiny"):
        models.ladder("tinny", vocab_size=400)
    with pytest.raises(UserError, match="24x"):
        models.size("tiny", "25x", vocab_size=400)
