"""Rows of analyses as figures of the page; what is not there is left out."""

from typing import NamedTuple

import browser
import numpy as np
import pytest
from safetensors.numpy import save_file

from merging.analysis import rows as analysis_rows
from merging.cli.main import main
from merging.report import analyses, figures
from merging.runtime import results


class Row(NamedTuple):
    quantity: str
    value: float | None
    by: str = ""
    layer: int | None = None
    kind: str = ""
    of: tuple[str, ...] = ()
    at: float | None = None
    low: float | None = None
    high: float | None = None


GEOMETRY = [
    Row("cosine", 0.5, "model", of=("a", "<b>")),
    *(Row("cosine", 0.1 * n, "layer", n, of=("a", "<b>")) for n in (0, 1)),
    Row("cosine", 0.9, "kind", kind="mlp", of=("a", "<b>")),
    *(Row("effective_rank", 1.5 + n, "layer", n, of=("a", "<b>")) for n in (1, 0)),
]
SATURATION = [Row("width", 0.2 * k, of=("a",), at=k, low=0, high=1) for k in (1, 2)]
LAW = [
    *(Row("observed", 1 / k, of=("all", "1000"), at=k) for k in (2, 4)),
    *(Row("fitted", 1.1 / k, of=("all", "1000"), at=k, low=0, high=1) for k in (2, 4)),
    Row("held_out_observed", 0.12, of=("all", "fitted on k <= 4", "1000"), at=8),
    Row("held_out_predicted", 0.13, of=("all", "fitted on k <= 4", "1000"), at=8),
]


def test_every_analysis_becomes_a_section_and_what_is_unknown_none():
    given = [("geometry", GEOMETRY), ("law", LAW), ("mystery", LAW), ("law", LAW)]
    made = analyses.sections([*given, ("saturation", SATURATION), ("geometry", [])])
    assert [s.name for s in made] == ["geometry", "law", "law_3", "saturation"]
    names = [panel.name for section in made for panel in section.panels]
    assert len(set(names)) == len(names)
    assert "geometry_sign_disagreement" not in names and "law_held_out_0_0" in names


def test_a_panel_holds_the_rows_in_order():
    (section,) = analyses.sections([("geometry", GEOMETRY)])
    cosine, ranks = section.panels
    (trace,) = cosine.spec["traces"]
    assert (trace["x"], trace["y"]) == (["model", "0", "1"], ["a · <b>"])
    assert trace["z"] == [[0.5, 0.0, pytest.approx(0.1)]]
    (line,) = ranks.spec["traces"]
    assert (line["x"], line["y"]) == ([0, 1], [1.5, 2.5])
    (law,) = analyses.sections([("law", LAW)])
    fit, held_out = law.panels
    assert [t["name"] for t in fit.spec["traces"]] == [
        "observed, N = 1000",
        "law, N = 1000",
    ]
    observed, fitted = fit.spec["traces"]
    assert (observed["mode"], fitted["mode"]) == ("markers", "lines")
    assert observed["look"] == fitted["look"]
    assert fit.spec["traces"][1]["error_y"]["array"] == [1 - 0.55, 1 - 0.275]
    assert [t["y"] for t in held_out.spec["traces"]] == [[0.12], [0.13]]


@pytest.fixture(scope="module")
def task_vectors():
    """Return {name: {leaf: float32 difference from the base}} of three experts."""
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(12, 10))
    return {
        name: {
            f"layers.{layer}.w": np.float32(shared + draw.normal(size=(12, 10)))
            for layer in range(2)
        }
        for name in ("one", "two", "three")
    }


@pytest.fixture(scope="module")
def losses():
    """Return {(N, k): loss} by a law."""
    return {
        (N, k): 1 + 5 * N**-0.3 + 4 * N**-0.2 / (k + 0.5)
        for N in (1000, 16000, 64000)
        for k in (1, 2, 4, 8)
    }


