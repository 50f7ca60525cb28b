"""Verdicts follow the stated rule; the claims ask the rows the right question."""

import pytest

from merging.report.judging import conclude, judge, verdict_table, verdict_text
from merging.report.summaries import summarise
from merging.report.verdicts import verdicts


def cells(*means, seeds=3, jitter=0.0):
    """Comparisons with these means, and every seed off by a multiple of jitter."""
    return {
        (i,): {s: mean + jitter * (s - (seeds - 1) / 2) for s in range(seeds)}
        for i, mean in enumerate(means)
    }


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        (cells(0.1, 0.2, 0.3, 0.1, -0.1, jitter=0.01), "holds"),
        # 4 of 5 agree, but seeds differ by more than the effect.
        (cells(0.1, 0.2, 0.3, 0.1, -0.1, jitter=0.2), "mixed"),
        (cells(0.1, 0.1, 0.1, -0.01, -0.01), "mixed"),
        (cells(-0.1, -0.2, 0.1), "does not hold"),
        (cells(0.1, -0.1), "does not hold"),
        # A level comparison does not agree.
        (cells(0.0, 0.0), "does not hold"),
        # Half disagree, yet the mean is clearly positive.
        (cells(0.5, -0.01, jitter=0.01), "mixed"),
        (cells(0.1, 0.1, seeds=1), "holds"),
        ({}, "not tested"),
        ({("empty",): {}}, "not tested"),
    ],
)
def test_rule(differences, outcome):
    assert judge("x", differences).outcome == outcome


def test_evidence_is_worked_out_over_seeds():
    found = judge("x", {"a": {0: 0.1, 1: 0.3}, "b": {0: -0.2, 1: 0.0}, "c": {0: 0.0}})
    assert (found.agree, found.against, found.level) == (1, 1, 1)
    assert found.mean == pytest.approx((0.2 - 0.1 + 0.0) / 3)
    # Seeds deviate by -0.1 and +0.1: sd 0.1·√2, over √2.
    assert found.standard_error == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.2))
    assert found.seeds == 2


def test_one_seed_has_no_standard_error_and_says_so():
    tests = judge("x", cells(0.1, seeds=1))
    assert tests.standard_error is None
    assert "spread unknown" in tests.sentence()
    notes = conclude("k", "MS", "claim", [tests], []).notes
    assert any("One seed" in note for note in notes)


def test_disagreeing_measures_are_mixed_and_named():
    ratio, share = judge("ratio", cells(0.1)), judge("share", cells(-0.1))
    verdict = conclude("k", "MS", "claim", [ratio, share], [])
    assert verdict.outcome == "mixed"
    assert verdict.notes[0].startswith(
        "The measures disagree: ratio: holds; share: does"
    )


@pytest.mark.parametrize(
    ("means", "outcome"),
    [((0.1, None), "not tested"), ((-0.1, None), "not tested"), ((0.1, 0.1), "holds"),
     ((0.1, None, -0.1), "mixed")],
)  # fmt: skip
def test_a_claim_is_not_said_to_hold_before_all_its_parts_are_tested(means, outcome):
    tests = [
        judge(f"part {i}", {} if mean is None else cells(mean))
        for i, mean in enumerate(means)
    ]
    verdict = conclude("k", "MS", "claim", tests, [])
    assert verdict.outcome == outcome
    if outcome == "not tested":
        assert verdict.notes[0].startswith("Not tested in all its parts: part 0: ")
        assert verdict.notes[0].endswith("part 1: not tested.")


def test_held_in_alone_does_not_say_that_held_out_gains(flat):
    rows = [r for r in flat("1x", "it", "ties", 0.8) if r.split == "held_in"]
    verdict = outcomes(rows)["largest_it_close_to_experts"]
    assert [e.outcome for e in verdict.tests] == ["holds", "not tested"]
    assert verdict.outcome == "not tested"


def test_evidence_beside_the_verdict_does_not_decide():
    beside = judge("share", cells(-0.1), decides=False)
    verdict = conclude("k", "MS", "claim", [judge("ratio", cells(0.1)), beside], [])
    assert verdict.outcome == "holds"


def outcomes(rows):
    return {v.key: v for v in verdicts(summarise(rows))}


