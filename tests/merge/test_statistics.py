"""Statistics as further inputs: found by leaf, checked, recorded, read in blocks."""

import json
import shutil
import weakref

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from statistics_of import statistics_of

from merging import UserError, merge, merge_checkpoints, methods
from merging.cli import main
from merging.merge import streamed
from merging.merge.stored import StoredLeaf
from merging.runtime import sharding, tree

LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def told(family, tmp_path_factory):
    """{expert: folder with both kinds}, and {kind: {expert: leaves}}."""
    folder, found = tmp_path_factory.mktemp("told"), {}
    experts = {n: load_file(f"{e}/model.safetensors") for n, e in family[1].items()}
    for method in (methods.fisher(), methods.regmean()):
        kind = method.statistics.name
        found[kind] = statistics_of(method, experts)
        for name, leaves in found[kind].items():
            models.save(folder / name / kind, leaves)
    return {name: str(folder / name) for name in experts}, found


def test_an_expert_that_is_called_as_the_statistics_of_one_is_refused(
    family, told, tmp_path
):
    experts = {"e0": family[1]["e0"], "fisher of e0": family[1]["e1"]}
    folders = {"e0": told[0]["e0"], "fisher of e0": told[0]["e1"]}
    with pytest.raises(UserError, match="fisher of e0: the name of an expert, and "):
        merge_checkpoints(
            None, experts, "fisher()", tmp_path / "out", statistics=folders
        )
    assert not (tmp_path / "out.partial").exists()


def test_rules_may_give_each_leaf_its_own_kind(family, told, tmp_path):
    base, experts = family
    folders, leaves = told
    rules = ("mlp => regmean()", "norm => fisher(floor=0.01)")
    path = merge_checkpoints(
        base,
        experts,
        "average()",
        tmp_path / "out",
        leaf_rules=rules,
        statistics=folders,
    )
    found = load_file(path / "model.safetensors")
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in experts.items()}
    for method, kind, part in (
        (methods.regmean(), "gram", "mlp"),
        (methods.fisher(0.01), "fisher", "norm"),
    ):
        expected = merge(None, loaded, method, statistics=leaves[kind])
        for leaf in (leaf for leaf in models.SHAPES if part in leaf):
            assert found[leaf].tobytes() == np.asarray(expected[leaf]).tobytes()
    record = json.loads((path / "manifest.json").read_text())
    assert [one["name"] for one in record["inputs"]] == [
        "the base",
        *sorted(experts),
        *(
            f"{kind} of {name}"
            for kind in ("fisher", "gram")
            for name in sorted(experts)
        ),
    ]


def test_a_repeated_merge_finds_them_where_they_are_said_to_be(
    family, told, tmp_path, capsys
):
    _, experts = family
    moved = {name: str(tmp_path / name) for name in experts}
    for name, folder in told[0].items():
        shutil.copytree(folder, moved[name])
    path = merge_checkpoints(
        None, experts, "fisher()", tmp_path / "out", statistics=moved
    )
    shutil.move(moved["e0"], tmp_path / "elsewhere")
    command = ["merge", "--manifest", f"{path}/manifest.json"]
    command += ["--output", f"{tmp_path}/again"]
    assert main.main(command) == 2
    assert "e0" in capsys.readouterr().err
    assert main.main([*command, "--inputs", f"statistics.e0={tmp_path}/elsewhere"]) == 0
    found, again = (
        load_file(tmp_path / n / "model.safetensors") for n in ("out", "again")
    )
    assert models.bits(found) == models.bits(again)


def changed(leaves, change):
    """Return a copy of {expert: leaves}, one of e1's changed or taken away."""
    copied = {name: dict(of) for name, of in leaves.items()}
    change(copied["e1"])
    return copied


def nan(leaves):
    leaves[LAYER] = leaves[LAYER].copy()
    leaves[LAYER].flat[5] = np.nan


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("fisher", lambda of: of.pop("one"), "one: none of e1"),
        ("regmean", lambda of: of.pop(LAYER), f"{LAYER}: none of e1"),
        (
            "fisher",
            lambda of: of.update(one=np.ones(2, np.float32)),
            r"one: those of e1 have shape \(2,\), not \(1,\)",
        ),
        (
            "regmean",
            lambda of: of.update({LAYER: of[LAYER][:3]}),
            r"shape \(3, 130\), not \(130, 130\)",
        ),
        ("fisher", nan, f"{LAYER}.*fisher of e1"),
        ("regmean", nan, f"{LAYER}.*gram of e1"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    family, told, tmp_path, method, change, words
):
    kind = methods.get(method).statistics.name
    leaves = changed(told[1][kind], change)
    _, experts = family
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in experts.items()}
    with pytest.raises(UserError, match=f"(?s){words}"):
        merge(None, loaded, methods.get(method), statistics=leaves)
    for name, of in leaves.items():
        models.save(tmp_path / name, of)  # the checkpoint itself will do, too
    folders = {name: str(tmp_path / name) for name in leaves}
    with pytest.raises(UserError, match=f"(?s){words}"):
        merge_checkpoints(
            None, experts, f"{method}()", tmp_path / "out", statistics=folders
        )
    assert not (tmp_path / "out").exists()


