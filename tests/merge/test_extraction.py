"""An adapter out of two checkpoints."""

import json
import math
import os
import sys
from pathlib import Path

import lora
import numpy as np
import pytest
from safetensors.numpy import load_file

from merging import checkpoints
from merging.cli import main
from merging.merge import extraction, manifest
from merging.merge.extraction import fit as fitting
from merging.merge.extraction import parts
from merging.runtime.errors import UserError

MATRICES = (f"{lora.UP}.weight", f"{lora.SQUARE}.weight")
EMBED, NORM = f"{lora.EMBED}.weight", "model.norm.weight"


@pytest.fixture
def models(tmp_path):
    """Save a base and a model that moved, its matrices of full rank."""
    leaves, rng = lora.base_leaves(), np.random.default_rng(5)
    moved = {
        path: leaf + rng.standard_normal(leaf.shape).astype(np.float32) * 0.1
        for path, leaf in leaves.items()
    }
    moved[NORM] = leaves[NORM]
    folders = [
        lora.save_base(tmp_path / name, of)
        for name, of in (("base", leaves), ("model", moved))
    ]
    return folders, leaves, moved


def read(uri):
    source = checkpoints.open_checkpoint(uri)
    found = {}
    for path, leaf in source.abstract.items():
        flat = np.empty(math.prod(leaf.shape), leaf.dtype)
        source.read_into(path, 0, flat)
        found[path] = flat.reshape(leaf.shape)
    return found


def test_an_adapter_of_a_rank_is_the_nearest_and_its_error_is_told(tmp_path, models):
    (base, model), leaves, moved = models
    out = extraction.extract(base, model, str(tmp_path / "out"), rank=5)
    report = json.loads((out / "extraction.json").read_text())
    found = read(f"{base}+{out}")
    lost = total = 0
    for path in MATRICES:
        delta = (moved[path] - leaves[path]).astype(np.float64)
        left, sizes, right = np.linalg.svd(delta, full_matrices=False)
        nearest = left[:, :5] * sizes[:5] @ right[:5]
        # The decomposition of a 37 × 24 matrix in float32, of norm 3 at most.
        added = found[path] - leaves[path].astype(np.float64)
        np.testing.assert_allclose(added, nearest, atol=37 * 3 * 2**-22)
        error = math.sqrt((sizes[5:] ** 2).sum() / (sizes**2).sum())
        told = report["matrices"][path]
        assert told["rank"] == 5 and told["error"] == pytest.approx(error, rel=1e-4)
        assert told["energy"] == pytest.approx(1 - error**2, rel=1e-5)
        lost += (sizes[5:] ** 2).sum()
        total += (sizes**2).sum()
    assert report["error"] == pytest.approx(math.sqrt(lost / total), rel=1e-4)
    embedding = np.linalg.norm((moved[EMBED] - leaves[EMBED]).astype(np.float64))
    assert report["left_out"] == {EMBED: pytest.approx(embedding, rel=1e-6)}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (5, 5, {})
    assert not (tmp_path / "out.parts").exists()


