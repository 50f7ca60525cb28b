"""What a merge changed, against NumPy, in parts of any size."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from merging.checkpoints import open_checkpoint
from merging.cli.main import main
from merging.merge import changes, merge_checkpoints
from merging.runtime.errors import UserError


def write(folder, **leaves):
    folder.mkdir()
    named = {name.replace("__", "."): leaf for name, leaf in leaves.items()}
    save_file(named, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def pair(tmp_path):
    draw = np.random.default_rng(0)
    before = draw.normal(size=(40, 30)).astype(ml_dtypes.bfloat16)
    after = before.copy()
    after[::4] = after[::4] + ml_dtypes.bfloat16(0.25)
    count = np.arange(6, dtype=np.int32)
    shared = dict(step=count, zero=np.zeros(3, np.float32))
    base = write(tmp_path / "base", layers__3__w=before, gone=count, **shared)
    model = write(tmp_path / "model", layers__3__w=after, new=count, **shared)
    return model, base, before.astype(np.float64), after.astype(np.float64)


@pytest.mark.parametrize("part", [2**23, 70])
def test_norms_and_counts_are_numpys_in_parts_of_any_size(pair, monkeypatch, part):
    monkeypatch.setattr(changes, "PART", part)
    model, base, before, after = pair
    found, lines = changes.changes(open_checkpoint(model), open_checkpoint(base))
    by_path = {change.path: change for change in found}
    leaf = by_path["layers.3.w"]
    assert (leaf.layer, leaf.kind, leaf.shape) == (3, "layers.*.w", (40, 30))
    assert leaf.changed == np.count_nonzero(after != before) == 300
    assert leaf.kept == 0.25
    # Squares of bfloat16 values are exact in float64; their sums are rounded.
    exact = pytest.approx(np.linalg.norm(after - before), rel=1e-14)
    assert leaf.norm == exact
    assert leaf.base_norm == pytest.approx(np.linalg.norm(before), rel=1e-14)
    assert leaf.largest == np.abs(after - before).max()
    assert by_path["step"].changed == 0 and by_path["step"].layer is None
    assert by_path["zero"].relative is None
    assert lines == ["new: not in the base", "gone: only in the base"]


def test_an_inspected_merge_tells_its_manifest_and_its_sparsity(tmp_path, capsys):
    draw = np.random.default_rng(1)
    weights = [draw.normal(size=1000).astype(np.float32) for _ in range(3)]
    places = [write(tmp_path / f"m{i}", w=weights[i]) for i in range(3)]
    out = str(tmp_path / "merged")
    with pytest.warns(UserWarning, match="config.json"):
        merge_checkpoints(places[0], places[1:2], "ties(density=0.3)", out)
    found = changes.inspect(out)
    assert found.record["settings"]["method"] == "ties(density=0.3)"
    # One expert, trimmed to 30 %: the 700th smallest and all above it are kept.
    assert [change.changed for change in found.changes] == [301]
    page = tmp_path / "page"
    assert main(["inspect", out, "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "Method: ties(density=0.3)" in printed and "30.1% differ" in printed
    shown = (page / "index.html").read_text("utf-8")
    assert "30.1% differ" in shown
    # Where it comes from: how it was made, and of what.
    assert "<dt>Method</dt><dd>ties(density=0.3)</dd>" in shown
    for name, place in zip(("the base", "m1"), places[:2], strict=True):
        assert f"<dt>{name}</dt><dd>{place} (safetensors)</dd>" in shown
    other = changes.inspect(out, base=places[2])
    assert other.base == places[2] and other.changes[0].changed == 1000
    (tmp_path / "m0" / "model.safetensors").unlink()
    (tmp_path / "m0").rmdir()
    gone = changes.inspect(out)
    assert gone.changes == [] and "no longer at" in gone.notes[0]


def test_a_merge_without_a_base_shows_its_manifest_only(tmp_path):
    places = [write(tmp_path / n, w=np.ones(4, np.float32)) for n in ("a", "b")]
    out = str(tmp_path / "merged")
    with pytest.warns(UserWarning, match="config.json"):
        merge_checkpoints(None, places, "average()", out)
    found = changes.inspect(out)
    assert found.changes == [] and "without a base" in found.notes[0]


def test_what_was_not_merged_here_needs_a_base(pair):
    model, base, *_ = pair
    with pytest.raises(UserError, match="--base PATH"):
        changes.inspect(model)
    found = changes.inspect(model, base=base)
    assert found.record is None and found.notes[0] == "new: not in the base"
