import inspect
import math

import pytest
import sacrebleu

from merging.tasks.metrics import METRICS, rank_target, seqio_metric

accuracy = seqio_metric("accuracy")
accuracy_norm = seqio_metric("accuracy_norm")
accuracy_per_token = seqio_metric("accuracy_per_token")
bleu = seqio_metric("bleu")
exact_match, f1 = seqio_metric("exact_match"), seqio_metric("f1")
rouge_1, rouge_2 = seqio_metric("rouge_1"), seqio_metric("rouge_2")
rouge_l = seqio_metric("rouge_l")


def test_seqio_can_tell_scoring_from_generating():
    for name, metric in METRICS.items():
        made = seqio_metric(name)
        second = "scores" if metric.ranked else "predictions"
        assert list(inspect.signature(made).parameters) == ["targets", second]
        assert made.__name__ == name and seqio_metric(name) is made


def targets(*labels: int, choices: int = 3):
    return [
        ((i, c), c == label, 1.0, 1, 1)
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


def test_rank_target_is_the_record_of_t5_and_the_length_in_characters():
    example = {"idx": [4, 1], "is_correct": True, "targets": [7, 8]}
    record = rank_target("süß", example=example, is_target=True)
    assert record == ((4, 1), True, 1.0, 2, 3)


def test_normalised_accuracies_divide_by_characters_and_by_tokens():
    rows = [((0, 0), True, 1.0, 2, 10), ((0, 1), False, 1.0, 1, 2)]
    assert accuracy(rows, [-6.0, -4.0]) == {"accuracy": 0.0}
    assert accuracy_norm(rows, [-6.0, -4.0]) == {"accuracy_norm": 1.0}
    assert accuracy_per_token(rows, [-6.0, -4.0]) == {"accuracy_per_token": 1.0}
    assert accuracy_norm(rows, [-21.0, -4.0]) == {"accuracy_norm": 0.0}
    assert accuracy_per_token(rows, [-9.0, -4.0]) == {"accuracy_per_token": 0.0}


TEXTS = ["the cat sat on the mat", "a dog ran home", "it is true"]
SAID = ["the cat sat on a mat", "a dog walked home today", "no"]


def test_rouge_and_bleu_are_those_of_their_libraries():
    from rouge_score.rouge_scorer import RougeScorer

    kinds = {"rouge1": rouge_1, "rouge2": rouge_2, "rougeL": rouge_l}
    for kind, metric in kinds.items():
        scorer = RougeScorer([kind])
        each = [
            scorer.score(t, s)[kind].fmeasure for t, s in zip(TEXTS, SAID, strict=True)
        ]
        (value,) = metric(TEXTS, SAID).values()
        assert 0 < value < 1 and value == pytest.approx(sum(each) / 3)
    expected = sacrebleu.corpus_bleu(SAID, [TEXTS]).score / 100
    assert 0.1 < expected < 1
    assert bleu(TEXTS, SAID) == {"bleu": pytest.approx(expected, rel=1e-9)}
    # Without a match of four words, which the library smooths.
    smoothed = sacrebleu.corpus_bleu(SAID[1:], [TEXTS[1:]]).score / 100
    assert smoothed > 0
    assert bleu(TEXTS[1:], SAID[1:]) == {"bleu": pytest.approx(smoothed, rel=1e-9)}
    assert bleu(TEXTS, ["", "", ""]) == {"bleu": 0.0}
    assert bleu(TEXTS, TEXTS) == {"bleu": pytest.approx(1.0)}


# Lin 2004, section 2: shared n-grams over those of either text.
def test_rouge_counts_shared_words_and_pairs():
    assert rouge_1(["a b c d"], ["a b x"]) == {"rouge_1": pytest.approx(4 / 7)}
    assert rouge_2(["a b c d"], ["a b x"]) == {"rouge_2": pytest.approx(2 / 5)}


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
