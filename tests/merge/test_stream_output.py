"""What a merged folder holds beside its weights, and what it is called."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import merging
from merging import UserError, methods
from merging.merge import streamed as stream

BESIDE = {
    "config.json": '{"architectures": ["X"], "torch_dtype": "bfloat16"}',
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "spiece.model": "words",
    "chat_template.jinja": "{{ x }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "preprocessor_config.json": "{}",
    "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "LICENSE": "mine",
    "LICENSE.txt": "mine",
    "NOTICE": "mine",
    "USE_POLICY.md": "mine",
}
LEFT = ("modeling_x.py", "pytorch_model.bin", "trainer_state.json", "README.md")


def write(folder, files, text="{}"):
    for name in files:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name] if isinstance(files, dict) else text)


def names(folder):
    found = [p.relative_to(folder) for p in Path(folder).rglob("*") if p.is_file()]
    return sorted(map(str, found))


def snapshot(folder, leaves, files):
    """Make a model as the Hugging Face cache has it; return its snapshot's folder."""
    blobs, here = folder / "blobs", folder / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    here.mkdir(parents=True)
    save_file(leaves, here / "model.safetensors")
    write(here, files)
    for number, name in enumerate(names(here)):
        (here / name).rename(blobs / f"{number:064x}")
        up = "../" * (2 + name.count("/"))
        (here / name).symlink_to(f"{up}blobs/{number:064x}")
    return str(here)


def small(value, dtype=np.float32):
    return {"w": np.full((4, 3), value, dtype)}


def test_everything_that_belongs_to_the_weights_comes_along(tmp_path):
    base = models.save(tmp_path / "base", small(1))
    write(base, BESIDE)
    write(base, LEFT)
    expert = models.save(tmp_path / "expert", small(2))
    out = tmp_path / "out"
    stream.merge_checkpoints(base, [expert], methods.average(), str(out))
    assert names(out) == sorted(
        [*BESIDE, "README.md", "manifest.json", "model.safetensors"]
    )
    assert (out / "additional_chat_templates/tools.jinja").read_text() == "{{ tools }}"
    assert "Merged model" in (out / "README.md").read_text()


def test_an_orbax_output_has_them_too(tmp_path):
    base = models.save(tmp_path / "base", small(1))
    write(base, BESIDE)
    out = tmp_path / "out"
    average = methods.average()
    stream.merge_checkpoints(base, [base], average, str(out), format="orbax")
    assert set(BESIDE) < set(names(out))


def test_a_snapshot_of_the_hugging_face_cache_brings_its_files(tmp_path):
    base = snapshot(tmp_path / "models--a--b", small(1), BESIDE)
    out = tmp_path / "out"
    stream.merge_checkpoints(base, [base], methods.average(), str(out))
    assert set(BESIDE) < set(names(out))
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert load_file(out / "model.safetensors")["w"].tolist() == small(1)["w"].tolist()


def test_without_a_base_the_first_given_expert_has_the_say(tmp_path):
    experts = {}
    for name, dtype in (("zeta", jnp.bfloat16), ("alpha", np.float32)):
        experts[name] = models.save(tmp_path / name, small(1, dtype))
        write(experts[name], {"config.json": f'{{"of": "{name}"}}'})
        write(experts[name], {"tokenizer.json": f'"{name}"'})
    for first, dtype in (("zeta", jnp.bfloat16), ("alpha", np.float32)):
        rest = [name for name in experts if name != first]
        given = {name: experts[name] for name in (first, *rest)}
        out = tmp_path / f"of {first}"
        stream.merge_checkpoints(None, given, methods.average(), str(out))
        assert load_file(out / "model.safetensors")["w"].dtype == dtype
        assert json.loads((out / "config.json").read_text()) == {"of": first}
        assert (out / "tokenizer.json").read_text() == f'"{first}"'
        arrays = {n: load_file(f"{e}/model.safetensors") for n, e in given.items()}
        assert merging.merge(None, arrays, methods.average())["w"].dtype == dtype


@pytest.mark.parametrize("last", ["zz", "zz.empty"])
def test_a_last_leaf_that_is_empty_is_merged(tmp_path, last):
    leaves = small(1) | {last: np.zeros((0, 5), np.float32)}
    base = models.save(tmp_path / "base", leaves)
    expert = models.save(tmp_path / "expert", leaves | small(3))
    out = tmp_path / "out"
    stream.merge_checkpoints(base, [expert], methods.ties(), str(out))
    assert load_file(out / "model.safetensors")[last].shape == (0, 5)
    assert stream.verify(str(out)) == []


def test_an_output_may_be_written_with_a_slash_behind(tmp_path):
    model = models.save(tmp_path / "model", small(1))
    out = f"{tmp_path}/out/"
    path = stream.merge_checkpoints(None, [model], methods.average(), out)
    assert path == tmp_path / "out"
    assert "model.safetensors" in names(path)
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


def test_files_can_be_taken_from_another_folder_that_must_be_there(tmp_path):
    model = models.save(tmp_path / "model", small(1))
    write(tmp_path / "other", {"tokenizer.json": '"other"'})
    (tmp_path / "empty").mkdir()

    def merge(chosen, name):
        output = tmp_path / name
        settings = {"auxiliary_files": str(chosen)}
        average = methods.average()
        return stream.merge_checkpoints(None, [model], average, str(output), **settings)

    with pytest.warns(UserWarning, match="no config.json"):
        found = merge(tmp_path / "other", "out")
    assert (found / "tokenizer.json").read_text() == '"other"'
    with pytest.raises(UserError, match="auxiliary_files .*nowhere: there is no such"):
        merge(tmp_path / "nowhere", "not made")
    with pytest.raises(UserError, match="empty: it holds no config and no tokenizer"):
        merge(tmp_path / "empty", "not made")
    assert not list(tmp_path.glob("not made*"))
