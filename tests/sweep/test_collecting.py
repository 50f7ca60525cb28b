"""A sweep gathers what methods that merge by statistics want, once for each expert."""

from pathlib import Path

import numpy as np
import pytest
from tolerance import rounding

from merging import checkpoints, methods
from merging.cli.main import main
from merging.merge import merge, merge_scales
from merging.runtime import results, tree

SMALL = {
    "data.categories": "sentiment,paraphrase",
    "data.train_examples": "64",
    "bases": "pt",
    "methods": "fisher,regmean",
    "experts_merged": "2",
    "pretraining.steps": "10",
    "expert.steps": "5",
    "multitask.steps": "5",
    "keep_merges": "true",
    "runner": "inline",
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "run"
    chosen = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = ["sweep", "--config", "scaling_curves/smoke", "--workdir", str(folder)]
    assert main([*command, *chosen]) == 0
    return folder


@pytest.mark.long
def test_a_merge_by_statistics_has_rows_like_any_other(swept):
    rows = results.read(swept)
    assert {"fisher", "regmean"} <= {row.method for row in rows if row.K == 2}
    assert not [row for row in rows if row.method == "collect"]
    kinds = [path.name for path in swept.glob("steps/collect/*")]
    assert len(kinds) == 4  # two experts, two kinds


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "kind"), [("fisher", "fisher"), ("regmean", "gram")]
)
def test_it_is_the_merge_by_what_merging_collect_gathers(swept, tmp_path, method, kind):
    told, experts = {}, {}
    for category in ("sentiment", "paraphrase"):
        (folder,) = swept.glob(f"steps/expert/*{category}*")
        flags = {
            "checkpoint": folder / "checkpoint",
            "data.world_seed": 2,
            "data.train_examples": 64,
            "data.validation_examples": 16,
            "statistics": kind,
        }
        command = ["collect", "--config", f"collect/expert:{category}"]
        command += [f"--config.{key}={value}" for key, value in flags.items()]
        command += ["--workdir", str(tmp_path / category)]
        assert main(command) == 0
        told[category] = checkpoints.restore(tmp_path / category / kind)
        experts[category] = checkpoints.restore(folder / "checkpoint")
    (base,) = swept.glob("steps/pretrain/*")
    start = checkpoints.restore(base / "checkpoint")
    expected = merge(start, experts, methods.get(method), statistics=told)
    (kept,) = swept.glob(f"steps/merge/*{method}*")
    found = tree.flatten(checkpoints.restore(kept / "checkpoint"))
    for path, leaf in tree.flatten(expected).items():
        most = float(np.abs(leaf).max())
        close = rounding(64, most)
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=close)


def test_a_method_of_ones_own_with_statistics_and_a_scale_tries_them():
    values = {"w": np.arange(4, dtype=np.float32)}
    experts = {"a": {"w": values["w"] + 1}, "b": {"w": values["w"] - 3}}
    fisher = {"a": {"w": np.full(4, 0.25)}, "b": {"w": np.full(4, 0.75)}}

    def shares(values, weights, state, statistics):
        return values[0] * statistics[0] + values[1] * statistics[1]

    combiner = methods.combiner(shares, statistics=methods.FISHER)
    method = methods.compose("by_fisher", combiner=combiner, scale=1.0)
    scales = merge_scales(values, experts, method, (0.5, 1.0), statistics=fisher)
    found = [merged["w"].tolist() for merged in scales]
    assert found == [[-1.0, 0.0, 1.0, 2.0], [-2.0, -1.0, 0.0, 1.0]]
