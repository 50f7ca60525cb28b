"""Ranges of Orbax checkpoints, and Orbax checkpoints written piece by piece."""

import json
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
import tensorstore as ts
from etils import epath
from orbax.checkpoint import v1 as ocp

from merging import UserError, checkpoints
from merging.checkpoints import (
    CorruptCheckpoint,
    orbax_source,
    orbax_tree,
    orbax_writer,
)
from merging.checkpoints.ranges import boxes
from merging.runtime import tree


def leaves():
    rng = np.random.default_rng(0)
    return {
        "layers/w": rng.standard_normal((3, 40, 50)).astype(jnp.bfloat16),
        "layers/zero": np.zeros((3, 40), np.float32),
        "embed": rng.standard_normal((70, 9)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "ids": np.arange(6, dtype=np.int32),
        "flag": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
    }


def arrays():
    return tree.unflatten({path: jnp.asarray(leaf) for path, leaf in leaves().items()})


def save_v1(path):
    ocp.save(path, arrays())


def save_v1_plain(path):
    settings = ocp.Context()
    settings.array.saving.use_compression = False
    settings.array.saving.use_ocdbt = False
    with settings:
        ocp.save(path, arrays())


def save_v0(path):
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, arrays())


def save_v0_files(path):
    v0.PyTreeCheckpointer(use_ocdbt=False).save(path, arrays())


def save_v0_step(path):
    with v0.CheckpointManager(path) as manager:
        manager.save(0, args=v0.args.StandardSave(arrays()))
        manager.wait_until_finished()
    return path / "0"


SAVERS = [save_v1, save_v1_plain, save_v0, save_v0_files, save_v0_step]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (4, 1, 3, 2)])
def test_boxes_make_up_every_range(shape):
    array = np.arange(int(np.prod(shape))).reshape(shape)
    flat = array.reshape(-1)
    for start in range(len(flat)):
        for stop in range(start, len(flat) + 1):
            found = np.full(stop - start, -1)
            parts = list(boxes(shape, start, stop))
            for box in parts:
                part = array[box.slices]
                found[box.offset : box.offset + box.size] = part.reshape(-1)
            assert np.array_equal(found, flat[start:stop])
            assert len(parts) <= max(2 * len(shape) - 1, 1)


@pytest.mark.parametrize("save", SAVERS)
def test_ranges_of_what_orbax_wrote_are_read(tmp_path, save):
    path = save(tmp_path / "ckpt") or tmp_path / "ckpt"
    source = checkpoints.open_checkpoint(path)
    assert source.format == "orbax"
    found = tree.flatten(source.abstract)
    assert set(found) == set(leaves())
    for name, leaf in leaves().items():
        assert (found[name].shape, found[name].dtype) == (leaf.shape, leaf.dtype)
        flat = np.array(leaf).reshape(-1)
        start = len(flat) // 3
        out = np.empty(len(flat) - start, leaf.dtype)
        source.read_into(name, start, out)
        assert out.tobytes() == flat[start:].tobytes()
    assert source.files() == checkpoints.open_checkpoint(path).files()


def written(path, extra=None):
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in leaves().items()
    }

    def write(name, leaf):
        flat = np.array(leaf).reshape(-1)
        step = writer.granularity(name)
        for start in reversed(range(0, len(flat), step)):
            writer.write(name, start, flat[start : start + step])

    with checkpoints.create(str(path), "orbax", abstract) as writer:
        with ThreadPoolExecutor() as threads:
            list(threads.map(write, *zip(*leaves().items(), strict=True)))
        assert not path.exists()
        writer.finish(extra or {})


