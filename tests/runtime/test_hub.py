"""Repositories of the Hub by name: what is in its cache, and what is said where not."""

from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils
import numpy as np
import pytest
import safetensors.numpy

from merging import checkpoints
from merging.cli.main import main
from merging.merge import manifest, streamed
from merging.runtime import hub, storage
from merging.runtime.errors import UserError

OLD, NEW = "1" * 40, "0a" * 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache with two commits of owner/base and one of owner/tuned."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "c"))
    monkeypatch.chdir(tmp_path)
    hub._snapshot.cache_clear()
    snapshot(tmp_path / "c", "base", OLD, 1.0, ("v1",))
    snapshot(tmp_path / "c", "base", NEW, 2.0, ("main",))
    snapshot(tmp_path / "c", "tuned", NEW, 3.0, ("main",))
    yield tmp_path / "c"
    hub._snapshot.cache_clear()


def snapshot(cache: Path, name: str, commit: str, value: float, refs) -> Path:
    """Lay a commit out as huggingface_hub does: files are links to blobs."""
    repository = cache / f"models--owner--{name}"
    folder = repository / "snapshots" / commit
    for place in (folder, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    weights = {"w": np.full((2, 3), value, np.float32)}
    files = {
        "model.safetensors": safetensors.numpy.save(weights),
        "config.json": b'{"torch_dtype": "float32"}',
    }
    for file, content in files.items():
        blob = repository / "blobs" / f"{commit}-{file}"
        blob.write_bytes(content)
        (folder / file).symlink_to(f"../../blobs/{blob.name}")
    for ref in refs:
        (repository / "refs" / ref).write_text(commit)
    return folder


def read(uri):
    source = checkpoints.open_checkpoint(uri)
    out = np.zeros(6, np.float32)
    source.read_into("w", 0, out)
    return float(out[0])


def test_a_repository_is_read_from_the_cache_at_any_revision(cache):
    assert read("owner/base") == read("hf://owner/base") == 2.0
    assert read("owner/base@v1") == read(f"hf://owner/base@{OLD}") == 1.0
    assert "config.json" in checkpoints.auxiliary_files("owner/base")
    folder = hub.fetched("owner/base")
    assert hub.repository(folder) == hub.Repository("owner/base", NEW)
    assert hub.fetched("owner/base+owner/tuned").count("models--owner--") == 2


def test_a_folder_of_that_name_goes_first(cache):
    weights = {"w": np.full((2, 3), 7, np.float32)}
    Path("owner/base").mkdir(parents=True)
    safetensors.numpy.save_file(weights, "owner/base/model.safetensors")
    assert read("owner/base") == 7.0 and read("hf://owner/base") == 2.0
    # In a folder that is here, a slip of the pen asks no server.
    with pytest.raises(checkpoints.MissingCheckpoint):
        checkpoints.open_checkpoint("owner/bose")
    with pytest.raises(checkpoints.MissingCheckpoint):
        checkpoints.open_checkpoint("runs/base")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/other", "no folder owner/other here, .*HF_HUB_OFFLINE is set"),
        ("owner/base@v9", "no folder owner/base@v9 here"),
        ("hf://owner", "write hf://ORGANISATION/NAME"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(cache, name, said):
    with pytest.raises(UserError, match=said) as caught:
        checkpoints.open_checkpoint(name)
    assert "\n" not in str(caught.value)


def test_only_what_is_needed_is_asked_for(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: asked.append(how)
    )
    hub.fetched("owner/base", weights=False)
    hub.fetched("owner/base")
    names = ["config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
    names += ["tokenizer.model", "onnx/model.safetensors", "modeling.py", "LICENSE"]
    names += ["consolidated.safetensors", "model.safetensors.index.json"]
    kept = [
        list(
            huggingface_hub.utils.filter_repo_objects(
                names,
                allow_patterns=how["allow_patterns"],
                ignore_patterns=how["ignore_patterns"],
            )
        )
        for how in asked
    ]
    small = [names[0], names[3], names[6], names[8]]
    assert kept[0] == small
    assert kept[1] == [*names[:2], names[3], names[6], names[8]]


def test_a_merge_of_repositories_records_their_commits_and_is_repeated(cache, capsys):
    command = ["merge", "--config", "merge/task_arithmetic", "--config.output=merged"]
    command += [
        "--config.base=owner/base@v1",
        f"--config.experts=hf://owner/tuned@{NEW}",
    ]
    assert main([*command, "--config.method.scale=0.5"]) == 0
    assert read("merged") == 2.0
    record = manifest.read(Path("merged/manifest.json"))
    assert record["settings"]["base"] == f"hf://owner/base@{OLD}"
    assert record["settings"]["experts"] == {"tuned": f"hf://owner/tuned@{NEW}"}
    assert [one["uri"] for one in record["inputs"]] == [
        f"hf://owner/base@{OLD}",
        f"hf://owner/tuned@{NEW}",
    ]
    card = Path("merged/README.md").read_text()
    front = card.split("---")[1]
    assert '- "owner/base"\n- "owner/tuned"\n' in front
    assert "base_model_relation: merge" in front
    assert "models--" not in card
    # What was merged, and how, without the manifest.
    digests = [storage.digest(one["files"]) for one in record["inputs"]]
    assert f"| the base | `owner/base@{OLD}` | `{digests[0]}` |" in card
    assert f"| tuned | `owner/tuned@{NEW}` | `{digests[1]}` |" in card
    assert '"method": "task_arithmetic(scale=0.5, weights=None)"' in card
    assert '"dtype": null' in card and digests[0] != digests[1]
    capsys.readouterr()
    assert main([*command, "--config.method.scale=0.5"]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    streamed.repeat("merged/manifest.json", "again")
    assert read("again") == 2.0


def test_a_yaml_lies_beside_what_it_made(cache):
    text = (
        "merge_method: linear\nmodels:\n"
        "  - {model: owner/base@main, parameters: {weight: 1}}\n"
        "  - {model: owner/tuned, parameters: {weight: 3}}\n"
    )
    Path("merge.yml").write_text(text)
    command = ["merge", "--config", "merge/mergekit", "--config.output=merged"]
    assert main([*command, "--config.merge_yaml=merge.yml"]) == 0
    assert Path("merged/mergekit_config.yml").read_text() == text
    assert read("merged") == 2.75
