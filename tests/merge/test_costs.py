"""What `merging methods` says of costs; `test_stream` holds merges to it."""

from merging import methods
from merging.merge.costs import cost


def test_a_cost_is_told_in_words():
    told = {name: str(cost(methods.get(name))) for name in methods.names()}
    assert told["dare"] == "one pass"
    assert told["ties"] == "2 passes"
    assert told["slerp"] == "one pass, or 2 passes over leaves larger than a block"
    assert told["iso_c"] == "one pass; one matrix of each model in memory"
    # Statistics are inputs, too: one more reading, and what is held beside a matrix.
    assert told["fisher"] == "one pass, also over fisher statistics of each model"
    assert told["regmean"] == (
        "one pass, also over gram statistics of each model; one matrix of each model "
        "and its statistics (inputs × inputs) in memory"
    )
