"""`verify`: every byte of an output's files is held against its manifest."""

import json
import os

import models
import numpy as np
import pytest

from merging import UserError
from merging.cli import main
from merging.merge import manifest, streamed, verify

SHAPES = {"a": (3, 4), "b": (700, 30), "c": (5,)}
SHARDS = {"shard_size": "30kB"}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    base = models.family(folder, count=2, dtype=np.float32, shapes=SHAPES)
    for name, text in (("tokenizer.json", "{}"), ("LICENSE", "free")):
        (folder / "base" / name).write_text(text)
    return base


def merged(family, output, **settings):
    base, experts = family
    return streamed.merge_checkpoints(base, experts, "ties()", output, **settings)


def changed(output):
    """Return what `verify` says, or why the folder can't even be opened."""
    try:
        return verify(str(output))
    except UserError as error:
        return [str(error)]


def edited(path, old, new):
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_a_bit_of_any_file_is_seen(family, tmp_path, format):
    out = merged(family, str(tmp_path / "out"), format=format, **SHARDS)
    assert verify(str(out)) == []
    paths = [p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json"]
    names = {str(path.relative_to(out)) for path in paths}
    assert {"config.json", "tokenizer.json", "LICENSE", "README.md"} <= names
    marks = {"_METADATA", "commit_success.txt", "b/.zarray", "b/0.0"}
    index = {"model.safetensors.index.json", "model-00001-of-00003.safetensors"}
    assert names > (marks if format == "orbax" else index)
    for path in paths:
        content = path.read_bytes()
        for at in {0, 9, len(content) // 3, len(content) - 1} & {*range(len(content))}:
            data = bytearray(content)
            data[at] ^= 1
            path.write_bytes(data)
            assert changed(out), (path.name, at)
        path.write_bytes(content)
    assert verify(str(out)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[3,4]", "[4,3]", "a: is float32[4, 3], and was written as float32[3, 4]"),
        (
            '"a":{"dtype":"F32"',
            '"a":{"dtype":"I32"',
            "a: is int32[3, 4], and was written as float32[3, 4]",
        ),
    ],
)
def test_a_header_that_says_otherwise_is_seen(family, tmp_path, old, new, said, capsys):
    out = merged(family, str(tmp_path / "out"))
    edited(out / "model.safetensors", old.encode(), new.encode())
    assert verify(str(out)) == ["model.safetensors: its bytes have changed", said]
    assert main.main(["verify", str(out)]) == 1
    assert said in capsys.readouterr().out


def test_other_files_that_are_changed_or_gone_or_new_are_seen(family, tmp_path):
    out = merged(family, str(tmp_path / "out"))
    (out / "config.json").write_text('{"torch_dtype": "float16"}')
    (out / "tokenizer.json").unlink()
    (out / "merges.txt").write_text("a b")
    (out / "LICENSE").unlink()
    (out / "LICENSE").symlink_to(tmp_path / "LICENSE")
    (tmp_path / "LICENSE").write_text("free")
    with pytest.warns(UserWarning, match="LICENSE is a link to outside"):
        found = verify(str(out))
    assert found == [
        "LICENSE: is a link to outside its folder",
        "config.json: its bytes have changed",
        "tokenizer.json: in the manifest, but not here",
        "merges.txt: not in the manifest",
    ]


def test_an_output_in_a_store_has_its_files_checked(family, object_store):
    for format in ("safetensors", "orbax"):
        output = f"gs://store/{format}"
        out = merged(family, output, format=format, **SHARDS)
        assert verify(output) == []
        (out / "config.json").write_bytes(b"{}")
        assert verify(output) == ["config.json: its bytes have changed"]


def test_a_manifest_that_is_no_file_or_nested_too_deep_is_one_line(tmp_path, capsys):
    models.save(tmp_path / "model", {"a": np.zeros(3, np.float32)})
    path = tmp_path / "model" / "manifest.json"
    for make, said in (
        (lambda: os.mkfifo(path), f"{path} is a FIFO, not a file."),
        (lambda: path.mkdir(), f"{path} is a folder, not a file."),
        (lambda: path.write_text("[" * 100_000), "nested too deep"),
        (lambda: os.truncate(path, manifest.LARGEST + 1), "bytes are more than any"),
    ):
        make()
        assert main.main(["verify", str(tmp_path / "model")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        if not path.is_dir() and not path.is_file():
            path.unlink()
        elif path.is_dir():
            path.rmdir()


@pytest.mark.parametrize(
    "record",
    [
        {"size": 3, "hashed": 9, "sha256": "0"},
        {"size": "3", "hashed": 1, "sha256": "0"},
        {"size": 3},
        None,
    ],
)
def test_a_record_of_a_file_that_cannot_be_is_no_manifest(family, tmp_path, record):
    path = merged(family, str(tmp_path / "out")) / "manifest.json"
    written = json.loads(path.read_text())
    for name, of in (("config.json", record), ("../x", written["files"]["LICENSE"])):
        path.write_text(json.dumps(written | {"files": {name: of}}))
        with pytest.raises(UserError, match="is no manifest of version"):
            verify(str(tmp_path / "out"))
