"""Parts of a grid, put together, say what the whole would have said."""

import pytest

from merging.runtime.errors import UserError
from merging.runtime.joining import join


def test_a_part_without_experts_gets_their_scores_from_another(make_row):
    expert = make_row(method="expert", K=1, value=0.8, value_of_expert=0.8)
    merge = make_row(K=2, subset=("skill0", "skill1"), value=0.4, value_of_expert=None)
    other_seed = make_row(
        K=2, subset=("skill0", "skill1"), seed=1, value_of_expert=None
    )
    rows, notes = join([merge, other_seed, expert])
    assert notes == []
    by_seed = {row.seed: row for row in rows if row.method == "ties"}
    assert by_seed[0].value_of_expert == 0.8 and by_seed[0].normalised == 0.5
    assert by_seed[1].value_of_expert is None and by_seed[1].normalised is None


def test_an_expert_of_another_configuration_is_nobodys(make_row):
    expert = make_row(method="expert", K=1, value=0.8, value_of_expert=0.8)
    merge = make_row(
        K=2, subset=("skill0", "skill1"), value_of_expert=None, config_hash="c1"
    )
    rows, _ = join([expert, merge])
    (found,) = (row for row in rows if row.method == "ties")
    assert found.value_of_expert is None and found.normalised is None


def test_a_base_of_two_parts_counts_once_whichever_part_had_its_expert(make_row):
    base = dict(method="base", K=0, subset=(), merged=False, value=0.2)
    expert = make_row(method="expert", value=0.8, value_of_expert=0.8)
    without = make_row(**base, value_of_expert=None)
    rows, notes = join([without, make_row(**base, value_of_expert=0.8), expert])
    assert len(rows) == 2 and len(notes) == 1 and "alike" in notes[0]


def test_a_base_of_two_seeds_run_apart_is_one(make_row):
    """Each run gave the base its own expert's value; the models are the same."""
    base = dict(method="base", K=0, subset=(), merged=False, value=0.2)
    runs = [
        make_row(**base, value_of_expert=0.8, config_hash="c0"),
        make_row(**base, value_of_expert=0.7, config_hash="c1"),
    ]
    rows, notes = join(runs)
    assert rows == runs[:1] and len(notes) == 1 and "alike" in notes[0]
    other = make_row(**{**base, "value": 0.3}, value_of_expert=0.7, config_hash="c1")
    with pytest.raises(UserError, match="had different configurations"):
        join([runs[0], other])


def test_a_merge_held_against_other_experts_contradicts(make_row):
    merge = dict(K=2, subset=("skill0", "skill1"), value=0.4)
    runs = [
        make_row(**merge, value_of_expert=0.8, config_hash="c0"),
        make_row(**merge, value_of_expert=0.7, config_hash="c1"),
    ]
    with pytest.raises(UserError, match="had different configurations"):
        join(runs)