def test_a_fit_is_found_where_lapacks_quickest_way_does_not_converge(monkeypatch):
    delta = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    left, sizes, right = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    nan = [np.full_like(part, np.nan) for part in (left, sizes, right)]

    def fails(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(fitting.jnp.linalg, "svd", lambda *_, **__: nan)
    monkeypatch.setattr(np.linalg, "svd", fails)
    found = fitting.fit(delta, 3, 0, np.dtype(np.float32))
    # Factors are rounded, and their products of three.
    close = (2 + 3) * 2**-23 * sizes[0]
    nearest = left[:, :3] * sizes[:3] @ right[:3]
    np.testing.assert_allclose(found.b @ found.a, nearest, rtol=0, atol=close)


def test_full_rank_and_whole_leaves_give_the_model_back(tmp_path, models, capsys):
    (base, model), _, moved = models
    out = tmp_path / "out"
    command = ["extract", "--config", "extract/lora", f"--config.base={base}"]
    command += [f"--config.model={model}", f"--config.output={out}"]
    command += ["--config.rank=24", "--config.leaves=proj|embed", "--config.whole=norm"]
    assert main.main(command) == 0
    shown = capsys.readouterr().out
    assert "3 matrices" in shown and f"Extracted: {out}" in shown
    found = read(f"{base}+{out}")
    for path, leaf in moved.items():
        # A decomposition of 50 × 24 at most, in float32.
        np.testing.assert_allclose(found[path], leaf, atol=50 * 3 * 2**-22)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.norm"]
    assert main.main(command) == 0
    assert f"Nothing to do, it is extracted: {out}" in capsys.readouterr().out
    assert main.main([*command, "--config.energy=0.5"]) == 2


def test_a_share_of_the_energy_takes_the_least_rank_that_keeps_it(tmp_path, models):
    (base, model), leaves, moved = models
    out = tmp_path / "out"
    extraction.extract(base, model, str(out), rank=0, energy=0.7, dtype="bfloat16")
    tensors = load_file(out / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    ranks = {}
    for path in MATRICES:
        sizes = np.linalg.svd(moved[path] - leaves[path])[1]
        shares = np.cumsum(sizes**2) / (sizes**2).sum()
        module = path.removesuffix(".weight")
        ranks[module] = next(k for k, share in enumerate(shares, 1) if share >= 0.7)
        assert tensors[f"{lora.PREFIX}{module}.lora_A.weight"].dtype.itemsize == 2
        stored = tensors[f"{lora.PREFIX}{module}.lora_A.weight"].shape[0]
        told = config["rank_pattern"].get(f"^{module}", config["r"])
        assert stored == told == ranks[module]
        assert config["alpha_pattern"].get(f"^{module}", config["lora_alpha"]) == told
    assert len(set(ranks.values())) == 2
    report = json.loads((out / "extraction.json").read_text())
    exact = fitting.fit(moved[MATRICES[0]] - leaves[MATRICES[0]], 0, 0.7, np.float32)
    # What is told is of the factors as they are stored: bfloat16's rounding is in it.
    assert report["matrices"][MATRICES[0]]["error"] > exact.error


def test_what_an_adapter_added_is_found_again(tmp_path):
    leaves = lora.base_leaves()
    base = lora.save_base(tmp_path / "base", leaves)
    adapter = lora.save(tmp_path / "a", lora.factors(1, (lora.UP,)))
    out = tmp_path / "out"
    extraction.extract(base, f"{base}+{adapter}", str(out), rank=0, energy=0.999999)
    report = json.loads((out / "extraction.json").read_text())
    told = report["matrices"]
    assert told[MATRICES[0]]["rank"] == 4 and told[MATRICES[0]]["error"] < 1e-6
    assert told[MATRICES[1]] == {"rank": 0, "norm": 0, "error": 0, "energy": 1}
    assert not any("q_proj" in name for name in load_file(out / adapter_file()))
    assert report["left_out"] == {}


def adapter_file():
    return "adapter_model.safetensors"


def test_a_stopped_extraction_goes_on(tmp_path, models, monkeypatch):
    (base, model), _, _ = models
    out, fitted = tmp_path / "out", []
    fit = fitting.fit

    def once(delta, *settings):
        if fitted:
            raise RuntimeError("killed")
        fitted.append(delta.shape)
        return fit(delta, *settings)

    with monkeypatch.context() as patch:
        patch.setattr("merging.merge.extraction.job.fit", once)
        with pytest.raises(RuntimeError, match="killed"):
            extraction.extract(base, model, str(out), rank=3)
    with pytest.raises(UserError, match="unfinished output of another extraction"):
        extraction.extract(base, model, str(out), rank=4)
    seen = []

    def counted(delta, *settings):
        seen.append(delta.shape)
        return fit(delta, *settings)

    monkeypatch.setattr("merging.merge.extraction.job.fit", counted)
    extraction.extract(base, model, str(out), rank=3)
    assert len(seen) == 1 and {*seen, *fitted} == {(37, 24), (24, 24)}
    other = tmp_path / "other"
    extraction.extract(base, model, str(other), rank=3)
    weights = [(p / adapter_file()).read_bytes() for p in (out, other)]
    assert weights[0] == weights[1]


def stopped(base, model, out, monkeypatch):
    """Extract until one matrix is fitted."""
    fitted = []

    def once(delta, *settings):
        if fitted:
            raise RuntimeError("killed")
        fitted.append(delta.shape)
        return fitting.fit(delta, *settings)

    with monkeypatch.context() as patch:
        patch.setattr("merging.merge.extraction.job.fit", once)
        with pytest.raises(RuntimeError, match="killed"):
            extraction.extract(base, model, str(out), rank=3)


def test_a_model_that_is_written_to_meanwhile_publishes_nothing(
    tmp_path, models, monkeypatch
):
    (base, model), _, _ = models
    module = sys.modules["merging.merge.extraction.job"]
    write = module._write_factors

    def write_and_change(*arguments):
        write(*arguments)
        (Path(model) / "model.safetensors").touch()

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_factors", write_and_change)
        with pytest.raises(UserError, match="changed while they were read: .*model"):
            extraction.extract(base, model, str(tmp_path / "out"), rank=3)
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="out.parts: .* it begins anew"):
        extraction.extract(base, model, str(tmp_path / "out"), rank=3)
    assert not list(tmp_path.glob("out.*")) and not list(tmp_path.glob(".out*"))


def test_two_extractions_of_one_output_do_not_share_their_parts(tmp_path, models):
    (base, model), _, _ = models
    with (
        checkpoints.locked(str(tmp_path / "out.parts")),
        pytest.raises(UserError, match=f"process {os.getpid()} .* writes .*out.parts"),
    ):
        extraction.extract(base, model, str(tmp_path / "out"), rank=3)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("what", ["thesis.txt", "extraction.json", "a link"])
def test_a_strangers_folder_of_parts_is_left_alone(tmp_path, models, what):
    (base, model), _, _ = models
    parts = tmp_path / "out.parts"
    if what == "a link":
        (tmp_path / "elsewhere").mkdir()
        parts.symlink_to("elsewhere")
    else:
        parts.mkdir()
        (parts / what).write_text('{"years": "of work"}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="out.parts exists, and is no output .* Move"):
        extraction.extract(base, model, str(tmp_path / "out"), rank=3)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_strangers_file_among_the_parts_stays(tmp_path, models, monkeypatch):
    (base, model), _, _ = models
    stopped(base, model, tmp_path / "out", monkeypatch)
    (tmp_path / "out.parts" / "thesis.txt").write_text("years of work")
    extraction.extract(base, model, str(tmp_path / "out"), rank=3)
    assert [p.name for p in (tmp_path / "out.parts").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": -1}, "rank must be a whole number from 0, not -1"),
        ({"energy": 1.0}, r"energy must be a share in \[0, 1\), not 1.0"),
        ({"rank": 0}, "give a rank, or the share of energy to keep"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"leaves": "x_proj"}, "leaves: x_proj fits no matrix MODULE.weight"),
        ({"leaves": "norm"}, "leaves: norm fits no matrix MODULE.weight"),
        ({"leaves": "("}, r"leaves='\(': the pattern is malformed"),
        ({"whole": "head"}, "whole: head fits no matrix|whole: head fits no"),
    ],
)
def test_settings_that_fit_nothing_are_refused(tmp_path, models, settings, message):
    (base, model), _, _ = models
    with pytest.raises(UserError, match=message):
        extraction.extract(base, model, str(tmp_path / "out"), **settings)
    assert not (tmp_path / "out.parts").exists()


