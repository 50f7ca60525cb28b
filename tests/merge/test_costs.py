"""What `merging methods` says of costs, beside what a streamed merge does."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from merging import methods
from merging.merge import memory, merge_checkpoints, passes
from merging.merge.costs import cost


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and experts whose one leaf is larger than a block of 4 MB."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    base = random.normal(0, 0.02, (800, 500)).astype(np.float32)
    models = {"base": base}
    for name in "abc":
        moved = random.normal(0, 0.002, base.shape).astype(np.float32)
        models[name] = base + moved
    for name, leaf in models.items():
        (folder / name).mkdir()
        save_file({"w": leaf}, folder / name / "model.safetensors")
    return folder, models


@pytest.mark.parametrize(
    "name", ["arcee_fusion", "sce", "breadcrumbs@mergekit", "dare_linear@mergekit"]
)
def test_leaves_larger_than_a_block_have_the_bits_of_memory_in_as_many_passes(
    large, tmp_path, monkeypatch, name
):
    folder, models = large
    text = f"{name}(density=0.4)" if "density" in methods.parameters(name) else name
    method = methods.get(name, **({"density": 0.4} if "(" in text else {}))
    made = []
    read = passes.Passes._read
    monkeypatch.setattr(
        passes.Passes, "_read", lambda self, *a: made.append(1) or read(self, *a)
    )
    experts = list("abc")[: method.takes]
    path = merge_checkpoints(
        str(folder / "base"),
        [str(folder / e) for e in experts],
        text,
        str(tmp_path / "out"),
        memory_budget="4MB",
    )
    expected = memory.merge(
        {"w": models["base"]}, {e: {"w": models[e]} for e in experts}, method
    )["w"]
    merged = load_file(path / "model.safetensors")["w"]
    assert merged.tobytes() == np.asarray(expected).tobytes()
    assert 1 <= len(made) < cost(method).passes + 2


def test_a_cost_is_told_in_words():
    told = {name: str(cost(methods.get(name))) for name in methods.names()}
    assert told["dare"] == "one pass"
    assert told["ties"] == "2 passes"
    assert told["slerp"] == "one pass, or 2 passes over leaves larger than a block"
    assert told["iso_c"] == "one pass; one matrix of each model in memory"
