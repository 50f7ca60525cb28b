"""A folder with models and configs, some not as they should be, and main in it."""

from pathlib import Path

import lora
import numpy as np
import pytest
from safetensors.numpy import save_file

from merging.cli import main as command_line

# Adapters: one that fits the base, and some that are not merged.
SHAPES = {"a.weight": (4, 4), "c.weight": (4, 4)}
ADAPTERS = (
    ("qa", "a", {}),
    ("other", "c", {}),
    ("dora", "a", {"use_dora": True}),
    ("no_rank", "a", {"r": 0}),
    ("strong", "a", {"lora_alpha": 12}),
)
OWN_MERGE = """
from ml_collections import ConfigDict

def get_config():
    method = ConfigDict({"name": "average"})
    return ConfigDict({"experts": ("e1", "e2"), "output": "own", "method": method})
"""
# A shipped config with one change: `{config}` is it.
CHANGED = """
import sys
sys.path.insert(0, {folder!r})
import {module}
sys.path.pop(0)
del sys.modules[{module!r}]  # two folders have a config of that name

def get_config():
    config = {module}.get_config()
    {change}
    return config
"""
CHANGES = {
    "no_method.py": ("merge/ties", "del config.method"),
    "no_rules.py": ("merge/ties", "config.rulez = ()"),
    "convert_more.py": ("convert/to_orbax", "config.chunks = 3"),
    "convert_less.py": ("convert/to_orbax", "del config.input"),
    "steps.py": ("train/pretrain", "config.hyperparameters.stepz = 3"),
    "no_steps.py": ("train/pretrain", "del config.hyperparameters"),
    "split.py": ("evaluate/miniworld", 'config.splitt = "test"'),
    "label.py": ("evaluate/miniworld", 'config.labels.nmae = "x"'),
    "no_suite.py": ("evaluate/miniworld", "del config.suite"),
    "grid.py": ("scaling_curves/smoke", "config.sedes = 2"),
    "phase.py": ("scaling_curves/smoke", "config.expert.stps = 2"),
    "no_data.py": ("scaling_curves/smoke", "del config.bases"),
    "resources.py": ("scaling_curves/smoke", 'config.resources = ("GPU",)'),
    "plan.py": ("plan/palm_64b", "config.storage.rd = 2.0"),
    "plan_less.py": ("plan/palm_64b", "del config.vocab_size"),
}
# The merge of one's own with a line that is replaced.
OTHERS = {
    "text_experts.py": ('("e1", "e2")', '"e1"'),
    "text_seed.py": ('"output": "own"', '"output": "own", "seed": "one"'),
    "word_method.py": ('"method": method', '"method": "ties"'),
    "no_output.py": ('"output": "own", ', ""),
}


def write_model(folder: Path, **leaves: tuple[int, ...]) -> None:
    folder.mkdir()
    arrays = {name: np.ones(shape, np.float32) for name, shape in leaves.items()}
    save_file(arrays, folder / "model.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with models, and with configs that are not as they should be."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("base", "e1", "e2"):
        write_model(folder / name, **{"a.weight": (4, 4), "b.weight": (4,)})
    write_model(folder / "lora", **{f"l.{i}.lora_A": (2, 2) for i in range(100)})
    for name, module, config in ADAPTERS:
        lora.save(folder / name, lora.factors(1, (module,), shapes=SHAPES), **config)
    (folder / "file").write_text("no model")
    (folder / "mine.py").write_text(OWN_MERGE)
    for name, change in OTHERS.items():
        (folder / name).write_text(OWN_MERGE.replace(*change))
    empty = "from ml_collections import ConfigDict\nget_config = ConfigDict"
    (folder / "empty.py").write_text(f"{empty}\n")
    configs = Path(__file__).parents[2] / "configs"
    for name, (config, change) in CHANGES.items():
        where, module = config.split("/")
        text = CHANGED.format(folder=str(configs / where), module=module, change=change)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def run_here(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name in ("COORDINATOR", "PROCESSES", "PROCESS", "LOGS"):
        monkeypatch.delenv(f"MERGING_{name}", raising=False)

    def run(*argv):
        return command_line.main([*argv]), *capsys.readouterr()

    return run


@pytest.fixture
def contents():
    """Return a function that tells every file of a folder and when it was changed."""

    def contents(folder: Path) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}

    return contents