def test_models_that_no_adapter_goes_between_are_refused(tmp_path, models):
    (base, _), leaves, moved = models
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="does not differ from its base"):
        extraction.extract(base, base, out)
    moved[MATRICES[0]][3, 4] = np.nan
    bad = lora.save_base(tmp_path / "bad", moved)
    with pytest.raises(UserError, match=r"NaN or Inf .*\s+.*up_proj.weight in the mod"):
        extraction.extract(base, bad, str(tmp_path / "out2"))
    stacked = {"layers/up": leaves[MATRICES[0]]}
    plain = lora.save_base(tmp_path / "plain", {"layers.up": stacked["layers/up"]})
    with pytest.raises(UserError, match="no leaf MODULE.weight, as adapters name them"):
        extraction.extract(plain, plain, out)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="is a gpt2, whose modules store"):
        extraction.extract(base, base, out)


def test_an_adapter_of_models_of_another_time_is_not_taken_for_done(
    tmp_path, models, monkeypatch
):
    (base, model), *_ = models
    extraction.extract(base, model, str(tmp_path / "out"), rank=2)
    file = next(Path(model).glob("*.safetensors"))
    os.utime(file, ns=(1, 1))
    extraction.extract(base, model, str(tmp_path / "out"), rank=2)  # all its bytes
    monkeypatch.setattr(manifest, "SMALL", 0)
    with pytest.raises(UserError, match="model.*got the time of change"):
        extraction.extract(base, model, str(tmp_path / "out"), rank=2)


def test_parts_that_a_kill_left_go_when_the_command_is_given_again(
    tmp_path, models, monkeypatch
):
    (base, model), *_ = models
    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "remove", lambda self: None)
        extraction.extract(base, model, str(tmp_path / "out"), rank=2)
    assert list((tmp_path / "out.parts").glob("*.npz"))
    extraction.extract(base, model, str(tmp_path / "out"), rank=2)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == [
        "out"
    ]
