"""What explains saturation: claims and figures of a sweep's rows and analyses."""

import dataclasses
import gzip
import statistics

import browser
import pytest

from merging.analysis import rows as analysis_rows
from merging.analysis.rows import Row
from merging.cli.main import main
from merging.report import explaining, explaining_figures, figures, sweep_analysis
from merging.report.judging import FAILS, HOLDS, UNTESTED
from merging.report.summaries import summarise
from merging.report.sweep_analysis import step
from merging.runtime import results

SIZES = {"1x": 16_000, "64x": 1_024_000}
METHODS = ("average", "ties", "dare_ties", "rht")
COUNTS = (2, 4, 6, 8)
EXPERTS = tuple(f"skill{i}" for i in range(8))


def analysed(small=1.0, large=0.5, star=(7, 8), rht=0.9, width=lambda K: K / 8):
    """Rows of every group: numbers of the small and of the large size as given."""
    made = []
    for size, params in SIZES.items():
        level = small if size == "1x" else large
        for base in ("pt", "it"):
            for seed in range(2):
                own = level + 0.01 * seed + (0.02 if base == "pt" else 0.0)
                found = [Row("params", params)]
                found += [
                    Row("critical_density", own / 2, of=(e,), low=own / 3, high=own / 2)
                    for e in EXPERTS
                ]
                found += [Row("loss_barrier", own, of=EXPERTS[:2])]
                for at, loss in ((0.0, 1.0), (0.5, 1.5 + own), (1.0, 2.0)):
                    found += [Row("loss", loss, of=EXPERTS[:2], at=at)]
                    found += [Row("loss", 9.0, of=("base", "multitask"), at=at)]
                found += [Row("loss_barrier", 9.0, of=("base", "multitask"))]
                found += [Row("loss_barrier", own / 3, of=("base", "ties_K8"))]
                found += [Row("loss_barrier", own / 4, of=(EXPERTS[0], "ties_K8"))]
                found += [
                    Row("disentanglement_error", own / 5, of=(e,), at=0.3)
                    for e in EXPERTS
                ]
                found += [Row("disentanglement_error", own, at=0.3)]
                for K in range(1, 9):
                    found += [Row("width", width(K), of=EXPERTS, at=K)]
                    found += [Row("mean_width", 1.0, of=EXPERTS, at=K)]
                    found += [Row("effective_rank", float(K), of=EXPERTS, at=K)]
                for space in ("parameters", "coordinates"):
                    ends = {"low": star[0], "high": star[1]}
                    found += [Row("threshold", star[0], of=(space,), at=8, **ends)]
                for K in COUNTS:
                    for method in METHODS:
                        of = (f"{method}_K{K}",)
                        share = rht if method == "rht" else 0.5
                        for name in explaining.COVERED:
                            value = share * (params if name == "coordinates" else 1)
                            found += [Row(name, value, "model", of=of)]
                for name, value in (("multitask", 0.9), ("ties_K8", 0.5)):
                    found += [Row("plain_value", value - 0.1, of=(name,))]
                    found += [Row("wise_ft_value", value, of=(name,))]
                group = f"{size}/{base}/seed{seed}"
                made += [row._replace(group=group) for row in found]
    return made


@pytest.fixture(scope="module")
def rows(run):
    return run(tuple(SIZES), ("pt", "it"), METHODS, COUNTS, seeds=2)


@pytest.fixture(scope="module")
def grid(rows):
    return summarise(rows)


def outcomes(grid, found):
    judged = explaining.verdicts(grid, sweep_analysis.Analysed(found))
    return {verdict.key: verdict.outcome for verdict in judged}


def test_saturation_is_the_first_k_that_brings_a_twentieth_of_the_first():
    assert sweep_analysis.measured({2: 0.2, 4: 0.3, 6: 0.309, 8: 0.4}) == 6
    assert sweep_analysis.measured({2: 0.2, 4: 0.3, 6: 0.4}) is None
    assert sweep_analysis.measured({2: 0.2, 4: 0.1}) == 4
    assert sweep_analysis.measured({2: -0.2, 4: 0.1}) == 0
    # From the base to K = 2, two experts were added.
    assert sweep_analysis.measured({2: 0.2, 3: 0.206}) is None
    assert sweep_analysis.measured({2: 0.2, 3: 0.2049}) == 3


