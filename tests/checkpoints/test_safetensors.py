"""Safetensors folders: read as a stranger's, written so that any reader takes them."""

import errno
import json
import os
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from merging import UserError, checkpoints
from merging.checkpoints import (
    CorruptCheckpoint,
    MissingCheckpoint,
    safetensors_writer,
)

INDEX = "model.safetensors.index.json"


def leaves():
    rng = np.random.default_rng(0)
    return {
        "b.weight": rng.standard_normal((30, 7)).astype(jnp.bfloat16),
        "a": rng.standard_normal((5, 4, 3)).astype(np.float32),
        "half": rng.standard_normal(9).astype(np.float16),
        "ids": np.arange(4),
        "mask": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def abstract(of):
    return {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for p, leaf in of.items()}


def raw(path, entries, data=b"", length=None):
    """Write a file byte by byte."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    length = len(text) if length is None else length
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return str(path.parent)


def entry(start, stop, shape=None, dtype="U8"):
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


TWICE = f'{{"x": {json.dumps(entry(0, 1))}, "x": {json.dumps(entry(1, 2))}}}'.encode()


def sharded(folder):
    """Write two shards and their index; return the index."""
    folder.mkdir(parents=True)
    save_file({"x": np.ones(3)}, folder / "m-1.safetensors")
    save_file({"y": np.ones(4)}, folder / "m-2.safetensors")
    index = {"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    return index


def test_ranges_of_every_dtype_are_read(tmp_path):
    save_file(leaves(), tmp_path / "model.safetensors")
    source = checkpoints.open_checkpoint(tmp_path)
    assert source.format == "safetensors"
    for path, leaf in leaves().items():
        assert source.abstract[path].shape == leaf.shape
        flat = np.array(leaf).reshape(-1)
        for start in range(min(len(flat), 3)):
            out = np.empty(len(flat) - start, leaf.dtype)
            source.read_into(path, start, out)
            assert out.tobytes() == flat[start:].tobytes()


def test_whole_leaves_go_to_their_devices(tmp_path):
    save_file(leaves(), tmp_path / "model.safetensors")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:5]), ("x",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    source = checkpoints.open_checkpoint(tmp_path / "model.safetensors")
    found = source.read(["a", "half"], {"a": rows})
    assert found["a"].sharding == rows
    assert np.array_equal(found["a"], leaves()["a"])
    assert np.array_equal(found["half"], leaves()["half"])


@pytest.mark.parametrize("axes", [("x",), (None, "x"), (None, None, "x"), ()])
def test_a_devices_part_is_read_for_it_alone(tmp_path, monkeypatch, axes):
    leaf = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    save_file({"w": leaf, "n": np.array(2, np.float32)}, tmp_path / "model.safetensors")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    source = checkpoints.open_checkpoint(tmp_path)
    # A row at a time.
    monkeypatch.setattr("merging.checkpoints.source._PART", 6 * 8 * 4)
    asked = []
    whole = source.read_into

    def read_into(path, start, out):
        asked.append(out.size)
        whole(path, start, out)

    monkeypatch.setattr(source, "read_into", read_into)
    found = source.read(["w", "n"], {"w": split})
    assert np.array_equal(found["w"], leaf) and found["n"] == 2
    assert max(asked) == 6 * 8
    # Columns lie in every row; of copies, one is read.
    assert sum(asked) == leaf.size * (2 if None in axes else 1) + 1


def test_what_is_written_piece_by_piece_is_what_the_library_reads(tmp_path):
    output = str(tmp_path / "out")

    def write(path, leaf):
        flat = np.array(leaf).reshape(-1)
        for start in reversed(range(0, len(flat), 4)):
            writer.write(path, start, flat[start : start + 4])

    with checkpoints.create(output, "safetensors", abstract(leaves())) as writer:
        with ThreadPoolExecutor() as threads:
            list(threads.map(write, *zip(*leaves().items(), strict=True)))
        assert not os.path.exists(output)
        writer.finish({"notes.json": b"{}"})
    assert os.listdir(tmp_path) == ["out"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert list(found) != [] and set(found) == set(leaves())
    for path, leaf in leaves().items():
        assert found[path].dtype == leaf.dtype
        assert found[path].tobytes() == leaf.tobytes()
    assert sorted(os.listdir(output)) == ["model.safetensors", "notes.json"]


def test_an_unfinished_folder_is_gone_on_with_only_by_the_same_layout(tmp_path):
    output, of = str(tmp_path / "out"), abstract(leaves())
    with checkpoints.create(output, "safetensors", of) as first:
        first.write("ids", 0, np.arange(4) + 5)
    out = np.empty(4, np.int64)
    with checkpoints.create(output, "safetensors", of) as again:
        again.read_into("ids", 0, out)
    assert out.tolist() == [5, 6, 7, 8]
    other = dict(list(of.items())[1:])
    with (
        pytest.raises(UserError, match="laid out differently"),
        checkpoints.create(output, "safetensors", other),
    ):
        pass


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path):
    output, of = str(tmp_path / "out"), abstract(leaves())
    with checkpoints.create(output, "safetensors", of) as first:
        first.write("ids", 0, np.arange(4) + 5)
        with (
            pytest.raises(UserError, match=f"process {os.getpid()} on .* writes .*out"),
            checkpoints.create(output, "safetensors", of),
        ):
            pass
        first.finish({})
    assert os.listdir(tmp_path) == ["out"]
    with (
        pytest.raises(UserError, match="exists"),
        checkpoints.create(output, "safetensors", of),
    ):
        pass


def test_files_beside_the_output_that_are_not_ours_are_left_alone(tmp_path):
    (tmp_path / "poetry.lock").write_text("mine")
    output = str(tmp_path / "poetry")
    with checkpoints.create(output, "safetensors", abstract(leaves())) as writer:
        writer.finish({})
    assert sorted(os.listdir(tmp_path)) == ["poetry", "poetry.lock"]
    assert (tmp_path / "poetry.lock").read_text() == "mine"


@pytest.mark.parametrize("format", checkpoints.FORMATS)
def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path, format):
    target = tmp_path / "thesis.txt"
    target.write_text("mine")
    (tmp_path / ".out.merging-lock").symlink_to(target)
    with (
        pytest.raises(UserError, match="merging-lock .*is a link.* move it away"),
        checkpoints.create(str(tmp_path / "out"), format, abstract(leaves())),
    ):
        pass
    assert target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [".out.merging-lock", "thesis.txt"]


def test_many_shards_need_few_open_files(tmp_path):
    of = {f"w{i}": jax.ShapeDtypeStruct((8,), np.float32) for i in range(150)}
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    limit = used + safetensors_writer.MOST_OPEN + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        output = str(tmp_path / "out")
        with checkpoints.create(output, "safetensors", of, shard_bytes=32) as writer:
            for number, name in enumerate(of):
                writer.write(name, 0, np.full(8, number, np.float32))
            out = np.empty(8, np.float32)
            for number in (0, 149, 75):
                writer.read_into(f"w{number}", 0, out)
                assert (out == number).all()
            writer.finish({})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 150
    last = load_file(tmp_path / "out" / "model-00150-of-00150.safetensors")
    assert (last["w149"] == 149).all()


@pytest.mark.parametrize("when", ["at the end", "when its file is put aside"])
def test_what_a_disk_did_not_take_of_one_of_many_shards_is_told(
    tmp_path, monkeypatch, when
):
    aside = when == "when its file is put aside"
    of = {f"w{i}": jax.ShapeDtypeStruct((8,), np.float32) for i in range(40)}

    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    output = str(tmp_path / "out")
    with (
        pytest.raises(checkpoints.NotStored, match="Input/output error"),
        checkpoints.create(output, "safetensors", of, shard_bytes=32) as writer,
    ):
        monkeypatch.setattr(os, "fdatasync" if aside else "fsync", fails)
        for name in of:
            writer.write(name, 0, np.zeros(8, np.float32))
        writer.finish({})
    assert os.listdir(tmp_path) == ["out.partial"]


def test_a_written_file_that_cannot_be_read_back_is_one_line(tmp_path, monkeypatch):
    of = {"a": jax.ShapeDtypeStruct((4,), np.int64)}

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    with checkpoints.create(str(tmp_path / "out"), "safetensors", of) as writer:
        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(checkpoints.CorruptCheckpoint, match="a: .*Input/output"):
            writer.read_into("a", 0, np.empty(4, np.int64))


@pytest.mark.parametrize("when", ["beside the work", "at the end"])
def test_bytes_that_the_disk_does_not_store_are_not_published(
    tmp_path, monkeypatch, when
):
    """A disk that fails, by a stand-in for the system call that says so."""

    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    beside = when == "beside the work"
    monkeypatch.setattr(safetensors_writer, "STORE_AFTER", 1 if beside else 2**40)
    of = {"a": jax.ShapeDtypeStruct((4,), np.int64)}
    with (
        pytest.raises(checkpoints.NotStored, match="Input/output error"),
        checkpoints.create(str(tmp_path / "out"), "safetensors", of) as writer,
    ):
        monkeypatch.setattr(os, "fdatasync" if beside else "fsync", fails)
        writer.write("a", 0, np.arange(4))
        writer.finish({})
    assert os.listdir(tmp_path) == ["out.partial"]


def test_a_trees_paths_are_no_names_of_tensors(tmp_path):
    checkpoints.require_tensor_names(["model.norm.weight"])
    of = {"layers/up": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(UserError, match=r"\(layers/up, …\) have no names .* convert"):
        with checkpoints.create(str(tmp_path / "out"), "safetensors", of):
            pass
    assert not list(tmp_path.iterdir())


def test_names_that_no_tensor_has_are_all_told_before_anything_is_made(tmp_path):
    names = ("__metadata__", "a\nb", "", "fine", ".__metadata__")
    of = dict.fromkeys(names, jax.ShapeDtypeStruct((2,), np.float32))
    told = r"rename them [^\n]*\n  '__metadata__'\n  'a\\nb'\n  ''$"
    with pytest.raises(UserError, match=told):
        with checkpoints.create(str(tmp_path / "out"), "safetensors", of):
            pass
    assert not list(tmp_path.iterdir())


def test_a_slash_in_a_tensors_name_is_told_with_its_file_and_a_remedy(tmp_path):
    save_file({"layers/0/w": np.ones(3), "x": np.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"m.safetensors holds .*save it again") as told:
        checkpoints.open_checkpoint(tmp_path)
    assert "'layers/0/w'" in str(told.value)


def test_auxiliary_files_are_plain_files_of_the_folder(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "secret.json"
    folder.mkdir()
    outside.write_text("{}")
    for name in ("config.json", "tokenizer.json", "modeling_x.py", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    (folder / "tokenizer_config.json").symlink_to(outside)
    with pytest.warns(UserWarning, match="tokenizer_config.json is a link to outside"):
        found = checkpoints.auxiliary_files(str(folder))
    assert set(found) == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize(
    ("entries", "data", "length", "words"),
    [
        ({"x": entry(0, 8)}, b"1234", None, "x lies at bytes 0-8 of 4: .* cut"),
        ({"x": entry(0, 4), "y": entry(2, 6)}, b"123456", None, "y overlaps another"),
        ({"x": entry(0, 2), "y": entry(4, 6)}, b"123456", None, "y leaves a hole"),
        ({"x": entry(0, 4)}, b"123456", None, "bytes, and its header speaks"),
        ({"x": entry(0, 4, [3])}, b"1234", None, "x has 4 bytes, its shape needs 3"),
        ({"x": entry(0, 4, [-4])}, b"1234", None, "entry of 'x' is malformed"),
        ({"x": entry(0, 4, [2**52, 8])}, b"1234", None, "x has 4 bytes"),
        ({"x": entry(0, 0, [0, 2**62])}, b"", None, "entry of 'x' is malformed"),
        ({"x": entry(0, 1, [1] * 99)}, b"1", None, "entry of 'x' is malformed"),
        ({"x\ud800": entry(0, 1)}, b"1", None, r"entry of 'x\\ud800' is malformed"),
        ({"x\x1b[1m": entry(0, 1)}, b"1", None, "is malformed"),
        ({"x": {"dtype": "U8"}}, b"", None, "entry of 'x' is malformed"),
        ({"x": [1]}, b"", None, "no short object at 6"),
        ([1, 2], b"", None, "header can't be read: no {"),
        (b"{nonsense", b"", None, "header can't be read: no text at 1"),
        (b"{}{}", b"", None, "something follows"),
        (b'{"__metadata__": {}, "x": {', b"", None, "no short object at 26"),
        (b'{"__metadata__": ]', b"", None, "no value at 17"),
        (TWICE, b"12", None, "'x' given twice"),
        (b"[" * 100_000, b"", None, "header can't be read"),
        (b'{"x": {"shape":' + b"[" * 4000 + b"}}", b"", None, "header can't be read"),
        ({}, b"", 2**62, "header of .* does not fit"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, entries, data, length, words):
    folder = raw(tmp_path / "bad" / "model.safetensors", entries, data, length)
    with pytest.raises(CorruptCheckpoint, match=words) as caught:
        checkpoints.open_checkpoint(folder)
    assert "model.safetensors" in str(caught.value)


def test_a_few_bytes_are_no_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"123")
    with pytest.raises(CorruptCheckpoint, match="only 3 bytes"):
        checkpoints.open_checkpoint(tmp_path)
    with pytest.raises(MissingCheckpoint, match="nowhere"):
        checkpoints.open_checkpoint(tmp_path / "nowhere")


def test_unknown_dtypes_are_all_listed(tmp_path):
    entries = {"x": entry(0, 1, dtype="F8_E4M3"), "y": entry(1, 2, dtype="F4")}
    folder = raw(tmp_path / "f8" / "model.safetensors", entries, b"12")
    with pytest.raises(UserError, match="x: F8_E4M3\n  y: F4"):
        checkpoints.open_checkpoint(folder)


def test_a_file_cut_after_it_was_opened_is_named_with_its_leaf(tmp_path):
    save_file(leaves(), tmp_path / "model.safetensors")
    source = checkpoints.open_checkpoint(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(600)
    with pytest.raises(CorruptCheckpoint, match=r"b\.weight ends \d+ bytes too early"):
        source.read_into("b.weight", 0, np.empty(210, jnp.bfloat16))


def test_shards_are_read_as_one(tmp_path):
    sharded(tmp_path / "m")
    source = checkpoints.open_checkpoint(tmp_path / "m")
    assert sorted(source.abstract) == ["x", "y"]
    assert [file.name for file in source.files()] == [
        "m-1.safetensors",
        "m-2.safetensors",
    ]


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a/b"])
def test_an_index_leads_nowhere_else(tmp_path, name):
    index = sharded(tmp_path / "m")
    save_file({"y": np.ones(4)}, tmp_path / "secret.safetensors")
    index["weight_map"]["y"] = name
    (tmp_path / "m" / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        checkpoints.open_checkpoint(tmp_path / "m")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    sharded(tmp_path / "m")
    (tmp_path / "m" / "m-2.safetensors").rename(tmp_path / "secret.safetensors")
    (tmp_path / "m" / "m-2.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UserError, match="outside its folder"):
        checkpoints.open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: (m / "m-2.safetensors").unlink(), "missing shards: m-2"),
        (lambda m: save_file({"x": np.ones(3)}, m / "m-2.safetensors"), "two shards"),
        (
            lambda m: save_file({"z": np.ones(3)}, m / "m-2.safetensors"),
            "y: not in m-2",
        ),
        (lambda m: (m / INDEX).write_text("{}"), "it is no index"),
        (lambda m: (m / INDEX).write_text('{"weight_map": {"x": 3}}'), "no index"),
        (lambda m: (m / INDEX).unlink(), "2 safetensors files, and no"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_named(tmp_path, change, words):
    sharded(tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(CorruptCheckpoint, match=words):
        checkpoints.open_checkpoint(tmp_path / "m")


def test_a_full_disk_is_noticed_before_any_work(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        big = {"x": jax.ShapeDtypeStruct((5_000_000,), np.uint8)}
        with pytest.raises(UserError, match="the disk is full"):
            with checkpoints.create(str(disk / "out"), "safetensors", big):
                pass
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_digests_tell_checkpoints_apart(tmp_path):
    for name, change in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        tensor = np.full(5_000_000, 7, np.uint8)
        tensor[2_000_000:3_000_000] += change
        save_file({"x": tensor}, tmp_path / name / "model.safetensors")
    a, b, c = (checkpoints.open_checkpoint(tmp_path / n).files() for n in "abc")
    assert a == b != c
    assert a[0].size > 5_000_000
    assert a[0].digest.startswith("sampled-sha256:")
