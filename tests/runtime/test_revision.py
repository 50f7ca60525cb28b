import importlib.metadata
import json
import subprocess

import pytest

from merging.runtime import revision as module
from merging.runtime.revision import git_revision, look


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that holds a package, whose file `revision` believes to be."""

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t.example"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    package = tmp_path / "merging"
    (package / "runtime").mkdir(parents=True)
    for name in ("__init__.py", "runtime/revision.py"):
        (package / name).write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    monkeypatch.setattr(module, "__file__", str(package / "runtime" / "revision.py"))
    look.cache_clear()
    yield package, git("rev-parse", "HEAD")[:12]
    look.cache_clear()


def test_a_checkout_is_named_by_its_revision(checkout):
    _, revision = checkout
    assert git_revision() == revision


def test_changed_code_is_marked(checkout):
    package, revision = checkout
    (package / "new.py").write_text("")
    assert git_revision() == f"{revision}-dirty"


class Installed:
    version = "9.9"

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


@pytest.mark.parametrize("same", [True, False])
def test_an_installation_has_the_revision_of_the_same_checkout(
    checkout, same, tmp_path_factory, monkeypatch
):
    source, revision = checkout
    package = tmp_path_factory.mktemp("site-packages") / "merging"
    (package / "runtime").mkdir(parents=True)
    (package / "configs" / "merge").mkdir(parents=True)
    for name in ("__init__.py", "runtime/revision.py", "configs/merge/ties.py"):
        (package / name).write_text("" if same else "# older")
    origin = {"url": source.parent.as_uri(), "dir_info": {}}
    monkeypatch.setattr(module, "__file__", str(package / "runtime" / "revision.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed(origin))
    assert git_revision() == (revision if same else "v9.9")


@pytest.mark.parametrize(
    ("origin", "revision"),
    [
        ({"url": "x", "vcs_info": {"commit_id": "0123456789abcdef"}}, "0123456789ab"),
        (None, "v9.9"),
    ],
)
def test_other_installations_say_what_they_know(
    tmp_path, monkeypatch, origin, revision
):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime" / "revision.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed(origin))
    look.cache_clear()
    assert git_revision() == revision
    look.cache_clear()
