"""Adapters merged into an adapter: factor by factor, in Core Space, in KnOTS' basis."""

import json

import lora
import numpy as np
import pytest
from safetensors.numpy import load_file

from merging import merge_checkpoints, methods
from merging.cli import main
from merging.merge import memory, streamed, verify
from merging.merge.spaces import bases
from merging.runtime.errors import UserError

MODULES = (lora.UP, lora.SQUARE, lora.EMBED)
# Of factors: float32's rounding in A and in B, of sums of 8 products that are below 1.
CLOSE = 8 * 2**-22


@pytest.fixture
def adapters(tmp_path):
    """Save two adapters of different ranks; return {name: folder} and their Δ."""
    folders, deltas = {}, {}
    for seed, (name, rank) in enumerate((("qa", 4), ("nli", 3))):
        tensors = lora.factors(seed, MODULES, rank=rank)
        folders[name] = lora.save(tmp_path / name, tensors, r=rank)
        deltas[name] = {m: _delta(tensors, m, 6 / rank) for m in MODULES}
    return folders, deltas


def _delta(tensors, module, scaling):
    """Return s·BA as [out, in], an embedding's too."""
    found = lora.delta(tensors, module, scaling)
    return found.T if module == lora.EMBED else found


def merged(folder):
    """Return an adapter's config and its Δ by module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    ranks = {m: _rank(tensors, m) for m in MODULES if _rank(tensors, m)}
    scales = {
        m: config["alpha_pattern"].get(f"^{m}", config["lora_alpha"]) / rank
        for m, rank in ranks.items()
    }
    for module, rank in ranks.items():
        assert config["rank_pattern"].get(f"^{module}", config["r"]) == rank
    return config, {m: _delta(tensors, m, s) for m, s in scales.items()}


def _rank(tensors, module):
    found = [v.shape[0] for k, v in tensors.items() if module in k and "_A" in k]
    return found[0] if found else 0


@pytest.mark.parametrize("space", ["core_space", "knots"])
def test_a_sum_in_a_shared_basis_is_the_sum_of_what_adapters_add(
    tmp_path, adapters, space
):
    folders, deltas = adapters
    out = tmp_path / "out"
    merge_checkpoints(None, folders, "task_arithmetic(scale=0.7)", out, space=space)
    config, found = merged(out)
    for module in MODULES:
        expected = 0.7 * (deltas["qa"][module] + deltas["nli"][module])
        np.testing.assert_allclose(found[module], expected, atol=CLOSE)
    assert config["r"] == 7 and config["peft_type"] == "LORA"
    assert verify(str(out)) == []
    assert not list(out.glob("coordinates*"))


def test_ties_in_core_space_merges_the_core_matrices(tmp_path, adapters):
    folders, deltas = adapters
    out = tmp_path / "out"
    method = methods.ties(density=0.4, weights=(1.0, 2.0))
    merge_checkpoints(None, folders, method, out, space="core_space")
    cores, sides = {name: {} for name in folders}, {}
    for module in MODULES:
        both = []
        for name, rank in (("qa", 4), ("nli", 3)):
            a, b = _factors(folders[name], module)
            both.append(bases.Update(a, b, 6 / rank))
        left = np.linalg.svd(np.hstack([u.b for u in both]), full_matrices=False)[0]
        right = np.linalg.svd(np.vstack([u.a for u in both]), full_matrices=False)[2].T
        sides[module] = left, right
        for name in folders:
            core = left.T @ deltas[name][module] @ right
            cores[name][module] = core.astype(np.float32)
    zeros = {m: np.zeros_like(cores["qa"][m]) for m in MODULES}
    # TIES does not see signs of singular vectors that turn in all experts alike.
    found = memory.merge(zeros, cores, method)
    for module, delta in merged(out)[1].items():
        left, right = sides[module]
        expected = left @ np.asarray(found[module], np.float64) @ right.T
        np.testing.assert_allclose(delta, expected, atol=CLOSE)


def _factors(folder, module):
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    pair = [
        next(v for k, v in tensors.items() if module in k and side in k)
        for side in ("_A", "_B")
    ]
    return [factor.astype(np.float64) for factor in pair]


def test_the_basis_of_knots_is_that_of_the_wide_matrix():
    rng = np.random.default_rng(0)
    updates = [
        bases.Update(rng.standard_normal((r, 30)), rng.standard_normal((9, r)), s)
        for r, s in ((3, 2.0), (4, 0.5), (1, 1.0))
    ]
    wide = np.hstack([u.scaling * u.b @ u.a for u in updates])
    expected, sizes, _ = np.linalg.svd(wide, full_matrices=False)
    found = bases.knots(updates)
    assert found.shape == (9, 8)
    np.testing.assert_allclose(abs(found.T @ expected[:, :8]), np.eye(8), atol=1e-10)
    largest = np.abs(found).argmax(axis=0)
    assert (found[largest, range(8)] > 0).all()
    # What adds nothing has no direction.
    twice = bases.knots([updates[0], updates[0]])
    np.testing.assert_array_equal(twice[:, 3:], 0)


def test_bases_are_found_where_lapacks_quickest_way_does_not_converge(monkeypatch):
    rng = np.random.default_rng(0)
    updates = [
        bases.Update(rng.standard_normal((3, 30)), rng.standard_normal((9, 3)), s)
        for s in (2.0, 0.5)
    ]
    expected = [bases.knots(updates), *bases.core(updates)]

    def fails(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fails)
    found = [bases.knots(updates), *bases.core(updates)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_a_module_that_one_adapter_leaves_alone_is_zero_in_it(tmp_path):
    one = lora.factors(1, (lora.UP,))
    both = lora.factors(2, (lora.UP, lora.SQUARE))
    folders = [lora.save(tmp_path / "a", one), lora.save(tmp_path / "b", both)]
    for space in ("core_space", "knots"):
        out = tmp_path / space
        merge_checkpoints(None, folders, "task_arithmetic(scale=1.0)", out, space=space)
        delta = merged(out)[1][lora.SQUARE]
        np.testing.assert_allclose(delta, _delta(both, lora.SQUARE, 1.5), atol=CLOSE)


def test_factors_are_merged_each_by_itself_in_their_own_dtype(tmp_path):
    tensors = [lora.factors(seed, MODULES, dtype=np.float16) for seed in (1, 2)]
    folders = {
        name: lora.save(tmp_path / name, of, use_rslora=True)
        for name, of in zip(("a", "b"), tensors, strict=True)
    }
    out = tmp_path / "out"
    merge_checkpoints(None, folders, "rht(density=0.5)", out, space="factors")
    found = load_file(out / "adapter_model.safetensors")
    zeros = {path: np.zeros_like(leaf) for path, leaf in tensors[0].items()}
    expected = memory.merge(zeros, tensors, methods.rht(density=0.5))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.tobytes() == np.asarray(expected[path]).tobytes()
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == 6 / 2  # α / √r before
    assert "library_name: peft" in (out / "README.md").read_text()


def test_replaced_leaves_are_merged_on_the_base_and_stored_whole(tmp_path):
    leaves = lora.base_leaves()
    base = lora.save_base(tmp_path / "base", leaves)
    norm, start = "model.norm.weight", leaves["model.norm.weight"]
    tensors = lora.factors(1)
    moved = {**tensors, lora.PREFIX + norm: start + 2}
    settings = {"modules_to_save": ["norm"], "target_modules": ["up_proj", "q_proj"]}
    one = lora.save(tmp_path / "one", moved, **settings)
    two = lora.save(tmp_path / "two", tensors, target_modules=["up_proj", "q_proj"])
    with pytest.raises(UserError, match=r"replace leaves of their base \(model.norm"):
        merge_checkpoints(
            None, [one, two], "ties()", tmp_path / "no", space="core_space"
        )
    out = tmp_path / "out"
    merge_checkpoints(
        base,
        [one, f"{base}+{two}"],
        "task_arithmetic(scale=0.5)",
        out,
        space="core_space",
    )
    found = load_file(out / "adapter_model.safetensors")[lora.PREFIX + norm]
    np.testing.assert_allclose(found, start + 1, rtol=2**-23)
    config = merged(out)[0]
    assert config["modules_to_save"] == ["norm"]
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert config["base_model_name_or_path"] == base


def test_a_stopped_merge_goes_on_and_a_finished_one_is_repeated(
    tmp_path, adapters, monkeypatch
):
    folders, _ = adapters
    out = tmp_path / "out"
    arguments = [f"{name}={path}" for name, path in folders.items()]
    command = ["merge", "--config", "merge/knots", f"--config.output={out}"]
    command += [f"--config.experts={','.join(arguments)}"]
    with monkeypatch.context() as patch:
        wrong = RuntimeError("killed")
        stop = patch.setattr

        def killed(*_):
            raise wrong

        stop("merging.merge.spaces.output.Output.write", killed)
        with pytest.raises(RuntimeError, match="killed"):
            streamed.merge_checkpoints(
                None,
                folders,
                "ties(density=1.0, scale=0.5, weights=None)",
                out,
                space="knots",
            )
        assert not out.exists()
    assert main.main(command) == 0
    again = tmp_path / "again"
    streamed.repeat(out / "manifest.json", str(again))
    weights = [(p / "adapter_model.safetensors").read_bytes() for p in (out, again)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rank": 3, "r": 3}, r"\[37, 24\] of rank 4, s = 1.5 in 'a', .*rank 3, s = 2"),
        ({"lora_alpha": 8}, "s = 1.5 in 'a', .* s = 2 in 'b'"),
        ({"modules": (lora.UP,)}, "q_proj in one of 'a' and 'b' alone"),
    ],
)
def test_factors_of_other_shapes_or_scalings_are_refused(tmp_path, change, message):
    change = dict(change)
    modules = change.pop("modules", (lora.UP, lora.SQUARE))
    tensors = lora.factors(2, modules, rank=change.pop("rank", 4))
    folders = [
        lora.save(tmp_path / "a", lora.factors(1)),
        lora.save(tmp_path / "b", tensors, **change),
    ]
    with pytest.raises(UserError, match=message):
        merge_checkpoints(None, folders, "rht()", tmp_path / "out", space="factors")
    assert not (tmp_path / "out.partial").exists()


def test_what_cannot_be_merged_as_adapters_is_named(tmp_path):
    base = lora.save_base(tmp_path / "base", lora.base_leaves())
    one = lora.save(tmp_path / "one", lora.factors(1))
    out = tmp_path / "out"
    for experts, space, message in (
        ([one, base], "knots", "space=knots merges LoRA adapters, and base is none"),
        ([one], "cores", "unknown space 'cores': did you mean .*core_space"),
    ):
        with pytest.raises(UserError, match=message):
            merge_checkpoints(None, experts, "ties()", out, space=space)
    with pytest.raises(UserError, match="format orbax: space=knots makes an adapter"):
        merge_checkpoints(None, [one], "ties()", out, space="knots", format="orbax")
    other = lora.factors(3)
    wide = f"{lora.PREFIX}{lora.UP}.lora_A.weight"
    other[wide] = np.ones((4, 25), np.float32)
    two = lora.save(tmp_path / "two", other)
    with pytest.raises(UserError, match=r"different bases: .*\[37, 25\] in 'two'"):
        merge_checkpoints(None, [one, two], "ties()", out, space="core_space")
    other[wide] = np.full((4, 24), np.nan, np.float32)
    three = lora.save(tmp_path / "three", other)
    for space, message in (
        ("core_space", f"{lora.UP} in 'three'"),
        ("factors", f"{lora.UP}.lora_A in 'three'"),
    ):
        with pytest.raises(UserError, match=rf"NaN or Inf in .*:\s+.*{message}"):
            merge_checkpoints(
                None, [one, three], "ties()", tmp_path / space, space=space
            )