def test_two_k_between_the_same_ones_that_were_run_are_alike():
    assert step(3, COUNTS) == step(4, COUNTS) == 1
    assert step(5, COUNTS) == 2
    assert step(99, COUNTS) == step(float("inf"), COUNTS) == 4


SIZE_CLAIMS = (
    "larger_need_a_smaller_share",
    "larger_have_lower_barriers",
    "larger_disentangle",
)


def test_every_claim_about_size_can_come_out_either_way(grid):
    up, down = (outcomes(grid, analysed(*pair)) for pair in ((1.0, 0.5), (0.5, 1.0)))
    for key in SIZE_CLAIMS:
        assert (up[key], down[key]) == (HOLDS, FAILS), key
    assert up["it_disentangles"] == HOLDS
    assert up["optimised_multitask"] == HOLDS
    assert outcomes(grid, analysed())["rht_covers_more"] == HOLDS
    assert outcomes(grid, analysed(rht=0.1))["rht_covers_more"] == FAILS


def seen_to_saturate(grid):
    """Return where each of the 32 curves saturates."""
    seen = [
        sweep_analysis.measured({K: of[seed] for K, of in curve.items()})
        for size in SIZES
        for base in ("pt", "it")
        for method in METHODS
        for seed in range(2)
        for curve in [sweep_analysis.curves(grid, size, base, method)]
    ]
    assert len(seen) == 32 and 0 not in seen
    return seen


# The first K at which saturation can be seen is 4; ∞ is none of them.
@pytest.mark.parametrize(
    ("star", "alike", "share"),
    [
        ((7, 8), {8}, "25%"),
        ((3, 5), {4, 6}, "50%"),
        ((2, 3), {4}, "25%"),
        ((9, 20), {None}, "25%"),
        ((5, None), {6, 8, None}, "75%"),
    ],
)
def test_the_theory_is_held_against_each_curve(grid, star, alike, share):
    found = sweep_analysis.Analysed(analysed(star=star))
    verdict = explaining.verdicts(grid, found)[0]
    seen = seen_to_saturate(grid)
    of, coordinates, *_ = verdict.tests
    assert of.agree + of.against + of.level == 16
    same = statistics.fmean(1.0 if K in alike else -1.0 for K in seen)
    assert of.mean == pytest.approx(same, abs=1e-9)
    assert of.decides and not coordinates.decides
    assert "cannot be tested on 0 of 32 curves" in verdict.notes[0]
    assert f"holds {share} of what could be seen in the mean" in verdict.notes[0]
    assert (
        f"Of 32 curves of one size, base, method and run, {seen.count(None)}"
        in (verdict.notes[1])
    )


def test_a_theory_of_fewer_experts_than_were_merged_cannot_be_tested(grid):
    found = sweep_analysis.Analysed(analysed(star=(1, 2)))
    verdict = explaining.verdicts(grid, found)[0]
    assert verdict.outcome == UNTESTED
    assert "cannot be tested on 32 of 32 curves" in verdict.notes[0]


def test_a_gain_that_bends_as_a_curve_does_agrees_with_it(grid):
    def verdict(found):
        made = explaining.verdicts(grid, sweep_analysis.Analysed(found))
        return next(v for v in made if v.key == "gains_bend_as_widths")

    for middle in (0.5, 0.75, 1.0):  # of the width that is there at K = 4 of 8
        width = {4: middle, 8: 1.0}
        apart = [
            0.1 - abs(of[4][seed] / of[8][seed] - middle)
            for size in SIZES
            for base in ("pt", "it")
            for method in METHODS
            for of in [sweep_analysis.curves(grid, size, base, method)]
            for seed in range(2)
        ]
        (test,) = verdict(analysed(width=lambda K, w=width: w.get(K, 0.1))).tests
        assert test.mean == pytest.approx(statistics.fmean(apart))
        assert test.outcome == (HOLDS if min(apart) > 0 else FAILS)


def test_a_density_is_compared_by_both_ends_of_its_bracket(grid):
    found = sweep_analysis.Analysed(analysed())
    verdicts = explaining.verdicts(grid, found)
    (of,) = (v for v in verdicts if v.key == "larger_need_a_smaller_share")
    upper, _, lower, _ = of.tests
    assert upper.mean == pytest.approx(0.25) and upper.decides
    assert lower.mean == pytest.approx(1 / 6) and not lower.decides


