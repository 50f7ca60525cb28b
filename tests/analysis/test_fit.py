"""`merging fit`: rows of runs and tables of one's own, to laws with their tests."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from test_loss_laws import TABLE_20

from merging.analysis import law_rows
from merging.analysis import rows as analysis_rows
from merging.cli.main import main
from merging.runtime import results
from merging.runtime.errors import UserError
from merging.runtime.results import Row


def row(params, method, subset, seed, dataset, loss, value=0.5):
    K = len(subset)
    return Row(
        suite="miniworld",
        family="tiny",
        size=f"{params}x",
        params=params,
        base="pt",
        method=method,
        parameters={},
        K=K,
        subset=tuple(subset),
        seed=seed,
        dataset=dataset,
        category="a" if dataset == "one" else "b",
        split="held_in",
        metric="accuracy",
        chance=0.5,
        merged=("a" if dataset == "one" else "b") in subset,
        value=value,
        value_of_expert=0.9,
        value_of_base=0.4,
        normalised=None,
        examples=10,
        wall_seconds=0.0,
        git_revision="unknown",
        config_hash="c0ffee",
        target_log_p=-10 * loss,
        target_tokens=10,
    )


def run(seeds=2, sizes=(1000, 4000, 16000), counts=(1, 2, 4, 8)):
    """Return rows of a run whose losses follow a law, and whose gains another."""
    rng = np.random.default_rng(0)
    found = []
    for N in sizes:
        for dataset in ("one", "two"):
            found.append(row(N, "base", (), 0, dataset, 3.0, 0.4))
        for seed in range(seeds):
            for k in counts:
                subset = [chr(ord("a") + i) for i in range(k)]
                loss = 1 + 5 * N**-0.3 + 4 * N**-0.2 / (k + 0.5)
                loss += 0.001 * rng.standard_normal()
                value = 0.4 + 0.3 * -math.expm1(-k / 2.0)
                method = "expert" if k == 1 else "ties"
                for dataset, more in (("one", 0.1), ("two", -0.1)):
                    found.append(
                        row(N, method, subset, seed, dataset, loss + more, value)
                    )
    return found


def fit(tmp_path, config, paths, **values):
    settings = {"rows": paths, "resamples": 20} | values
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return main(["fit", "--config", config, *flags, "--workdir", str(tmp_path / "out")])


def found(tmp_path):
    made = analysis_rows.read(tmp_path / "out", "law")["rows"]
    return {(r.quantity, r.of, r.at): r for r in made}


def test_a_law_of_a_runs_losses_predicts_larger_k_and_n(tmp_path, capsys):
    results.write(tmp_path / "rows.jsonl", run(sizes=(1000, 4000, 16000, 64000)))
    status = fit(tmp_path, "fit/law", tmp_path / "rows.jsonl", fit_k=4, fit_N=16000)
    assert status == 0, capsys.readouterr().err
    made, group = found(tmp_path), "tiny/pt/ties"
    assert made["observations", (group,), None].value == 4 * 4 * 2
    assert made["r_squared", (group,), None].value > 0.999
    fitted = made["fitted", (group, "4000"), 2]
    truth = 1 + 5 * 4000**-0.3 + 4 * 4000**-0.2 / 2.5
    assert fitted.value == pytest.approx(truth, abs=2e-3)
    assert fitted.low <= fitted.value <= fitted.high
    for test in ("fitted on k <= 4", "fitted on N <= 16000"):
        assert made["held_out_error", (group, test), None].value < 0.02
        assert 0 <= made["held_out_covered", (group, test), None].value <= 1
    assert made["held_out_predicted", (group, "fitted on k <= 4", "1000"), 8]
    assert (tmp_path / "out" / "figures" / "law_0.png").exists()


def test_what_nobody_has_run_is_predicted_with_the_interval_of_a_further_merge(
    tmp_path,
):
    results.write(tmp_path / "rows.jsonl", run(sizes=(1000, 4000, 16000, 64000)))
    rows = tmp_path / "rows.jsonl"
    assert fit(tmp_path, "fit/law", rows, predict_N="256000,1e6") == 0
    made = found(tmp_path)
    truth = 1 + 5 * 256000**-0.3 + 4 * 256000**-0.2 / 4.5
    one = made["predicted", ("tiny/pt/ties", "256000"), 4]
    assert one.low < one.value < one.high
    assert one.value == pytest.approx(truth, rel=0.005)
    assert made["predicted", ("tiny/pt/ties", "1e+06"), 8].value < one.value
    for form, sizes in (("fit/saturating", "64000"), ("fit/law", "-1")):
        assert fit(tmp_path, form, rows, predict_N=sizes) == 2


def test_gains_over_the_base_saturate_size_by_size(tmp_path, capsys):
    results.write(tmp_path / "rows.jsonl", run(seeds=1))
    assert fit(tmp_path, "fit/saturating", tmp_path / "rows.jsonl") == 0
    made = found(tmp_path)
    for size in (1000, 4000, 16000):
        of = f"tiny/pt/ties/{size}x"
        assert made["parameter", (of, "a"), None].value == pytest.approx(0.3)
        assert made["parameter", (of, "tau"), None].value == pytest.approx(2.0)


def table(path, lines, header=("N", "k", "loss")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def test_a_table_of_ones_own_is_fitted(tmp_path, capsys):
    path = table(
        tmp_path / "losses.csv", [(1.5e9, k, loss) for k, loss in TABLE_20.items()]
    )
    assert fit(tmp_path, "fit/law", path, fit_k=8) == 0
    made = found(tmp_path)
    assert made["r_squared", ("losses",), None].value >= 0.999
    test = ("losses", "fitted on k <= 8")
    assert made["held_out_error", test, None].value < 0.011
    assert "held_out_error, fitted on k <= 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "header", "said"),
    [
        ([(1, 2, 3)], ("N", "k", "los"), "has no column loss"),
        ([(1, 2, "x")], ("N", "k", "loss"), "losses.csv:2: N, k and loss"),
        ([(1, 0, 3)], ("N", "k", "loss"), "losses.csv:2: N, k and loss"),
        ([], ("N", "k", "loss"), "a header and no line"),
        ([(1, 2, 3)], ("N", "k", "loss"), "do not tell the 3 numbers"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, lines, header, said, capsys):
    path = table(tmp_path / "losses.csv", lines, header)
    assert fit(tmp_path, "fit/law", path) == 2
    err = [e for e in capsys.readouterr().err.splitlines() if e.startswith("merging")]
    assert len(err) == 1 and said in err[0]
    assert not (tmp_path / "out").exists()


def test_rows_that_are_given_twice_count_once_and_say_so(tmp_path, capsys):
    rows = run(seeds=1)
    for name in ("one", "two"):
        results.write(tmp_path / f"{name}.jsonl", rows)
    both = f"{tmp_path / 'one.jsonl'},{tmp_path / 'two.jsonl'}"
    assert fit(tmp_path, "fit/law", both) == 0
    out = capsys.readouterr().out
    assert f"note: {len(rows)} rows were given twice, alike" in out
    assert found(tmp_path)["observations", ("tiny/pt/ties",), None].value == 12


def test_runs_that_contradict_each_other_are_not_mixed(tmp_path, capsys):
    rows = run(seeds=1)
    other = [
        dataclasses.replace(row, config_hash="other", value=row.value / 2)
        for row in rows
        if row.dataset == "one"
    ]
    results.write(tmp_path / "one.jsonl", rows)
    results.write(tmp_path / "two.jsonl", other)
    for names in (("one", "two"), ("two", "one")):
        both = ",".join(str(tmp_path / f"{name}.jsonl") for name in names)
        assert fit(tmp_path, "fit/law", both) == 2
        said = capsys.readouterr().err
        assert "different configurations" in said and "c0ffee" in said
    assert not (tmp_path / "out").exists()


def test_models_that_lack_a_dataset_or_its_loss_are_left_out():
    rows = run(seeds=1, sizes=(1000,))
    whole = law_rows.of_rows(rows, "cross_entropy", "held_in", False, False)
    assert [one.k for one in whole["tiny/pt/ties"]] == [1, 2, 4, 8]
    part = [r for r in rows if not (r.K == 4 and r.dataset == "two")]
    part = law_rows.of_rows(part, "cross_entropy", "held_in", False, False)
    assert [one.k for one in part["tiny/pt/ties"]] == [1, 2, 8]
    with pytest.raises(UserError, match="name the rows"):
        law_rows.read([], quantity="value", split="all", gain=False, by_size=False)