@pytest.mark.parametrize("chunk", [64, 2**23])
def test_what_is_written_piece_by_piece_is_what_orbax_reads(
    tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(orbax_writer, "CHUNK_BYTES", chunk)
    path = tmp_path / "out"
    written(path, {"manifest.json": b"{}"})
    assert (path / "manifest.json").read_bytes() == b"{}"
    with v0.StandardCheckpointer() as checkpointer:
        by_v0 = checkpointer.restore(path)
    for restored in (ocp.load(path), by_v0, checkpoints.restore(path)):
        found = tree.flatten(restored)
        assert set(found) == set(leaves())
        for name, leaf in leaves().items():
            assert found[name].dtype == leaf.dtype
            assert np.asarray(found[name]).tobytes() == leaf.tobytes()


def test_chunks_are_equal_ranges_of_a_leaf():
    for shape in ((10_000, 3000), (64, 100, 7000), (5, 5_000_000), (3,), ()):
        leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
        elements = orbax_writer.granularity(leaf)
        assert 1 <= elements * 4 <= max(orbax_writer.CHUNK_BYTES, 4)


@pytest.mark.parametrize(
    ("shape", "chunk", "held"),
    [
        ((2, 32000, 4096), (1, 1000, 4096), 1000 * 4096),
        ((2, 32003, 4096), (1, 1001, 4096), 32003 * 4096),
        ((2, 4194319), (1, 2097160), 4194319),
        ((2, 3, 2, 4194319), (1, 1, 1, 2097160), 4194319),
        ((32003, 4096), (1024, 4096), 1024 * 4096),
        ((2, 131, 1024, 1024), (1, 1, 1024, 1024), 1024 * 1024),
    ],
)
def test_an_axis_without_divisors_is_cut_all_the_same_and_written_whole(
    shape, chunk, held
):
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    assert tuple(orbax_writer._chunk(leaf)) == chunk
    assert orbax_writer.granularity(leaf) == held
    assert orbax_writer.CHUNK_BYTES // 16 <= np.prod(chunk) * 2
    assert np.prod(chunk) * 2 <= orbax_writer.CHUNK_BYTES


def test_an_unfinished_folder_is_gone_on_with_only_by_the_same_layout(tmp_path):
    of = {"a": jax.ShapeDtypeStruct((4,), np.int32)}
    with checkpoints.create(str(tmp_path / "out"), "orbax", of) as first:
        first.write("a", 0, np.arange(4, dtype=np.int32))
    out = np.empty(4, np.int32)
    with checkpoints.create(str(tmp_path / "out"), "orbax", of) as again:
        again.read_into("a", 0, out)
    assert out.tolist() == [0, 1, 2, 3]
    other = {"a": jax.ShapeDtypeStruct((5,), np.int32)}
    with (
        pytest.raises(UserError, match="laid out differently"),
        checkpoints.create(str(tmp_path / "out"), "orbax", other),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("commit", "was not committed"),
        ("_METADATA", "no _METADATA"),
        ("zarr.json", "layers/w"),
    ],
)
def test_a_folder_without_one_of_its_files_is_named(tmp_path, name, words):
    save_v1_plain(tmp_path / "ckpt")
    if name == "commit":
        (tmp_path / "ckpt" / "_CHECKPOINT_METADATA").unlink()
        (tmp_path / "ckpt" / "commit_success.txt").unlink()
    elif name == "zarr.json":
        (tmp_path / "ckpt" / "state" / "layers.w" / name).unlink()
    else:
        (tmp_path / "ckpt" / "state" / name).unlink()
    with pytest.raises(CorruptCheckpoint, match=words):
        checkpoints.open_checkpoint(tmp_path / "ckpt")


def test_a_damaged_chunk_is_named_with_its_leaf(tmp_path):
    written(tmp_path / "ckpt")
    source = checkpoints.open_checkpoint(tmp_path / "ckpt")
    file = tmp_path / "ckpt" / "embed" / "0.0"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CorruptCheckpoint, match="embed"):
        source.read_into("embed", 0, np.empty(630, np.float32))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tree_metadata": {"a": 1}}'])
def test_a_list_of_leaves_that_is_none_is_damage(tmp_path, text):
    save_v1(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "state" / "_METADATA").write_text(text)
    with pytest.raises(CorruptCheckpoint):
        checkpoints.open_checkpoint(tmp_path / "ckpt")


def test_a_leaf_cannot_lead_out_of_the_folder(tmp_path):
    save_v1_plain(tmp_path / "ckpt")
    listed = tmp_path / "ckpt" / "state" / "_METADATA"
    listed.write_text(listed.read_text().replace('"key": "embed"', '"key": "../embed"'))
    shutil.copytree(tmp_path / "ckpt" / "state" / "embed", tmp_path / "ckpt" / "embed")
    with pytest.raises(CorruptCheckpoint, match="a leaf is called"):
        checkpoints.open_checkpoint(tmp_path / "ckpt")


