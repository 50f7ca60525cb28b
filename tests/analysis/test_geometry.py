"""The geometry of task vectors against NumPy, and the same bits on every way to it."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stack
from together import environment, heard, start, statuses

from merging import analysis, cli
from merging.analysis import gram, rows, spectra, task_vectors, units
from merging.analysis.kept import Kept
from merging.cli.main import main
from merging.merge.inputs import open_inputs
from merging.runtime import preemption
from merging.runtime.errors import Preempted, UserError

SMALL = 25_000_000  # a budget of a few pieces


@pytest.fixture(scope="module")
def made():
    return stack.models()


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory):
    return stack.save(tmp_path_factory.mktemp("models"), made)


@pytest.fixture(scope="module")
def inputs(folders):
    named = {name: folders[name] for name in (*stack.NAMES, stack.MERGED)}
    return open_inputs(folders["base"], named)


def measured(inputs, **how):
    how = {"densities": (0.2,)} | how
    return task_vectors.measure(inputs, stack.NAMES, [stack.MERGED], **how)


@pytest.fixture(scope="module")
def found(inputs):
    return measured(inputs, budget=SMALL)


def assert_same(one, other):
    assert one.names == other.names and len(one.groups) == len(other.groups)
    for a, b in zip(one.groups, other.groups, strict=True):
        assert a[:3] == b[:3]
        for name, value in a.statistics._asdict().items():
            theirs = getattr(b.statistics, name)
            if name == "kept":
                value, theirs = (list(of.values()) for of in (value, theirs))
            np.testing.assert_array_equal(value, theirs)


def test_the_model_is_as_numpy_has_it(found, made):
    x = stack.task_vectors(made)
    s = found.model
    np.testing.assert_allclose(s.gram, x @ x.T, rtol=1e-12)
    moved = (x != 0).astype(np.int64)
    np.testing.assert_array_equal(s.moved, moved @ moved.T)
    signs = np.sign(x).astype(np.int64)
    opposed = (moved @ moved.T - signs @ signs.T) // 2
    np.testing.assert_array_equal(s.opposed, opposed)
    assert s.touched == np.count_nonzero((x[:3] != 0).any(axis=0))
    np.testing.assert_allclose(s.fourth, (x[3:] ** 4).sum(axis=1), rtol=1e-12)
    energy = (x[:3] ** 2).sum(axis=0)
    np.testing.assert_allclose(s.energy_squared, (energy**2).sum(), rtol=1e-12)


def test_kept_supports_are_those_of_the_exact_global_trim(found, made):
    x = np.abs(stack.task_vectors(made))
    rank = int(0.2 * x.shape[1]) + 1
    kept = np.stack([row >= np.sort(row)[-rank] for row in x]).astype(np.int64)
    np.testing.assert_array_equal(found.model.kept[0.2], kept @ kept.T)


def test_layers_kinds_and_units_are_parts_of_the_model(found, made):
    of = {(g.by, g.layer, g.kind): g.statistics for g in found.groups}
    for key, paths in {
        ("layer", 1, ""): ["layers.1.mlp.up.weight", "layers.1.norm.weight"],
        ("kind", None, "layers.mlp.up.weight"): [
            "layers.0.mlp.up.weight",
            "layers.1.mlp.up.weight",
        ],
        ("unit", 0, "layers.norm.weight"): ["layers.0.norm.weight"],
    }.items():
        x = stack.task_vectors(made, paths)
        if key[0] == "layer":  # and the stacked leaf's
            own = [leaves["blocks.stacked.kernel"][1] for leaves in made.values()]
            own = [part.astype(float).ravel() for part in own]
            x = np.hstack([x, np.stack([part - own[0] for part in own[1:]])])
        np.testing.assert_allclose(of[key].gram, x @ x.T, rtol=1e-12)
        assert of[key].elements == x.shape[1]
    whole = sum(g.statistics.gram for g in found.groups if g.by == "unit")
    np.testing.assert_allclose(whole, found.model.gram, rtol=1e-14)


def test_any_budget_gives_the_same_bits(found, inputs):
    assert_same(found, measured(inputs, budget=10**9))


def test_blocks_cut_no_unit_that_fits_one():
    """As chunks in storage do not: a part of one costs as much as the whole."""
    shapes = {"a": (9, 2**16), "b": (600, 1024), "c": (1100, 2**16), "d": (8,)}
    shapes = {p: jax.ShapeDtypeStruct(s, jnp.bfloat16) for p, s in shapes.items()}
    partition, every = units.cut([shapes, shapes], lambda path: True, 10**9)
    room = max(block.elements for block in partition.blocks)
    whole = [(u.leaf, u.start, u.stop) for u in every if u.size <= room]
    pieces = [piece for block in partition.blocks for piece in block.pieces]
    assert len(whole) == 3 and set(whole) <= {tuple(piece) for piece in pieces}
    covered = sum(piece.stop - piece.start for piece in pieces)
    assert covered == sum(unit.size for unit in every)


@pytest.fixture
def wide():
    """64 bits in all threads."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_a_wider_model_changes_nothing_of_the_others(wide):
    """A difference is taken in the precision of its two models, as in a merge."""
    rng = np.random.default_rng(0)
    base, one = ({"w": rng.standard_normal(4000).astype("f4")} for _ in range(2))
    models = {"a": one, "wide": {"w": one["w"].astype("f8")}}
    found = analysis.geometry(base, models, densities=(0.5,)).model
    alone = analysis.geometry(base, {"a": one}, densities=(0.5,)).model
    # Two sums of 4,000 squares part by no more; the wider model's by 1e-9.
    rounding = 2 * 4000 * 2.0**-53
    assert found.gram[0, 0] == pytest.approx(alone.gram[0, 0], rel=rounding)
    assert found.gram[1, 1] != pytest.approx(alone.gram[0, 0], rel=100 * rounding)
    assert np.diag(found.kept[0.5]).tolist() == [2001, 2001]


