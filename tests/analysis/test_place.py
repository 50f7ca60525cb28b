"""An analysis leaves a folder that is not its own as it is."""

import json

import pytest

from merging.analysis import place
from merging.runtime import workdir
from merging.runtime.errors import UserError


@pytest.mark.parametrize("lock", [None, '{"host": "db", "port": 5432}', "drive: east"])
def test_a_folder_of_anothers_is_refused_before_anything_is_written(tmp_path, lock):
    (tmp_path / "thesis.txt").write_text("mine")
    if lock is not None:
        (tmp_path / workdir.LOCK).write_text(lock)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds no analysis; choose another --workdir"):
        with place.held(tmp_path, {"base": "b"}):
            pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_folder_of_another_config_is_not_locked(tmp_path):
    with place.held(tmp_path, {"base": "b"}):
        place.claim(tmp_path, {"base": "b"})
    (tmp_path / workdir.LOCK).unlink()
    with pytest.raises(UserError, match="another config"):
        with place.held(tmp_path, {"base": "other"}):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [workdir.CONFIG]
    assert json.loads((tmp_path / workdir.CONFIG).read_text())["config"]["base"] == "b"
