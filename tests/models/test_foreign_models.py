"""Models as other programs leave them: cache snapshots, tied weights stored twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from family_cases import GOLDENS
from safetensors.numpy import load_file, save_file

import merging
from merging import UserError, methods, models
from merging.evaluation import job
from merging.merge import streamed as stream
from merging.models import hf as families
from merging.models.hf.convert import convert

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = GOLDENS / "smollm2"

pytestmark = pytest.mark.filterwarnings("ignore:.*no tokenizer")


def variant(folder, change=lambda leaves: leaves, **settings):
    """Save the tied golden with other leaves, or another config."""
    folder.mkdir(parents=True)
    config = json.loads((TIED / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    leaves = change(dict(load_file(TIED / "model.safetensors")))
    save_file(leaves, folder / "model.safetensors")
    return str(folder)


def with_head(leaves):
    return leaves | {HEAD: leaves[EMBEDDING].copy()}


def with_another_head(leaves):
    head = leaves[EMBEDDING].copy()
    head[-1, -1] += 1
    return leaves | {HEAD: head}


def moved(seed):
    def change(leaves):
        rng = np.random.default_rng(seed)
        return {n: x + rng.normal(size=x.shape).astype("f4") for n, x in leaves.items()}

    return change


@pytest.fixture
def snapshot(tmp_path):
    """A golden as the Hugging Face cache has it."""
    entry = tmp_path / "hub" / "models--a--b"
    here = entry / "snapshots" / "0a1b"
    here.mkdir(parents=True)
    (entry / "blobs").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(TIED / file, entry / "blobs" / f"b{file}")
        (here / file).symlink_to(f"../../blobs/b{file}")
    (entry / "blobs" / "t").write_text("{}")
    (here / "tokenizer.json").symlink_to("../../blobs/t")
    return str(here)


def test_a_snapshot_is_loaded_converted_and_evaluated_as_a_folder_is(
    snapshot, tmp_path
):
    config, params = families.load(snapshot)
    assert models.parameter_count(config) == sum(
        leaf.size for leaf in load_file(TIED / "model.safetensors").values()
    )
    found = convert(snapshot, str(tmp_path / "out"), format="orbax")
    assert (found / "tokenizer.json").read_text() == "{}"
    assert (found / "config.json").read_bytes() == (TIED / "config.json").read_bytes()
    model = job.open_model(snapshot)
    assert model.tokenizer == snapshot
    assert model.identity == job.open_model(TIED).identity


def test_an_output_that_repeats_the_embedding_is_loaded_as_tied(tmp_path):
    model = families.open_model(variant(tmp_path / "m", with_head))
    assert model.config.tied_embeddings and "head" not in model.leaves
    back = convert(str(tmp_path / "m"), str(tmp_path / "out"), format="safetensors")
    assert set(load_file(back / "model.safetensors")) == set(
        load_file(TIED / "model.safetensors")
    )


def test_an_output_of_its_own_is_not_taken_for_tied(tmp_path):
    folder = variant(tmp_path / "m", with_another_head)
    with pytest.raises(UserError, match="lm_head.weight holds other weights") as caught:
        families.open_model(folder)
    assert "set tie_word_embeddings to false" in str(caught.value)
    folder = variant(tmp_path / "n", with_another_head, tie_word_embeddings=False)
    assert "head" in families.open_model(folder).leaves


@pytest.mark.parametrize("storing", [("base", "e0", "e1"), ("e1",), ("base",)])
def test_tied_models_merge_to_tied_ones_whoever_stores_the_output(tmp_path, storing):
    places = {}
    for seed, name in enumerate(("base", "e0", "e1")):

        def change(leaves, name=name, seed=seed):
            leaves = moved(seed)(leaves)
            return with_head(leaves) if name in storing else leaves

        places[name] = variant(tmp_path / name, change)
    base = places.pop("base")
    out = tmp_path / "out"
    stream.merge_checkpoints(base, places, methods.dare(density=0.5), str(out), seed=3)
    merged = load_file(out / "model.safetensors")
    assert HEAD not in merged
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    arrays = {n: load_file(f"{e}/model.safetensors") for n, e in places.items()}
    start = load_file(f"{base}/model.safetensors")
    for leaves in (start, *arrays.values()):
        leaves.pop(HEAD, None)
    expected = merging.merge(start, arrays, methods.dare(density=0.5), seed=3)
    assert all(np.array_equal(merged[n], expected[n]) for n in merged)
    families.open_model(out)


def test_equal_outputs_that_are_said_not_to_be_tied_stay(tmp_path):
    settings = {"tie_word_embeddings": False}
    places = [variant(tmp_path / n, with_head, **settings) for n in ("base", "e")]
    out = tmp_path / "out"
    stream.merge_checkpoints(places[0], places[1:], methods.ties(), str(out))
    assert HEAD in load_file(out / "model.safetensors")


def test_an_output_that_moved_away_stays_a_leaf(tmp_path):
    base = variant(tmp_path / "base", with_head)
    expert = variant(tmp_path / "e", with_another_head)
    out = tmp_path / "out"
    stream.merge_checkpoints(base, [expert], methods.task_arithmetic(1.0), str(out))
    expected = load_file(Path(expert) / "model.safetensors")[HEAD]
    merged = load_file(out / "model.safetensors")[HEAD]
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


def test_gemma_3_with_capped_scores_is_refused_as_transformers_ignores_the_cap():
    config = json.loads((GOLDENS / "gemma3" / "config.json").read_text())
    assert config.get("attn_logit_softcapping") is None
    config["attn_logit_softcapping"] = 50.0
    with pytest.raises(UserError, match="attn_logit_softcapping = 50.0 is not supp"):
        families.read_config(json.dumps(config))