def test_blocks_leave_room_for_them(family, told):
    """A Gram matrix may be larger than its matrix; fewer are read at a time."""
    _, experts = family
    config = {"seed": 0, "format": None, "shard_size": "5GB", "dtype": None}
    config |= {"base": None, "experts": experts, "method_file": None, "leaf_rules": ()}
    config |= {"auxiliary_files": None, "schedule": None}

    def cut(method, statistics):
        prepared, _ = streamed.preparation.prepare(
            "out",
            "2MB",
            method=method,
            statistics=statistics,
            space="weights",
            **config,
        )
        return prepared.partition()

    plain, with_fisher = cut("average()", {}), cut("fisher()", told[0])
    assert len(with_fisher.blocks) > len(plain.blocks)
    for block in with_fisher.blocks:
        kind = with_fisher.kinds[block.kind]
        if kind.method is not None:
            assert kind.statistics_of(block) == block.size
            assert kind.bytes_in_memory(1) * block.size <= 2_000_000
    cuts = cut("regmean()", told[0])
    (block,) = (b for b in cuts.blocks if cuts.paths[b.pieces[0].leaf] == LAYER)
    assert cuts.kinds[block.kind].statistics_of(block) == 130 * 130


def test_a_stack_is_cut_between_matrices_each_with_its_own_gram_matrix(tmp_path):
    rng, path = np.random.default_rng(0), "layers.up.kernel"
    experts, grams, places = {}, {}, {}
    for name in "ab":
        experts[name] = {path: rng.normal(size=(6, 40, 30)).astype(np.float32)}
        inputs = rng.normal(size=(6, 80, 40)).astype(np.float32)
        grams[name] = {path: inputs.swapaxes(1, 2) @ inputs}
        models.save(tmp_path / "told" / name, grams[name])
        places[name] = models.save(tmp_path / name, experts[name])
    told = {name: str(tmp_path / "told" / name) for name in grams}
    settings = {"memory_budget": "500kB", "statistics": told}
    output = tmp_path / "out"
    output = merge_checkpoints(None, places, "regmean()", output, **settings)
    expected = merge(None, experts, methods.regmean(), statistics=grams)
    found = load_file(output / "model.safetensors")
    assert models.bits(found) == models.bits(expected)


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.parametrize("method", [methods.fisher(), methods.regmean()])
def test_statistics_in_storage_are_read_for_one_leaf_at_a_time(method, on_mesh):
    """All Gram matrices, whole on every device, would be several times a model."""
    rng, kind = np.random.default_rng(0), method.statistics
    mesh = sharding.make_mesh({"data": 8})
    rows = NamedSharding(mesh, PartitionSpec("data"))
    # Larger than what is packed together with others.
    shapes = {f"{n}.weight": (8, 2**17 + 8 * n) for n in range(3)}
    shapes = {p: (8, 16) for p in shapes} if kind.of == "inputs" else shapes

    def made(path):
        leaf = rng.normal(size=shapes[path]).astype(np.float32)
        return jax.device_put(leaf, rows) if on_mesh else jnp.array(leaf)

    base = {path: made(path) for path in shapes}
    experts = {name: {path: made(path) for path in shapes} for name in "ab"}
    told = statistics_of(method, experts)
    expected = merge(base, experts, method, statistics=told)
    seen = []

    def stored(path, array):
        def read(where):
            others = [p for p, ref in seen if ref() is not None and p != path]
            assert not others, f"{others} are still there as {path} is read"
            found = jax.device_put(array, where)
            seen.append((path, weakref.ref(found)))
            if on_mesh:
                spec = PartitionSpec() if kind.of == "inputs" else rows.spec
                assert where == NamedSharding(mesh, spec)
            return found

        return StoredLeaf(array.shape, array.dtype, read)

    leaves = {name: tree.map_named(stored, of) for name, of in told.items()}
    found = merge(base, experts, method, statistics=leaves)
    assert sorted(path for path, _ in seen) == sorted([*shapes, *shapes])
    assert models.bits(tree.flatten(found)) == models.bits(tree.flatten(expected))
    told["a"]["1.weight"][0, 0] = np.nan
    leaves = {name: tree.map_named(stored, of) for name, of in told.items()}
    with pytest.raises(UserError, match=f"1.weight.*{kind.name} of a"):
        merge(base, experts, method, statistics=leaves)
