"""What a path means: other programs' checkpoints, steps, subtrees, and what is none."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import stock_orbax as stock
from flax import serialization

from merging import UserError, checkpoints
from merging.checkpoints import CorruptCheckpoint
from merging.runtime import tree


def read(path):
    """Return {path: values} of a checkpoint, as a merge reads it."""
    source = checkpoints.open_checkpoint(path)
    found = {}
    for name, leaf in tree.flatten(source.abstract).items():
        flat = np.empty(int(np.prod(leaf.shape)), leaf.dtype)
        source.read_into(name, 0, flat)
        found[name] = flat.reshape(leaf.shape)
    return found


def assert_weights(found, of):
    layers = {f"layers/{i}/w": layer["w"] for i, layer in enumerate(of["layers"])}
    expected = {"embed": of["embed"], **layers}
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)


STATES = [
    stock.standard,
    stock.pytree,
    stock.plain_files,
    stock.by_v1,
    stock.by_v1_trainer,
    stock.one_run,
    stock.run_of_items,
    stock.v1_items,
]


@pytest.mark.parametrize("save", STATES)
def test_of_a_training_the_params_are_taken_and_the_rest_is_named(tmp_path, save):
    path = save(tmp_path / "saved", stock.state())
    with pytest.warns(UserWarning, match=r"params are taken, and .*opt_state, step"):
        found = read(path)
    assert_weights(found, stock.params())


@pytest.mark.parametrize("save", [stock.standard, stock.one_run, stock.run_of_items])
def test_what_was_taken_has_a_name_under_which_it_is_taken_again(tmp_path, save):
    path = save(tmp_path / "saved", stock.state())
    with pytest.warns(UserWarning, match="params are taken"):
        name = checkpoints.open_checkpoint(path).uri
    assert name.endswith("#params")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_weights(read(name), stock.params())
        assert checkpoints.open_checkpoint(name).uri == name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("save", [*STATES[:6], lambda p, t: stock.one_run(p, t) / "7"])
def test_weights_alone_are_taken_without_a_word(tmp_path, save):
    assert_weights(read(save(tmp_path / "saved", stock.params())), stock.params())
    wrapped = {"params": stock.params(), "batch_stats": {"mean": np.zeros(2)}}
    found = read(save(tmp_path / "wrapped", wrapped))
    assert {"params/embed", "batch_stats/mean"} < found.keys()


def test_a_run_is_its_latest_finished_step_and_that_is_said(tmp_path):
    run = stock.run(tmp_path / "run", {n: stock.params(n) for n in (9, 100, 200)})
    shutil.copytree(run / "200", run / "300")
    for mark in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (run / "300" / mark).unlink()
        (run / "300" / "default" / mark).unlink(missing_ok=True)
    (run / "400.orbax-checkpoint-tmp-1").mkdir()
    with pytest.warns(UserWarning, match=r"steps 9, 100, 200: the latest, 200, is"):
        source = checkpoints.open_checkpoint(run)
    assert source.uri == str(run / "200")
    with pytest.warns(UserWarning):
        assert_weights(read(f"{run}/"), stock.params(200))
    assert_weights(read(run / "100"), stock.params(100))
    assert_weights(read(run / "9" / "default"), stock.params(9))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("save", [stock.standard, stock.one_run, stock.run_of_items])
def test_a_subtree_is_named_behind_the_path(tmp_path, save):
    path = save(tmp_path / "saved", stock.state())
    assert_weights(read(f"{path}#params"), stock.params())
    moments = read(f"{path}#opt_state/0/mu")
    np.testing.assert_array_equal(moments["embed"], stock.params()["embed"] * 100)
    assert read(f"{path}#params/layers/4/").keys() == {"w"}
    with pytest.raises(UserError, match="unknown subtree .*did you mean"):
        read(f"{path}#params/layer")
    with pytest.raises(UserError, match="params/embed is a leaf|embed is a leaf"):
        read(f"{path}#params/embed")
    with pytest.raises(UserError, match="no checkpoint at .*none#params"):
        read(f"{tmp_path}/none#params")


@pytest.mark.filterwarnings("error")
def test_the_one_tree_of_a_step_may_be_named(tmp_path):
    run = stock.one_run(tmp_path / "run", stock.state())
    assert_weights(read(f"{run}#default/params"), stock.params())
    assert_weights(read(f"{run}/7#default/params"), stock.params())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a#b", "#", "a%20b", "100%", "what?", "a?b#c", "ä "])
@pytest.mark.parametrize("save", [stock.standard, stock.plain_files])
def test_no_character_of_a_folders_name_means_anything(tmp_path, name, save):
    saved = save(tmp_path / "saved", stock.state())
    path = saved.rename(tmp_path / name)
    assert_weights(read(f"{path}#params"), stock.params())
    step = saved.with_name("run") / name
    step.parent.mkdir()
    shutil.copytree(path, step)
    assert_weights(read(f"{step}#params"), stock.params())


def test_a_safetensors_folder_has_no_subtrees(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="in no tree: leave out #params"):
        checkpoints.open_checkpoint(f"{tmp_path}#params")


def test_an_optimizers_state_is_never_taken_for_weights(tmp_path):
    model = {"model": stock.params(), "optimizer": {"mu": stock.params()}}
    path = stock.standard(tmp_path / "saved", model)
    with pytest.raises(UserError, match=r"optimizer.* no params beside it.*#NAME"):
        checkpoints.open_checkpoint(path)
    assert_weights(read(f"{path}#model"), stock.params())
    several = {"student": stock.state(), "teacher": stock.state(1)}
    path = stock.standard(tmp_path / "several", several)
    with pytest.raises(UserError, match="several trainings: .*#student/params, "):
        checkpoints.open_checkpoint(path)


def test_of_several_trees_one_must_be_named(tmp_path):
    trees = {"actor": stock.params(), "critic": stock.params(1)}
    path = stock.v1_items(tmp_path / "saved", trees)
    with pytest.raises(UserError, match=r"several trees: .*#actor \(actor, critic\)"):
        checkpoints.open_checkpoint(path)
    with pytest.raises(UserError, match="unknown tree .*did you mean critic"):
        checkpoints.open_checkpoint(f"{path}#critics")
    assert_weights(read(f"{path}#critic"), stock.params(1))


def workdir(path):
    stock.by_v1(path / "checkpoint", stock.params())
    (path / "config.json").write_text("{}")


def prefixed(path):
    stock.run(path, {n: stock.params() for n in (3, 4)}, step_prefix="ckpt")


def msgpack(path):
    path.mkdir()
    (path / "checkpoint_5").write_bytes(serialization.to_bytes({"w": np.ones(2)}))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (workdir, r"holds checkpoint, config\.json\..*\n.*saved/checkpoint is one"),
        (prefixed, r"Inside are .*saved/ckpt_3, .*saved/ckpt_4: name one"),
        (msgpack, r"holds checkpoint_5\..*\n.*msgpack_restore"),
        (os.makedirs, r"it is empty\. Taken are a folder of safetensors, one of Orbax"),
        (lambda path: path.write_text("{}"), "it is a file"),
    ],
)
def test_what_is_no_checkpoint_is_answered_with_what_it_is(tmp_path, make, words):
    make(tmp_path / "saved")
    with pytest.raises(UserError, match=words) as caught:
        checkpoints.open_checkpoint(tmp_path / "saved")
    assert not isinstance(caught.value, CorruptCheckpoint)
    assert "delete" not in str(caught.value).lower()


def test_damage_is_never_answered_with_deleting():
    assert "elete" not in str(CorruptCheckpoint("here", "gone"))


def test_a_key_in_disguise_does_not_lead_out_of_the_folder(tmp_path):
    path = stock.plain_files(tmp_path / "saved", {"aa": np.ones(3, np.float32)})
    shutil.copytree(path / "aa", tmp_path / "secret")
    shutil.rmtree(path / "aa")
    listed = path / "_METADATA"
    whole = listed.read_text()
    for key in ("%2e%2e%2fsecret", "%2E%2E/secret", "..%2fsecret", "../secret", ".."):
        listed.write_text(whole.replace('"key": "aa"', json.dumps({"key": key})[1:-1]))
        with pytest.raises(CorruptCheckpoint):
            checkpoints.open_checkpoint(path)


def link_to_an_array(path, outside):
    shutil.move(path / "embed", outside)
    (path / "embed").symlink_to(outside)


def link_to_a_chunk(path, outside):
    shutil.move(path / "embed" / "0.0", outside)
    (path / "embed" / "0.0").symlink_to(outside)


def fifo(path, outside):
    (path / "embed" / "0.0").unlink()
    os.mkfifo(path / "embed" / "0.0")


@pytest.mark.parametrize("change", [link_to_an_array, link_to_a_chunk, fifo])
def test_links_out_of_the_folder_and_pipes_are_not_read(tmp_path, change):
    path = stock.plain_files(tmp_path / "saved", {"embed": np.ones((2, 2))})
    change(path, tmp_path / "outside")
    with pytest.raises(UserError, match="lead out of the folder.*'embed"):
        checkpoints.open_checkpoint(path)


def test_links_of_the_hugging_face_cache_are_followed(tmp_path):
    path = stock.standard(tmp_path / "snapshots" / "abc" / "sub", stock.params())
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(p for p in list(path.rglob("*")) if p.is_file()):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    assert_weights(read(path), stock.params())


def test_an_owner_whom_the_system_does_not_know_is_no_damage(tmp_path, monkeypatch):
    path = stock.standard(tmp_path / "saved", stock.params())

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    source = checkpoints.open_checkpoint(path)
    assert sum(file.size for file in source.files()) > 0


def test_config_and_tokenizer_lie_in_the_step_or_its_run(tmp_path):
    run = stock.run(tmp_path / "run", {n: stock.params() for n in (1, 2)})
    (run / "config.json").write_text("{}")
    (run / "2" / "tokenizer.json").write_text("{}")
    for path in (run, run / "2", f"{run}/2#embed", f"{run}#embed"):
        found = checkpoints.auxiliary_files(path)
        assert found.keys() == {"config.json", "tokenizer.json"}
    assert checkpoints.auxiliary_files(run / "1").keys() == {"config.json"}


def test_an_output_does_not_go_into_the_run_of_an_input(tmp_path):
    run = stock.one_run(tmp_path / "run", stock.params())
    with pytest.raises(UserError, match="lies in the input"):
        checkpoints.require_free_output(f"{run}/merged", [f"{run}#params"])
