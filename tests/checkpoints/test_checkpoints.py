"""What is saved comes back to the bit; what is damaged is never taken for whole."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from etils import epath

from merging import checkpoints
from merging.runtime import sharding, storage
from merging.runtime.errors import Unreachable, UserError


def tree_of(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embed": jnp.asarray(rng.standard_normal((256, 8)), jnp.float32),
        "layers": {
            "up": jnp.asarray(rng.standard_normal((2, 8, 8)), jnp.bfloat16),
            "count": np.array(7, np.int32),
        },
    }


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def weights_file(path):
    files = [f for f in Path(path).rglob("d/*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


def test_a_tree_comes_back_to_the_bit(tmp_path):
    checkpoints.save(tmp_path / "new" / "c", tree_of())
    assert_same_bits(checkpoints.restore(tmp_path / "new" / "c"), tree_of())


def test_like_decides_dtype_and_sharding(tmp_path):
    checkpoints.save(tmp_path / "c", tree_of())
    mesh = sharding.make_mesh({"fsdp": 8})
    split = sharding.batch_sharding(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree_of())
    like["embed"] = jax.ShapeDtypeStruct((256, 8), jnp.bfloat16, sharding=split)
    found = checkpoints.restore(tmp_path / "c", like)
    assert found["embed"].sharding == split
    expected = np.asarray(tree_of()["embed"]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(found["embed"]), expected)


def test_sharded_arrays_are_saved_and_restored_elsewhere(tmp_path):
    mesh = sharding.make_mesh({"fsdp": 8})
    embed = jax.device_put(tree_of()["embed"], sharding.batch_sharding(mesh))
    checkpoints.save(tmp_path / "c", {"embed": embed})
    found = checkpoints.restore(tmp_path / "c")["embed"]
    assert len(found.sharding.device_set) == 1
    np.testing.assert_array_equal(found, tree_of()["embed"])


def test_saving_again_replaces(tmp_path):
    for seed in (0, 1):
        checkpoints.save(tmp_path / "c", tree_of(seed))
    assert_same_bits(checkpoints.restore(tmp_path / "c"), tree_of(1))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


class Killed(BaseException):
    pass


def kill_at(patch, number):
    """Stop before the number-th thing that is done with whole checkpoints' names."""
    count = 0

    def stopping(function):
        def call(path, *args, **settings):
            nonlocal count
            if ".orbax-checkpoint-tmp" not in str(path):  # Orbax's own
                count += 1
                if count == number:
                    raise Killed
            return function(path, *args, **settings)

        return call

    kind = type(epath.Path("x"))
    for owner, name in ((kind, "rename"), (kind, "unlink"), (storage, "remove")):
        patch.setattr(owner, name, stopping(getattr(owner, name)))


def small(seed):
    return {"a": np.full(2, seed, np.float32)}