@pytest.fixture(scope="module")
def analysed(task_vectors, losses, tmp_path_factory):
    """Return a folder with the workdirs of a real `analyze` and a real `fit`."""
    folder = tmp_path_factory.mktemp("analysed")
    zero = {leaf: np.zeros((12, 10), np.float32) for leaf in task_vectors["one"]}
    for name, leaves in {"base": zero, **task_vectors}.items():
        (folder / name).mkdir()
        save_file(leaves, folder / name / "model.safetensors")
    lines = [f"{N},{k},{loss}" for (N, k), loss in losses.items()]
    (folder / "losses.csv").write_text("\n".join(["N,k,loss", *lines]))
    experts = ",".join(str(folder / name) for name in task_vectors)
    of = [f"--config.base={folder / 'base'}", f"--config.experts={experts}"]
    for command, config, *flags in (
        ("analyze", "analyze/geometry", *of, "--config.densities="),
        ("fit", "fit/law", f"--config.rows={folder / 'losses.csv'}",
         "--config.fit_k=4", "--config.resamples=2"),
    ):  # fmt: skip
        workdir = str(folder / config.split("/")[1])
        assert main([command, "--config", config, *flags, "--workdir", workdir]) == 0
    return folder


def traces(shown, panel):
    return shown.evaluate(
        "panel => document.querySelector(`#${panel} .plot`).data"
        ".map(({name, x, y, z}) => ({name, x, y, z}))",
        panel,
    )


def test_the_report_draws_what_analyze_and_fit_found(
    run, analysed, task_vectors, losses, tmp_path, monkeypatch
):
    monkeypatch.setattr(figures, "draw", lambda grid: [])  # those for papers
    rows = run(("1x",), ("it",), ("average",), (2,), seeds=1)
    results.write(tmp_path / results.FILE, rows)
    places = [str(analysed / name) for name in ("geometry", "law")]
    command = ["report", "--workdir", str(tmp_path), "--analysis", *places]
    assert main(command) == 0
    path = tmp_path / "report" / "index.html"
    with browser.chromium() as chromium, browser.opened(chromium, path) as shown:
        assert "Geometry of the task vectors" in shown.text_content("#geometry h2")
        (heat,) = traces(shown, "geometry_cosine")
        assert heat["x"] == ["model", "0", "1"]
        one, two = task_vectors["one"], task_vectors["two"]
        for layer in range(2):
            a, b = (of[f"layers.{layer}.w"].ravel() for of in (one, two))
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            line = heat["z"][heat["y"].index("one · two")]
            assert line[1 + layer] == pytest.approx(cosine, rel=1e-5)
        ranks = {t["name"]: t["y"] for t in traces(shown, "geometry_ranks")}
        assert all(1 <= y <= 3 for y in ranks["effective rank"])
        # The law has seen k up to 4, and is held against the losses at 8.
        observed, predicted = traces(shown, "law_held_out_0_0")
        assert (observed["name"], predicted["name"]) == ("observed", "predicted")
        assert set(observed["x"]) == {8}
        truth = sorted(loss for (_, k), loss in losses.items() if k == 8)
        assert sorted(observed["y"]) == pytest.approx(truth)
        assert sorted(predicted["y"]) == pytest.approx(truth, rel=0.02)
        first = shown.locator("#law_fit_0 .legend button").first
        before = len(traces(shown, "law_fit_0"))
        first.click()
        assert len(traces(shown, "law_fit_0")) == before - 1
        assert shown.locator("nav a[href='#geometry']").count() == 1
        browser.reads_well(shown)


def test_the_command_says_which_analyses_it_cannot_draw(run, tmp_path, capsys):
    rows = run(("1x",), ("it",), ("average",), (2,), seeds=1)
    results.write(tmp_path / "curves" / results.FILE, rows)
    table = [analysis_rows.Row(**row._asdict()) for row in SATURATION]
    analysis_rows.write(tmp_path / "other", "connectivity", table, settings={})
    command = ["report", "--workdir", str(tmp_path / "curves"), "--analysis"]
    assert main([*command, str(tmp_path / "other")]) == 2
    assert "it draws geometry, saturation, law" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "curves")]) == 2
    assert "is no finished analysis" in capsys.readouterr().err
