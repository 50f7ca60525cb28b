"""All analyses of a sweep's models: which models, which numbers; what is refused."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from merging import sweep
from merging.analysis import of_sweep, rows, saturation
from merging.cli.main import main
from merging.runtime.errors import UserError
from merging.sweep import groups
from merging.sweep.finished import Group

SMALL = {
    "data.categories": "sentiment,paraphrase,word_sense_disambiguation",
    "data.test_examples": "8",
    "bases": "pt",
    "methods": "average,ties",
    "experts_merged": "2",
    "seeds": "2",
    "pretraining.steps": "2",
    "expert.steps": "2",
    "multitask.steps": "2",
    "multitask.validate_every": "1",
    "keep_merges": "true",
    "runner": "inline",
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept") / "curves"
    chosen = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = ["sweep", "--config", "scaling_curves/smoke", "--workdir", str(folder)]
    assert main([*command, *chosen]) == 0
    return folder


def command(swept, workdir, **more):
    chosen = {
        "sweep": swept,
        "merges": "ties_K2",
        "connectivity.points": 3,
        "connectivity.count": 4,
        "connectivity.scales": 0.5,
        "saturation.densities": 0.5,
        "saturation.orders": 2,
    } | more
    start = ["analyze", "--config", "analyze/sweep", "--workdir", str(workdir)]
    return [*start, *(f"--config.{key}={value}" for key, value in chosen.items())]


@pytest.mark.long
def test_the_models_of_a_sweep_are_analysed_group_by_group(
    swept, tmp_path, capsys, monkeypatch
):
    # What two steps teach is luck.
    monkeypatch.setattr(saturation, "learned", lambda own, base: True)
    found, suite = groups(swept)
    assert [group.name for group in found] == ["1x/pt/seed0", "1x/pt/seed1"]
    assert suite["name"] == "miniworld" and suite["test_examples"] == 8
    for group in found:
        assert set(group.experts) == {"sentiment", "paraphrase"}
        assert list(group.merges) == ["average_K2", "ties_K2"]
        assert Path(group.multitask).name == "best"  # of early stopping
        folders = [group.start, group.multitask, *group.experts.values()]
        folders += group.merges.values()
        assert all((Path(folder) / "config.json").exists() for folder in folders)
    out = tmp_path / "analysed"
    assert main(command(swept, out)) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "6 of 6: connectivity of 1x/pt/seed1" in said.err
    assert "1x/pt/seed1" in said.out
    made = rows.read(out, "sweep")["rows"]
    value = {(r.group, r.quantity, r.of, r.at): r.value for r in made}
    assert value["1x/pt/seed0", "params", (), None] == found[0].params
    for group in found:
        alone = out / "parts" / group.name.replace("/", "_")
        for name in ("geometry", "saturation", "connectivity"):
            for row in rows.read(alone / name, name)["rows"]:
                key = (group.name, row.quantity, row.of, row.at)
                if row.by in ("", "model") and key in value:
                    assert value[key] == row.value
        pair = tuple(group.experts)
        assert (group.name, "cosine", pair, None) in value
        assert (group.name, "loss_barrier", pair, None) in value
        assert (group.name, "loss", pair, 1.0) in value
        assert (group.name, "error", (pair[0], "ties_K2"), 0.0) in value
        assert (group.name, "threshold", ("parameters",), 2) in value
        assert (group.name, "touched", ("ties_K2",), None) in value
        assert (group.name, "wise_ft_share", ("multitask",), None) in value
    assert not [r for r in made if r.layer is not None or r.by == "kind"]
    assert not [r for r in made if r.quantity in ("loss", "error") and len(r.of) > 2]
    assert main(command(swept, out)) == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"merges": "ties_K8"}, "did you mean ties_K2"),
        ({"sizes": "8x"}, "unknown size of"),
        ({"parts": "geometri"}, "did you mean geometry"),
        ({"sweep": ""}, "name the workdir of a sweep"),
    ],
)
def test_what_the_sweep_has_not_is_refused(swept, tmp_path, capsys, more, words):
    assert main(command(swept, tmp_path / "out", **more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_without_merges_and_a_wrong_key_of_a_part_are_refused(
    tmp_path, monkeypatch
):
    one = Group("1x", "pt", 0, 9, "base", {"sentiment": "e"}, {}, "")
    monkeypatch.setattr(sweep, "groups", lambda folder: ([one], {"name": "miniworld"}))
    wrong = {"analysis": "sweep", "sweep": "curves", "parts": ("geometry",)}
    with pytest.raises(UserError, match="kept no merges: sweep with --config.keep"):
        of_sweep.run(ConfigDict(wrong | {"merges": ("ties_K2",)}), tmp_path / "out")
    with pytest.raises(UserError, match="densty"):
        of_sweep.run(ConfigDict(wrong | {"geometry": {"densty": 1}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_sweep_is_refused(tmp_path, capsys):
    assert main(command(tmp_path, tmp_path / "out")) == 2
    assert "holds no sweep" in capsys.readouterr().err