def test_the_multitask_model_is_no_merge():
    found = sweep_analysis.Analysed(analysed())
    assert found.barrier("1x", "it", "base")[0] == pytest.approx(1 / 3)
    assert found.barrier("1x", "it", "merge")[0] == pytest.approx(1 / 4)
    assert found.barrier("1x", "it", "experts") == pytest.approx({0: 1.0, 1: 1.01})
    assert found.on_the_way("1x", "it", "base") == {}
    share = found.covered("64x", "it", "ties", 4, "coordinates")
    assert share == pytest.approx({0: 0.5, 1: 0.5})


def test_a_way_is_drawn_above_the_line_between_the_losses_of_its_ends(grid):
    found = sweep_analysis.Analysed(analysed())
    way = found.on_the_way("64x", "pt", "experts")
    assert list(way) == [0.0, 0.5, 1.0]
    assert way[0.5] == pytest.approx({0: 0.52, 1: 0.53})
    assert way[0.0] == way[1.0] == pytest.approx({0: 0.0, 1: 0.0})
    drawings = explaining_figures.drawings(grid, found)
    (drawn,) = (of for of in drawings if of.name == "F13_pt")
    (panel,) = drawn.panels  # no merge's paths were analysed
    assert panel.title == "expert → expert"
    assert list(panel.lines) == list(SIZES)
    assert panel.lines["64x"][0.5].mean == pytest.approx(0.525)


def test_what_was_not_analysed_is_not_tested(grid):
    kept = [row for row in analysed() if row.quantity in ("params", "width")]
    found = outcomes(grid, kept)
    assert found["larger_have_lower_barriers"] == UNTESTED
    assert found["rht_covers_more"] == UNTESTED


def test_a_report_draws_a_sweeps_analysis(rows, tmp_path, capsys):
    results.write(tmp_path / "curves" / results.FILE, rows)
    analysis_rows.write(tmp_path / "analysed", "sweep", analysed(), settings={})
    plain = tmp_path / "analysed" / analysis_rows.FILE
    packed = tmp_path / "analysed.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    command = ["report", "--workdir", str(tmp_path / "curves"), "--analysis"]
    out = ["--out", str(tmp_path / "page")]
    assert main([*command, str(packed), *out]) == 0, capsys.readouterr().err
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Why more experts stop helping" in page
    assert "Experts of larger models are better connected" in page
    lines = (tmp_path / "page" / "tables" / "saturation.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * 2
    assert lines[1].startswith("1x,16000,pt,0,4,") and ",beyond," in lines[1]
    assert ",7 to 8,7 to 8," in lines[1]
    for name in ("F7_it", "F8", "F9", "F10_pt", "F11", "F13_it"):
        assert (tmp_path / "page" / "figures" / f"{name}.png").stat().st_size > 5000
    packed.write_bytes(packed.read_bytes()[:-20])
    assert main([*command, str(packed), *out]) == 2
    assert "is no finished analysis" in capsys.readouterr().err


def test_the_page_draws_the_numbers_and_reads_well(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda grid: [])  # those for papers
    monkeypatch.setattr(explaining_figures, "draw", lambda *of: [])
    rows = run(tuple(SIZES), ("it",), METHODS, (2, 8), seeds=2)
    results.write(tmp_path / results.FILE, rows)
    of_it = [row for row in analysed() if "/it/" in row.group]
    analysis_rows.write(tmp_path / "analysed", "sweep", of_it, settings={})
    command = ["report", "--workdir", str(tmp_path), "--analysis"]
    assert main([*command, str(tmp_path / "analysed")]) == 0
    path = tmp_path / "report" / "index.html"
    with browser.chromium() as chromium, browser.opened(chromium, path) as shown:
        (barriers,) = shown.evaluate(
            "document.querySelector('#F8_0 .plot').data.map(({x, y}) => ({x, y}))"
        )
        assert barriers["x"] == list(SIZES.values())
        assert barriers["y"] == pytest.approx([1.005, 0.505])
        verdicts = shown.text_content("#verdicts")
        assert "Experts of larger models are better connected" in verdicts
        browser.reads_well(shown)


def test_a_report_without_the_analysis_has_no_such_claims(rows, tmp_path):
    fewer = [dataclasses.replace(row, config_hash="c1") for row in rows[:200]]
    results.write(tmp_path / results.FILE, fewer)
    assert main(["report", "--workdir", str(tmp_path)]) == 0
    assert "better connected" not in (tmp_path / "report" / "index.html").read_text()
