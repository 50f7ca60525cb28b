"""A method of one's own: registered in twenty lines, a citizen everywhere."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from merging import UserError, merge, merge_checkpoints, methods
from merging.cli import main
from merging.methods import registry
from merging.runtime import config as configs

MINE = """
import jax.numpy as jnp
import numpy as np

from merging import methods


def middle(values, weights, state):
    return jnp.median(jnp.stack(values), axis=0)


@methods.register("an example", "θ = θ₀ + λ median(Δ₁, …, Δ_K)")
def median(scale: float = 1.0):
    combiner = methods.combiner(middle)
    return methods.compose("median", combiner=combiner, scale=scale)


def norms(values, weights):
    return [value * value for value in values]


def share(sums):
    return 1 / np.sqrt(np.maximum(sums.max(axis=1), 1e-12))


def divided(values, weights, state):
    return sum(values) * jnp.asarray(state, values[0].dtype)


@methods.register("an example", "the sum, by the largest norm of a leaf")
def by_norm(scale: float = 1.0):
    combiner = methods.combiner(divided, terms=norms, state=share)
    return methods.compose("by_norm", combiner=combiner, scale=scale)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file; what it registers is forgotten afterwards."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    path = tmp_path / "mine.py"
    path.write_text(MINE + f"# {tmp_path}\n")
    return path


@pytest.fixture
def family(tmp_path):
    """Folders of a base and three experts, and their leaves by name."""
    rng = np.random.default_rng(0)
    shapes = {"a": (70, 33), "b": (5,), "c": (1,)}
    base = {p: np.asarray(rng.normal(size=s), np.float32) for p, s in shapes.items()}
    models = {"base": base}
    for name in ("x", "y", "z"):
        models[name] = {
            p: x + np.asarray(rng.normal(size=x.shape), np.float32)
            for p, x in base.items()
        }
    for name, leaves in models.items():
        (tmp_path / name).mkdir()
        save_file(leaves, tmp_path / name / "model.safetensors")
    return models


def test_it_goes_through_memory_and_the_command_line_and_into_the_manifest(
    mine, family, tmp_path, capsys
):
    config = "configs/merge/method.py"
    folders = {name: str(tmp_path / name) for name in family}
    base = folders.pop("base")
    command = ["merge", "--config", config, f"--config.method.file={mine}"]
    command += [f"--config.base={base}", "--config.memory_budget=200kB"]
    command += [f"--config.experts={','.join(folders.values())}"]
    for name in ("median(scale=0.5)", "by_norm()"):
        output = tmp_path / name.partition("(")[0]
        asked = [f"--config.method.name={name}", f"--config.output={output}"]
        assert main.main([*command, *asked]) == 0, capsys.readouterr().err
        own = json.loads((output / "manifest.json").read_text())["settings"]
        assert own["method_file"]["path"] == str(mine)
        assert own["method"] == name
        again = str(tmp_path / f"{output.name}_again")
        manifest = ["--manifest", str(output / "manifest.json"), "--output", again]
        manifest += ["--method_file", str(mine)]
        assert main.main(["merge", *manifest]) == 0, capsys.readouterr().err
        merged = load_file(output / "model.safetensors")
        repeated = load_file(tmp_path / again / "model.safetensors")
        method = methods.get("median", scale=0.5) if "median" in name else None
        start, *experts = family.values()
        expected = merge(start, experts, method or methods.get("by_norm"))
        for path, leaf in expected.items():
            assert merged[path].tobytes() == np.asarray(leaf).tobytes()
            assert repeated[path].tobytes() == merged[path].tobytes()
    deltas = [e["a"] - start["a"] for e in experts]
    np.testing.assert_array_equal(
        load_file(tmp_path / "median" / "model.safetensors")["a"],
        start["a"] + np.float32(0.5) * np.median(np.stack(deltas), axis=0),
    )
    assert main.main(["methods", "--file", str(mine)]) == 0
    assert "by_norm(scale=1.0)" in capsys.readouterr().out


def test_one_config_has_any_methods_parameters_as_its_values():
    changes = {"method.weights": "1,3", "method.along": "row"}
    loaded = configs.load("merge/method:nuslerp", changes)
    assert loaded.method.to_dict() == {
        "name": "nuslerp",
        "weights": (1, 3),
        "along": "row",
        "scale": None,
    }
    assert configs.load("merge/method:ties@mergekit").method.rescale is False
    with pytest.raises(UserError, match="unknown method 'slrp': did you mean slerp"):
        configs.load("merge/method:slrp")