def test_models_in_memory_give_the_same_bits(found, made):
    experts = {name: made[name] for name in stack.NAMES}
    merged = {stack.MERGED: made[stack.MERGED]}
    assert_same(found, analysis.geometry(made["base"], experts, merged))


def test_a_stopped_pass_goes_on_to_the_same_bits(
    found, inputs, tmp_path, monkeypatch, capsys
):
    calls = []
    blocks = len(units.cut(inputs.abstracts, lambda path: True, SMALL)[0].blocks)
    assert blocks > 4

    def stop():
        calls.append(1)
        if len(calls) == blocks + 3:  # in the second pass
            raise Preempted("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(preemption, "raise_if_asked", stop)
        with pytest.raises(Preempted):
            measured(inputs, budget=SMALL, kept=Kept(tmp_path, {"of": 1}))
    assert_same(found, measured(inputs, budget=SMALL, kept=Kept(tmp_path, {"of": 1})))
    assert "blocks were finished before" in capsys.readouterr().err
    # Everything is there now: no block is read again.
    again = measured(inputs, budget=SMALL, kept=Kept(tmp_path, {"of": 1}))
    assert_same(found, again)
    # Other inputs begin anew.
    measured(inputs, budget=SMALL, kept=Kept(tmp_path, {"of": 2}))
    assert "blocks were finished" not in capsys.readouterr().err.splitlines()[-1]


def test_a_stopped_command_goes_on_under_another_budget(
    found, folders, inputs, tmp_path, monkeypatch
):
    command = ["analyze", "--config", "analyze/geometry", *flags(folders)]
    command += ["--workdir", str(tmp_path / "out"), "--config.densities="]
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise Preempted("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(preemption, "raise_if_asked", stop)
        patched.setattr(preemption, "end", lambda *_: None)
        assert main([*command, "--config.memory_budget=25MB"]) == 75
    assert (tmp_path / "out" / "unfinished" / "totals.0.npz").exists()
    assert main(command) == 0  # blocks are cut elsewhere now
    record = rows.read(tmp_path / "out", "geometry")
    np.testing.assert_array_equal(record["groups"][0]["gram"], found.model.gram)


@pytest.mark.long
def test_two_processes_give_the_rows_of_one(found, folders, tmp_path):
    command = [sys.executable, "-m", "merging", "analyze"]
    command += ["--config", "analyze/geometry", *flags(folders)]
    command += ["--config.memory_budget=25MB", "--workdir", str(tmp_path / "two")]
    started = start(command, 2, environment())
    said = heard(started)
    assert statuses(started) == [0, 0], said
    one = [*command[3:-1], str(tmp_path / "one")]
    assert main(one) == 0
    one, two = (rows.read(tmp_path / name, "geometry") for name in ("one", "two"))
    assert one["rows"] == two["rows"] and one["groups"] == two["groups"]
    np.testing.assert_array_equal(one["groups"][0]["gram"], found.model.gram)
    assert not list(tmp_path.glob("*/unfinished"))


def flags(folders):
    experts = ",".join(folders[name] for name in stack.NAMES)
    return [
        f"--config.base={folders['base']}",
        f"--config.experts={experts}",
        f"--config.merged={folders[stack.MERGED]}",
        "--config.spectral_rank=4",
    ]


def test_the_command_writes_rows_and_figures_once(folders, made, tmp_path, capsys):
    command = ["analyze", "--config", "analyze/geometry", *flags(folders)]
    command += ["--workdir", str(tmp_path / "out")]
    assert main(command) == 0
    record = rows.read(tmp_path / "out", "geometry")
    x = stack.task_vectors(made)
    values = {
        (row.quantity, row.of): row.value for row in record["rows"] if row.by == "model"
    }
    cosine = x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1])
    assert values["cosine", ("b", "a")] == pytest.approx(cosine, rel=1e-9)
    assert values["coordinates", ("m",)] == pytest.approx(
        (x[3] ** 2).sum() ** 2 / (x[3] ** 4).sum(), rel=1e-9
    )
    singular = np.linalg.svd(x[:3], compute_uv=False)
    assert values["stable_rank", stack.NAMES] == pytest.approx(
        (singular**2).sum() / singular[0] ** 2, rel=1e-9
    )
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"cosines.png", "cosines.svg", "depth.png"} <= names
    shown = capsys.readouterr().err
    assert "singular values   0%" in shown and "singular values 100%" in shown
    assert main(command) == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": ""}, "name the base"),
        ({"experts": ""}, "no experts"),
        ({"densities": "0.2,2"}, "densities must lie in 0..1"),
        ({"only": "("}, "is no pattern"),
        ({"only": "nothing"}, "no floating-point leaf"),
        ({"memory_budget": "1kB"}, "give at least"),
        ({"analysis": "geometri"}, "did you mean geometry"),
        ({"merged": "a={a}"}, "the name of an expert and of a merged model"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    change, said, folders, tmp_path, capsys
):
    values = {"base": folders["base"], "experts": folders["a"]}
    values |= {key: value.format(**folders) for key, value in change.items()}
    command = ["analyze", "--config", "analyze/geometry"]
    command += [f"--config.{key}={value}" for key, value in values.items()]
    assert main([*command, "--workdir", str(tmp_path / "out")]) == 2
    err = [e for e in capsys.readouterr().err.splitlines() if e.startswith("merging")]
    assert len(err) == 1 and said in err[0]
    assert not (tmp_path / "out").exists()