@pytest.mark.parametrize("left", [(), (".layout.json.ab1.tmp",)])
def test_a_stop_before_anything_is_made_is_made_good(tmp_path, left):
    (tmp_path / "out.partial").mkdir()
    for name in left:
        (tmp_path / "out.partial" / name).write_text("{")
    written(tmp_path / "out")
    assert set(tree.flatten(checkpoints.restore(tmp_path / "out"))) == set(leaves())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_part_is_read_some_chunks_at_a_time_to_the_same_values(tmp_path, monkeypatch):
    array = np.arange(7 * 6 * 8, dtype=np.float32).reshape(7, 6, 8)
    grid = {"name": "regular", "configuration": {"chunk_shape": (2, 6, 8)}}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(tmp_path / "a")},
        "metadata": {
            "shape": array.shape,
            "data_type": "float32",
            "chunk_grid": grid,
        },
    }
    stored = ts.open(spec, create=True).result()
    stored.write(array).result()
    asked = []

    class Part:
        """A part of an array that notes how many rows are read of it."""

        def __init__(self, part):
            self.part, self.rank, self.shape = part, part.rank, part.shape
            self.chunk_layout, self.dtype = part.chunk_layout, part.dtype

        def __getitem__(self, index):
            return Part(self.part[index])

        def read(self):
            asked.append(self.shape[0] if self.rank else 0)
            return self.part.read()

    row = array[0].nbytes
    whole = (slice(None),) * 3
    for piece, index, rows in (
        (4 * row, whole, [4, 3]),
        (4 * row, (slice(None), slice(None), slice(2, 5)), [4, 3]),
        # From where a chunk begins, and never a part of one.
        (4 * row, (slice(1, 7), *whole[1:]), [3, 3]),
        (1, whole, [2, 2, 2, 1]),
        (10**9, whole, [7]),
    ):
        monkeypatch.setattr(orbax_source, "PIECE", piece)
        asked.clear()
        found = orbax_source._part(Part(stored), index, np.dtype("float64"))
        np.testing.assert_array_equal(found, array[index])
        assert found.dtype == np.float64 and asked == rows
    single = orbax_source._part(ts.array(np.float32(3.0)), (), np.dtype("float32"))
    assert single == 3


def described(path, **changes):
    """Save a leaf of eight numbers, change what describes it, and open it."""
    v0.PyTreeCheckpointer(use_ocdbt=False).save(path, {"a": jnp.arange(8.0)})
    array = path / "a" / ".zarray"
    array.write_text(json.dumps(json.loads(array.read_text()) | changes))
    return checkpoints.open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"chunks": [2**44]},
            r"a: its chunks of \[17592186044416\] are larger than it",
        ),
        ({"chunks": [9]}, r"a: its chunks of \[9\] are larger than its \[8\]"),
        (
            {"chunks": [2**44], "shape": [2**44]},
            "a is stored in chunks of 70,368,744,177,664 bytes, each more than this",
        ),
    ],
)
def test_a_chunk_that_no_memory_holds_is_refused_before_it_is_read(
    tmp_path, changes, words
):
    with pytest.raises(UserError, match=words):
        described(tmp_path / "ckpt", **changes)


def test_a_leaf_of_nothing_has_a_chunk_all_the_same(tmp_path):
    source = described(tmp_path / "ckpt", shape=[0], chunks=[1])
    assert source.abstract["a"].shape == (0,)


def test_folders_in_folders_without_an_end_are_refused(tmp_path):
    written(tmp_path / "ckpt")
    deep = tmp_path / "ckpt" / "x"
    (deep.joinpath(*"y" * 30)).mkdir(parents=True)
    checkpoints.open_checkpoint(tmp_path / "ckpt").files()
    (deep.joinpath(*"y" * 40)).mkdir(parents=True)
    with pytest.raises(UserError, match="or lie too deep, and are not read: 'x/y/y"):
        checkpoints.open_checkpoint(tmp_path / "ckpt")


@pytest.mark.parametrize(
    "text",
    [
        b'{"tree_metadata": [' + b"[]," * 50_000 + b"[]]}",
        b'{"tree_metadata": {"a": [' + b"[]," * 50_000 + b"[]]}}",
        b'{"more": [' + b"{}," * 50_000 + b"{}]}",
        b'{"tree_metadata": {"a": {"key_metadata": ['
        + b'{"key": "b", "key_type": 2},' * 500
        + b'{}], "value_metadata": {"value_type": ""}}}}',
    ],
)
def test_a_list_of_leaves_takes_a_few_times_its_bytes_of_memory(tmp_path, text):
    (tmp_path / "_METADATA").write_bytes(text)
    tracemalloc.start()
    with pytest.raises((ValueError, KeyError)):
        orbax_tree.read(epath.Path(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(text) + 2**20