def save_killed(path, seed, number):
    """Save, and be killed; return whether there was that much to do."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, number)
        try:
            checkpoints.save(path, small(seed))
        except Killed:
            return True
    return False


def killed_between(folder):
    """Lay what a kill between the two renames leaves: 1 was to replace 0."""
    checkpoints.save(folder / "c", small(0))
    assert save_killed(folder / "c", 1, 2)
    left = {"c.merging-new", "c.merging-old"}
    assert {path.name for path in folder.iterdir()} == left
    return folder / "c"


@pytest.mark.parametrize(
    ("begin", "moments"),
    [
        # Rename the old one, and the new one; remove the old one, its mark first.
        (lambda folder: checkpoints.save(folder / "c", small(1)), 4),
        (killed_between, 7),  # the same after giving the name, and removing
    ],
)
def test_a_kill_at_any_moment_of_a_replacement_leaves_one_of_the_two(
    tmp_path, begin, moments
):
    (tmp_path / "begun").mkdir()
    begin(tmp_path / "begun")
    for number in range(1, moments + 2):
        path = tmp_path / str(number) / "c"
        shutil.copytree(tmp_path / "begun", path.parent)
        killed = save_killed(path, 2, number)
        assert killed == (number <= moments)
        before = sorted(path.parent.iterdir())
        assert checkpoints.exists(path)
        assert checkpoints.restore(path)["a"][0] == (1 if number <= moments - 3 else 2)
        assert sorted(path.parent.iterdir()) == before  # who looks changes nothing
        checkpoints.save(path, small(3))
        assert checkpoints.restore(path)["a"][0] == 3
        assert [place.name for place in path.parent.iterdir()] == ["c"]


def test_a_checkpoint_that_was_removed_is_not_found_beside_its_name(tmp_path):
    checkpoints.save(tmp_path / "c", small(0))
    assert save_killed(tmp_path / "c", 1, 1)
    shutil.rmtree(tmp_path / "c")
    assert (tmp_path / "c.merging-new").exists()
    assert not checkpoints.exists(tmp_path / "c")
    with pytest.raises(checkpoints.MissingCheckpoint):
        checkpoints.restore(tmp_path / "c")
    checkpoints.save(tmp_path / "c", small(2))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_one_that_lost_its_successor_has_its_name_back(tmp_path):
    path = killed_between(tmp_path)
    shutil.rmtree(tmp_path / "c.merging-new")
    assert checkpoints.restore(path)["a"][0] == 0
    (tmp_path / "c.merging-old" / "_CHECKPOINT_METADATA").unlink()  # half removed
    assert not checkpoints.exists(path)
    with pytest.raises(checkpoints.MissingCheckpoint, match=r"at \S+\.$"):
        checkpoints.open_checkpoint(path)


def test_who_asks_for_one_whose_replacement_was_cut_short_is_told_where_it_is(
    tmp_path,
):
    path = killed_between(tmp_path)
    for name in (path, f"{path}#a"):
        with pytest.raises(
            checkpoints.MissingCheckpoint,
            match=r"rename c\.merging-new beside it to c,",
        ):
            checkpoints.open_checkpoint(name)
    (tmp_path / "c.merging-new").rename(path)
    assert checkpoints.open_checkpoint(path).abstract["a"].shape == small(1)["a"].shape


def test_names_that_could_not_be_read_again_are_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"\n  '\.\.'\n  'layer/\.'$"):
        checkpoints.save(tmp_path / "c", {"..": 1.0, "layer": {".": 1.0, "w": 1.0}})
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoints.save(tmp_path, tree_of())
    assert (tmp_path / "thesis.txt").exists()


def test_a_missing_checkpoint_is_the_users_and_a_file_error(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoints.restore(tmp_path / "none")
    with pytest.raises(OSError):
        checkpoints.open_checkpoint(tmp_path / "none")


def flip_a_bit(path):
    file = weights_file(path)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def cut_the_weights(path):
    file = weights_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_the_weights(path):
    weights_file(path).unlink()


def remove_the_metadata(path):
    (path / "state" / "_METADATA").unlink()


def scramble_the_metadata(path):
    (path / "state" / "_METADATA").write_text('{"tree_metadata": 5')


def empty_the_folder(path):
    for file in path.iterdir():
        file.rename(path.with_name(file.name))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_the_weights,
        remove_the_weights,
        remove_the_metadata,
        scramble_the_metadata,
        empty_the_folder,
    ],
)
def test_damage_is_found(tmp_path, damage):
    path = tmp_path / "deep" / "c"
    checkpoints.save(path, tree_of())
    damage(path)
    with pytest.raises(checkpoints.CorruptCheckpoint) as error:
        checkpoints.restore(path)
    assert error.value.path == str(path) and error.value.reason
    assert isinstance(error.value, UserError)


def test_other_leaves_than_expected_are_all_named(tmp_path):
    checkpoints.save(tmp_path / "c", tree_of())
    like = {"embed": np.zeros((256, 9)), "head": np.zeros(3)}
    with pytest.raises(UserError) as error:
        checkpoints.restore(tmp_path / "c", like)
    for name in ("embed: shape", "head: missing", "layers/up", "layers/count"):
        assert name in str(error.value)


def test_a_source_knows_shapes_and_reads_single_leaves(tmp_path):
    checkpoints.save(tmp_path / "c", tree_of())
    source = checkpoints.open_checkpoint(tmp_path / "c")
    assert source.abstract["layers"]["up"] == jax.ShapeDtypeStruct(
        (2, 8, 8), jnp.bfloat16
    )
    split = sharding.batch_sharding(sharding.make_mesh({"data": 8}))
    found = source.read(["embed"], {"embed": split})
    assert list(found) == ["embed"] and found["embed"].sharding == split
    np.testing.assert_array_equal(found["embed"], tree_of()["embed"])
    with pytest.raises(UserError, match="did you mean embed"):
        source.read(["embedd"])


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device")

    monkeypatch.setattr("merging.checkpoints.orbax.ocp.save", full)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.save(tmp_path / "c", tree_of())


KILLED = """
import sys, numpy as np
from merging import checkpoints
params = {str(i): np.zeros((256, 1024), np.float32) for i in range(64)}
print("ready", flush=True)
while True:
    checkpoints.save(sys.argv[1], params)
