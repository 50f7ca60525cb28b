"""What an installation holds: every file that the package needs, and the configs."""

import importlib.metadata
import runpy
import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from merging.runtime import config as configs
from merging.runtime.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def metadata():
    """What setup.py tells setuptools."""
    setuptools = pytest.importorskip("setuptools")
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **given: told.update(given))
        runpy.run_path("setup.py")
    return told


def installed(metadata):
    """Return the files that are installed, as they lie in the repository."""
    found = set()
    for package in metadata["packages"]:
        folder = ROOT / metadata["package_dir"].get(package, package.replace(".", "/"))
        found |= {*folder.glob("*.py")}
        for pattern in metadata["package_data"].get(package, ()):
            found |= {*folder.glob(pattern)}
    return found


def test_every_file_of_the_package_and_every_config_is_installed(metadata):
    files = [*(ROOT / "merging").rglob("*"), *(ROOT / "configs").rglob("*")]
    wanted = {f for f in files if f.is_file() and "__pycache__" not in f.parts}
    assert ROOT / "configs" / "scaling_curves" / "smoke.py" in wanted
    assert wanted - installed(metadata) == set()


def test_the_licence_is_named_and_there(metadata):
    assert metadata["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Copyright 2026 The merging authors" in text
    assert metadata["license_files"] == ["LICENSE"]
    assert f"version: {metadata['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {metadata['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["jax", "orbax-checkpoint"])
def test_what_moves_has_an_upper_bound_and_is_within_it(metadata, name):
    given = [
        *metadata["install_requires"],
        *sum(metadata["extras_require"].values(), []),
    ]
    bounds = {one.specifier for one in map(Requirement, given) if one.name == name}
    assert len(bounds) == 1, (
        f"{name} has one range, the same in every extra of setup.py"
    )
    (bound,) = bounds
    assert any(one.operator in ("<", "<=", "~=") for one in bound), (
        f"{name} {bound} has no upper bound, and its next minor release may break us"
    )
    here = importlib.metadata.version(name)
    assert here in bound, (
        f"{name} {here} is installed, and setup.py takes {bound}. If you want the new "
        "one, run the whole suite with it, mend what fails, read in its changelog what "
        f"is deprecated, and raise the bound of {name} in setup.py. If not: pip "
        f"install '{name}{bound}'."
    )


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An installation without a clone, and a folder with nothing in it."""
    package = tmp_path / "site-packages" / "merging"
    shutil.copytree(ROOT / "configs", package / "configs")
    file = package / "runtime" / "config.py"
    monkeypatch.setattr(configs, "__file__", str(file))
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return package


def test_a_config_goes_by_its_name_in_an_installation_without_a_clone(elsewhere):
    smoke = configs.load("scaling_curves/smoke", {"seeds": "2"})
    assert (smoke.sizes, smoke.seeds) == (("1x",), 2)
    path, argument = configs.split_spec("train/expert:sentiment")
    assert path == elsewhere / "configs" / "train" / "expert.py"
    assert configs.load("train/expert:sentiment").what == argument == "sentiment"
    assert "merge/ties" in configs.shipped()


def test_a_path_that_exists_goes_before_a_name(elsewhere):
    Path("merge").mkdir()
    Path("merge/ties").mkdir()
    with pytest.raises(UserError, match="a config is a Python file"):
        configs.load("merge/ties")
    text = "from ml_collections import ConfigDict\nget_config = ConfigDict\n"
    Path("merge/ties.py").write_text(text)
    assert configs.split_spec("merge/ties.py")[0] == Path("merge/ties.py")


def test_an_unknown_name_gets_the_nearest_names(elsewhere):
    with pytest.raises(UserError, match="did you mean scaling_curves/smoke") as caught:
        configs.load("scaling_curves/smok")
    assert "scaling_curves/tiny" in str(caught.value)
    assert "merge/" not in str(caught.value)
    with pytest.raises(UserError, match=r"--config merge/method:slerp\.$"):
        configs.load("merge/slerp")


@pytest.mark.parametrize("name", sorted(configs.shipped()))
def test_every_shipped_config_loads_by_its_name(name):
    takes_a_category = ("train/expert", "train/jsonl")
    config = configs.load(f"{name}:sentiment" if name in takes_a_category else name)
    assert config.is_locked and len(configs.leaves(config)) > 3
