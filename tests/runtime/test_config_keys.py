"""Configs held against what a command takes, and paths against what is supported."""

from pathlib import Path
from typing import NamedTuple

import pytest
from ml_collections import ConfigDict

from merging.runtime import config_keys, storage
from merging.runtime.config import config_hash
from merging.runtime.errors import UserError

KEYS = {
    "what": str,
    "sizes": tuple,
    "rate": 0.5,
    "base": "",
    "open": ConfigDict({"a": 1}),
    "closed": dict(level=0.95, seed=0),
    "phase": None,
}


def completed(**values):
    config = ConfigDict(values)
    return config_keys.completed(
        config, KEYS, "merging it", "it/one", remote=("base",)
    ).to_dict()


def test_what_is_left_out_or_none_has_its_default():
    found = completed(what="x", sizes=[1], base=None, closed=dict(seed=3))
    assert found == {
        "what": "x",
        "sizes": (1,),
        "rate": 0.5,
        "base": "",
        "open": {"a": 1},
        "closed": {"level": 0.95, "seed": 3},
        "phase": None,
    }


def test_a_whole_config_stays_as_it_is_and_keeps_its_hash():
    values = dict(what="x", sizes=(1,), rate=1, base="b", open={}, phase=dict(n=1))
    values["closed"] = dict(level=0.9, seed=1)
    config = ConfigDict(values)
    found = config_keys.completed(config, KEYS, "merging it", "it/one")
    assert found.to_dict() == values and found.is_locked
    assert config_hash(found) == config_hash(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(what=None), "no config of merging it: it has no what; --config it/one"),
        (dict(whta="x"), "'whta': did you mean what"),
        (dict(closed=dict(sede=1)), "'closed.sede': did you mean closed.seed"),
        (dict(what=3), "what = 3 must be text"),
        (dict(sizes="1x"), "sizes = '1x' must be a tuple"),
        (dict(rate="fast"), "rate = 'fast' must be a number"),
        (dict(closed=3), "closed = 3 must be a section"),
        (dict(what="gs://b/x"), "what gs://b/x: gs:// is not supported here"),
        (dict(base="ftp://b/x"), "ftp:// is not supported here; give a path of a mou"),
        (dict(sizes=("a", "s3://b")), "sizes s3://b: s3:// is not supported"),
        (dict(open=dict(a="gs://b/x")), "open.a gs://b/x: gs:// is not supported"),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(change, said):
    with pytest.raises(UserError) as caught:
        completed(**{"what": "x", "sizes": (1,), **change})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_may_be_remote_is_read_from_object_stores():
    assert completed(what="x", sizes=(), base="gs://b/x")["base"] == "gs://b/x"


class Phase(NamedTuple):
    steps: int
    sizes: tuple = ()


def test_a_section_makes_its_record_or_names_what_is_wrong():
    assert config_keys.section(Phase, {"steps": 3, "sizes": [1]}, "p") == (3, (1,))
    with pytest.raises(UserError, match="'p.stps': did you mean p.steps"):
        config_keys.section(Phase, {"stps": 3}, "p")
    with pytest.raises(UserError, match="section p of this config has no steps"):
        config_keys.section(Phase, {}, "p")


@pytest.mark.parametrize("path", ["a/b", "/a:b", "./gs:", "a.b", "package:name", ""])
def test_a_path_of_this_machine_is_supported(path):
    assert storage.supported_path(path, "output") == path


@pytest.mark.parametrize(
    "path", ["gs://b/x", Path("gs://b/x"), "file:///x", "S3://b", "a+b.c-1://x"]
)
def test_a_path_with_a_scheme_is_refused(path):
    with pytest.raises(UserError, match="output .* is not supported here"):
        storage.supported_path(path, "output")
    assert storage.supported_path("s3://b", "base", storage.REMOTE) == "s3://b"