def test_nan_is_refused_by_leaf_and_model(made):
    broken = {path: np.array(leaf) for path, leaf in made["a"].items()}
    broken["embed.weight"][3, 3] = np.nan
    with pytest.raises(UserError, match="embed.weight in 'x'"):
        analysis.geometry(made["base"], {"x": broken}, densities=())


def test_ranks_of_known_spectra():
    for name in ("effective_rank", "stable_rank", "participation_ratio"):
        rank = getattr(gram, name)
        assert rank([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3)
        assert rank([5.0]) == pytest.approx(1)
        assert rank([0.0, 0.0]) == 0
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert gram.effective_rank([3.0, 1.0]) == pytest.approx(np.exp(entropy))
    assert gram.stable_rank([3.0, 1.0]) == pytest.approx(4 / 3)
    assert gram.participation_ratio([3.0, 1.0]) == pytest.approx(16 / 10)


def test_cosines_of_a_zero_vector_are_zero():
    found = gram.cosines(np.array([[4.0, 2.0, 0], [2.0, 4.0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(found, [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_spectra_are_those_of_numpy(shape):
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, *shape))
    found = [spectra.spectrum(matrix, 5) for matrix in (one, other)]
    for matrix, ours in zip((one, other), found, strict=True):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        np.testing.assert_allclose(ours.squares, s**2, rtol=1e-9)
        for basis, own in ((u[:, :5], ours.left), (vt[:5].T, ours.right)):
            np.testing.assert_allclose(own.T @ own, np.eye(5), atol=1e-9)
            assert spectra.overlap(basis, own) == pytest.approx(1, abs=1e-9)
    u, v = (np.linalg.svd(m)[0][:, :5] for m in (one, other))
    expected = np.linalg.norm(u.T @ v) ** 2 / 5
    assert spectra.overlap(found[0].left, found[1].left) == pytest.approx(expected)


def test_chance_is_that_of_each_side():
    ranks = {f"{name}_rank": [1.0, 1.0] for name in ("effective", "stable")}
    ranks["participation_ratio"] = [1.0, 1.0]
    one = {"layer": 0, "kind": "w", "shape": [40, 10], "ranks": ranks}
    one |= {"left": [0.5], "right": [0.7]}
    found = {r.quantity: r for r in spectra.rows([one], ("a", "b"), 4) if not r.layer}
    assert found["left_overlap_of_random"].value == pytest.approx(0.1)
    assert found["right_overlap_of_random"].value == pytest.approx(0.4)
    assert "overlap_of_random" not in found
    # Random subspaces of R^40, where the columns lie, and of R^10, where the rows do.
    rng = np.random.default_rng(0)
    for m, chance in ((40, 0.1), (10, 0.4)):
        bases = [np.linalg.qr(rng.standard_normal((m, 4)))[0] for _ in range(400)]
        pairs = zip(bases[::2], bases[1::2], strict=True)
        mean = np.mean([spectra.overlap(*pair) for pair in pairs])
        assert mean == pytest.approx(chance, abs=0.02)


def test_a_file_of_rows_is_plain_json(tmp_path):
    row = rows.Row("cosine", 0.5, by="model", of=("a", "b"))
    path = rows.write(tmp_path, "geometry", [row], settings={})
    assert json.loads(path.read_text())["rows"] == [row._asdict() | {"of": ["a", "b"]}]
    assert rows.read(tmp_path, "geometry")["rows"] == [row]
    with pytest.raises(UserError, match="holds the analysis"):
        rows.read(tmp_path, "law")


def test_the_command_is_listed():
    assert "analyze" in cli.COMMANDS