"""


def test_killed_while_saving_leaves_a_whole_checkpoint_or_none(tmp_path):
    """The name never shows a half-written folder; a later save clears the rest."""
    path = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    time.sleep(0.3)
    process.kill()
    process.wait()
    if checkpoints.exists(path):
        assert len(checkpoints.restore(path)) == 64
    checkpoints.save(path, tree_of())
    assert_same_bits(checkpoints.restore(path), tree_of())


def test_a_large_leaf_is_cut_between_its_layers_or_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("merging.checkpoints.orbax.CHUNK", 4096)
    params = {
        "layers": jnp.zeros((3, 16, 32)),
        "embed": jnp.zeros((64, 32)),
        "norm": jnp.zeros(32),
        "step": jnp.zeros(()),
    }
    checkpoints.save(tmp_path / "c", params)
    chunks = {name: chunk_of(tmp_path / "c", name) for name in ("layers", "embed")}
    assert chunks == {"layers": (1, 16, 32), "embed": (32, 32)}
    assert_same_bits(checkpoints.restore(tmp_path / "c"), params)


def chunk_of(path, name):
    base = {"driver": "ocdbt", "base": f"file://{path}/state/", "path": f"{name}/"}
    stored = tensorstore.open({"driver": "zarr3", "kvstore": base}).result()
    return stored.chunk_layout.read_chunk.shape


def test_a_store_that_refuses_holds_no_damaged_checkpoint(object_store):
    checkpoints.save("gs://store/c", tree_of())
    opened = checkpoints.open_saved("gs://store/c")
    object_store.faults["GET"].extend(["403"] * 100)
    try:
        with pytest.raises(Unreachable, match="gs://store/c.* cannot be reached"):
            opened.restore()
        with pytest.raises(Unreachable):
            checkpoints.restore("gs://store/c")
        object_store.faults["POST"].extend(["403"] * 100)
        with pytest.raises(Unreachable):
            checkpoints.save("gs://store/other", tree_of())
    finally:
        object_store.faults.clear()
    assert_same_bits(checkpoints.restore("gs://store/c"), tree_of())
    for path in storage.place("gs://store/c/state").find():
        if "/d/" in str(path):
            path.unlink()
    with pytest.raises(checkpoints.CorruptCheckpoint):
        checkpoints.restore("gs://store/c")


def test_a_checkpoint_in_a_store_takes_the_place_of_a_half_written_one_only(
    object_store,
):
    storage.write_bytes("gs://store/half/state/d/1", b"half")
    storage.write_bytes("gs://store/notes/mine.txt", b"mine")
    checkpoints.save("gs://store/half", tree_of())
    checkpoints.save("gs://store/half", tree_of(1))
    assert_same_bits(checkpoints.restore("gs://store/half"), tree_of(1))
    assert "half/state/d/1" not in object_store.names("half")
    with pytest.raises(UserError, match="exists and is no checkpoint"):
        checkpoints.save("gs://store/notes", tree_of())


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_taken_for_zeros(
    tmp_path,
):
    checkpoints.save(tmp_path / "c", {"a": jnp.ones(8), "b": jnp.ones((64, 64))})
    opened = checkpoints.open_saved(tmp_path / "c")
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(checkpoints.CorruptCheckpoint):
        opened.restore()
    with pytest.raises(checkpoints.CorruptCheckpoint):
        opened.read(["b"])
    with pytest.raises(checkpoints.CorruptCheckpoint):
        opened.read_into("a", 0, np.empty(8, np.float32))
