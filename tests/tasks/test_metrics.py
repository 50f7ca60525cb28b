import math

import pytest

from merging.tasks.metrics import accuracy, exact_match, f1, rank_target, rouge_l


def targets(*labels: int, choices: int = 3):
    return [
        ((i, c), c == label, 1.0, 1)
        for i, label in enumerate(labels)
        for c in range(choices)
    ]


def test_accuracy_takes_the_highest_score():
    assert accuracy(targets(2, 0), [-3, -2, -1, -3, -2, -1]) == {"accuracy": 0.5}


def test_a_tie_goes_to_the_lowest_choice_in_whatever_order_the_rows_come():
    rows = targets(0, 1)
    assert accuracy(rows, [-1.0] * 6) == {"accuracy": 0.5}
    assert accuracy(rows[::-1], [-1.0] * 6) == {"accuracy": 0.5}


def test_nan_never_wins_and_nothing_but_nan_is_wrong():
    nan = math.nan
    assert accuracy(targets(1), [nan, -9.0, nan]) == {"accuracy": 1.0}
    assert accuracy(targets(0), [nan, nan, nan]) == {"accuracy": 0.0}
    assert accuracy(targets(0), [-math.inf, nan, nan]) == {"accuracy": 1.0}


def test_rank_target_is_the_record_of_t5():
    example = {"idx": [4, 1], "is_correct": True, "targets": [7, 8]}
    assert rank_target("x", example=example, is_target=True) == ((4, 1), True, 1.0, 2)


# Values by hand from the definitions in the SQuAD paper.
@pytest.mark.parametrize(
    ("target", "text", "exact", "overlap"),
    [
        ("the Cat.", "cat", 1, 1),
        ("cat dog", "dog cat", 0, 1),
        ("cat dog", "dog", 0, 2 / 3),
        ("cat cat dog", "cat fox", 0, 2 / 5),
        ("cat", "", 0, 0),
        ("the", "a", 1, 1),
        ("theme", "me", 0, 0),
    ],
)
def test_exact_match_and_f1_after_squads_normalisation(target, text, exact, overlap):
    assert exact_match([target], [text]) == {"exact_match": exact}
    assert f1([target], [text])["f1"] == pytest.approx(overlap)


# Lin 2004, section 3.1: S2 scores 3/4 and S3 scores 2/4 against S1.
def test_rouge_l_gives_the_values_of_its_paper():
    reference = "police killed the gunman"
    assert rouge_l([reference], ["police kill the gunman"]) == {"rouge_l": 0.75}
    assert rouge_l([reference], ["the gunman kill police"]) == {"rouge_l": 0.5}
    assert rouge_l([reference], [""]) == {"rouge_l": 0.0}


def test_a_value_is_the_mean_over_examples():
    assert f1(["cat", "dog"], ["cat", "fox"]) == {"f1": 0.5}
