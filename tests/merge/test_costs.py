"""What `merging methods` says of costs; `test_stream` holds merges to it."""

from merging import methods
from merging.merge.costs import cost


def test_a_cost_is_told_in_words():
    told = {name: str(cost(methods.get(name))) for name in methods.names()}
    assert told["dare"] == "one pass"
    assert told["ties"] == "2 passes"
    assert told["slerp"] == "one pass, or 2 passes over leaves larger than a block"
    assert told["iso_c"] == "one pass; one matrix of each model in memory"