def test_a_full_run_gets_every_verdict(run):
    found = outcomes(run(counts=(2, 8)))
    assert {key: v.outcome for key, v in found.items()} == {
        # In the synthetic run IT leads by its floor alone.
        "it_over_pt": "mixed",
        "larger_merges_better": "holds",
        "held_out_improves_with_experts": "holds",
        "methods_converge": "holds",
        "largest_it_close_to_experts": "mixed",
        "large_it_passes_multitask": "holds",
        "marginal_gains_shrink": "holds",
    }
    ratio, share, _ = found["it_over_pt"].tests
    assert ratio.outcome == "holds" and share.outcome != "holds"
    assert "unmerged base alone" in " ".join(found["it_over_pt"].notes)
    passes = found["large_it_passes_multitask"].tests[0]
    assert "24x, 64x" in passes.measure and passes.agree == 2 * 5


def test_the_smallest_run_leaves_untested_what_it_cannot_say(run):
    found = outcomes(run(("1x",), ("pt",), ("ties",), (2,), seeds=1))
    assert {v.outcome for v in found.values()} == {"not tested"}


@pytest.fixture
def flat(model):
    """Models whose score is the same on all datasets: experts 0.8, base 0.4."""

    def rows(size, base, method, value, seed=0, K=8):
        subset = tuple(f"skill{i}" for i in range(K))
        own, bottom = lambda d: 0.8, lambda d: 0.4
        return model(size, base, method, subset, seed, lambda d: value, own, bottom)

    return rows


def test_it_over_pt_compares_the_same_seed(flat):
    rows = flat("1x", "pt", "ties", 0.5, 0) + flat("1x", "pt", "ties", 0.7, 1)
    rows += flat("1x", "it", "ties", 0.6, 0) + flat("1x", "it", "ties", 0.8, 1)
    verdict = outcomes(rows)["it_over_pt"]
    ratio, share, _ = verdict.tests
    assert ratio.mean == pytest.approx(0.1 / 0.8)
    assert share.mean == pytest.approx(0.1 / 0.4)
    assert ratio.standard_error == pytest.approx(0)
    assert verdict.outcome == "holds"


def test_multitask_with_one_seed_meets_merges_of_every_seed(flat):
    rows = flat("1x", "it", "multitask", 0.5, 0)
    for seed, value in enumerate((0.6, 0.4)):
        rows += flat("1x", "it", "ties", value, seed)
    verdict = outcomes(rows)["large_it_passes_multitask"]
    tests = verdict.tests[0]
    assert tests.mean == pytest.approx(0.0) and tests.seeds == 2
    assert tests.standard_error == pytest.approx(0.25)
    assert verdict.tests[1].outcome == "not tested"


def test_close_to_experts_needs_all_experts(flat):
    some = outcomes(flat("1x", "it", "ties", 0.8, K=4))["largest_it_close_to_experts"]
    assert some.outcome == "not tested" and "all 8 experts" in some.notes[0]
    verdict = outcomes(flat("1x", "it", "ties", 0.8))["largest_it_close_to_experts"]
    assert verdict.outcome == "holds"
    assert [e.mean for e in verdict.tests] == pytest.approx([0.05, 1.0])


def test_methods_converge_uses_methods_present_at_both_ends(flat):
    rows = []
    for size, scores in {"1x": (0.5, 0.7), "8x": (0.6, 0.7, 0.1)}.items():
        for method, value in zip(("average", "ties", "rht"), scores, strict=False):
            rows += flat(size, "pt", method, value)
    verdict = outcomes(rows)["methods_converge"]
    # Spread 0.2 → 0.1 of raw score; rht is missing at 1x and must not count.
    assert verdict.tests[0].mean == pytest.approx(0.1 / 0.8)
    assert verdict.outcome == "holds"


def test_marginal_gains_compare_halves_of_the_range(flat):
    values = {2: 0.5, 4: 0.6, 8: 0.64}
    rows = [r for K, v in values.items() for r in flat("1x", "pt", "ties", v, K=K)]
    tests = outcomes(rows)["marginal_gains_shrink"].tests[0]
    assert tests.mean == pytest.approx(0.2 / 4 - 0.04 / 4)


def test_no_gain_cannot_shrink(flat):
    rows = flat("1x", "pt", "ties", 0.3, K=4) + flat("1x", "pt", "ties", 0.2, K=8)
    verdict = outcomes(rows)["marginal_gains_shrink"]
    assert verdict.outcome == "not tested"
    assert "1 combinations" in verdict.notes[0]


def test_text_and_table_list_every_verdict(flat):
    found = verdicts(summarise(flat("1x", "it", "ties", 0.8)))
    assert len(verdict_table(found).rows) == sum(len(v.tests) for v in found)
    text = verdict_text(found)
    assert text.count("NOT TESTED") == sum(v.outcome == "not tested" for v in found)
    assert max(map(len, text.splitlines())) <= 100