def test_a_changed_file_does_not_repeat_a_merge(mine, family, tmp_path, capsys):
    folders = [str(tmp_path / name) for name in family]
    path = merge_checkpoints(
        folders[0],
        folders[1:],
        "median()",
        str(tmp_path / "out"),
        method_file=str(mine),
    )
    mine.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{MINE}")
    manifest = ["--manifest", str(path / "manifest.json"), "--output", f"{path}2"]
    for given in ([], ["--method_file", str(mine)]):
        assert main.main(["merge", *manifest, *given]) == 2
    said = capsys.readouterr().err
    assert f"look at it, and name it (--method_file {mine})" in said
    assert f"{mine} is not the file of methods that was asked for" in said
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out2").exists()


def test_a_manifest_runs_no_file_that_was_not_named(mine, family, tmp_path, capsys):
    """A stranger's manifest names its own program, with the right digest."""
    folders = [str(tmp_path / name) for name in family]
    path = merge_checkpoints(
        folders[0], folders[1:], "average()", str(tmp_path / "out")
    )
    program = tmp_path / "program.py"
    program.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    text = (path / "manifest.json").read_text()
    own = json.dumps({"path": str(program), "sha256": digest})
    (path / "other.json").write_text(
        text.replace('"method_file": null', f'"method_file": {own}')
    )
    manifest = ["--manifest", str(path / "other.json"), "--output", f"{path}2"]
    assert main.main(["merge", *manifest]) == 2
    assert "its method is of a Python file" in capsys.readouterr().err
    manifest = ["--manifest", str(path / "manifest.json"), "--output", f"{path}2"]
    assert main.main(["merge", *manifest, "--method_file", str(program)]) == 2
    assert "it was merged without a file of methods" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file of methods"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "registers no new method"),
        (
            "from merging import methods\n"
            "@methods.register()\ndef ties(scale=1.0): return None",
            "there is a method 'ties' already",
        ),
        (
            "from merging import methods\n"
            "@methods.register()\ndef bare(scale): return None",
            "method bare: scale needs a default",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, words):
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(f"{text}\n# {tmp_path}")
    with pytest.raises(UserError, match=words):
        methods.load_file(path)
    assert "bare" not in methods.names()


def test_a_file_that_failed_leaves_nothing_and_is_run_when_it_is_mended(mine):
    whole = mine.read_text()
    mine.write_text(f"{whole}1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        methods.load_file(mine)
    assert not {"median", "by_norm"} & set(methods.names())
    mine.write_text(whole)
    assert methods.load_file(mine)[1] == ["median", "by_norm"]


def test_an_edited_files_methods_take_the_place_of_those_before(mine):
    whole = mine.read_text()
    methods.load_file(mine)
    edited = whole.replace("median(scale: float = 1.0)", "median(scale: float = 2.0)")
    mine.write_text(edited.replace("def by_norm", "def by_size"))
    assert methods.load_file(mine)[1] == ["median", "by_size"]
    assert methods.get("median").scale == 2 and "by_norm" not in methods.names()
    mine.write_text(f"{whole}1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        methods.load_file(mine)
    assert methods.get("median").scale == 2 and "by_size" in methods.names()
    mine.write_text(whole)  # the first one again
    assert methods.load_file(mine)[1] == ["median", "by_norm"]
    assert methods.get("median").scale == 1 and "by_size" not in methods.names()


def test_of_several_methods_one_has_to_be_named(mine, family, tmp_path):
    folders = [str(tmp_path / name) for name in family]
    with pytest.raises(UserError, match="registers median, by_norm: name one"):
        merge_checkpoints(
            folders[0], folders[1:], "", str(tmp_path / "o"), method_file=str(mine)
        )


def test_both_numbers_per_expert_of_a_transform_are_its_own():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Both:
        one: tuple
        other: tuple
        granularity = "element"

        def reduction(self):
            return None

        def state(self, layout, expert, seed, found):
            return ()

        def apply(self, delta, state, index):
            return delta * self.one + self.other

    import jax

    jax.tree_util.register_dataclass(Both, ["one", "other"], [])
    both = Both((1.0, 2.0), (10.0, 20.0))
    total = methods.combiners.sum()
    method = methods.compose("both", both, combiner=total, scale=1.0)
    zero, one = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    assert merge(zero, [one, one], method)["w"].tolist() == [33.0, 33.0]
