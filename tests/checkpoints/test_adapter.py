"""A LoRA adapter on its base is a checkpoint like any other."""

import json
import math

import jax.numpy as jnp
import lora
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import merging
from merging import checkpoints, methods
from merging.checkpoints import low_rank
from merging.runtime.errors import UserError

EVERY = (lora.UP, lora.SQUARE, lora.EMBED)
# θ₀ + s·BA with factors rounded to 24 bits and one rounding at the end; r = 4.
CLOSE = {"rtol": 2**-23, "atol": 4 * 4 * 2**-24}


@pytest.fixture
def base(tmp_path):
    return lora.save_base(tmp_path / "base", lora.base_leaves())


def read(source):
    found = {}
    for path, leaf in source.abstract.items():
        flat = np.empty(math.prod(leaf.shape), leaf.dtype)
        source.read_into(path, 0, flat)
        found[path] = flat.reshape(leaf.shape)
    return found


def on(base, adapter):
    return checkpoints.open_checkpoint(adapter, checkpoints.open_checkpoint(base))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_an_adapter_on_its_base_is_the_sum_and_float32_where_it_adds(tmp_path, dtype):
    leaves = lora.base_leaves(dtype=dtype)
    base = lora.save_base(tmp_path / "base", leaves)
    tensors = lora.factors(1, EVERY, dtype=dtype)
    source = on(base, lora.save(tmp_path / "a", tensors))
    found = read(source)
    for module in EVERY:
        path = f"{module}.weight"
        expected = leaves[path].astype(np.float64) + lora.delta(tensors, module, 1.5)
        assert found[path].dtype == np.float32
        np.testing.assert_allclose(found[path], expected, **CLOSE)
    norm = "model.norm.weight"
    assert found[norm].dtype == dtype and (found[norm] == leaves[norm]).all()


def test_any_cut_gives_the_bits_of_the_whole_leaf(tmp_path, base, monkeypatch):
    adapter = lora.save(tmp_path / "a", lora.factors(1, EVERY))
    whole = read(on(base, adapter))
    monkeypatch.setattr("merging.checkpoints.adapter_source._PART", 60)
    source = on(base, adapter)
    for path, leaf in whole.items():
        flat = leaf.reshape(-1)
        for start, stop in ((0, 1), (5, 29), (23, 49), (0, len(flat)), (7, 7)):
            part = np.empty(min(stop, len(flat)) - min(start, len(flat)), leaf.dtype)
            source.read_into(path, start, part)
            np.testing.assert_array_equal(part, flat[start:stop])
    arrays = source.read(whole, {})
    for path, leaf in whole.items():
        np.testing.assert_array_equal(arrays[path], leaf)


def test_a_rounded_product_has_no_order_of_summation():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((40, 100)), rng.standard_normal((100, 30))
    left[:, ::7] *= 1e-5
    one, other = low_rank.rounded(left, 1), low_rank.rounded(right, 0)
    order = rng.permutation(100)
    found = low_rank.product(one, other)
    assert (low_rank.product(one[:, order], other[order]) == found).all()
    by_hand = [[math.fsum(row * column) for column in other.T.astype(float)]
               for row in one.astype(float)]  # fmt: skip
    np.testing.assert_array_equal(found, by_hand)
    # 23 bits below the largest of 100 terms each.
    bound = 100 * 2**-22 * np.abs(left).max(1)[:, None] * np.abs(right).max(0)
    assert (np.abs(found - left @ right) <= bound).all()


def test_rank_and_alpha_patterns_and_rslora_scale_as_peft_has_it(tmp_path, base):
    tensors = lora.factors(1, rank={lora.UP: 2, lora.SQUARE: 9})
    patterns = {
        "rank_pattern": {"nothing": 7, "q_proj": 9, "layers.0.mlp.up_proj": 2},
        "alpha_pattern": {r"^model\.layers\.(0|2)\.mlp.*": 5, "up_proj": 1},
    }
    for rslora, root in ((False, float), (True, math.sqrt)):
        name = f"a{rslora}"
        adapter = lora.save(tmp_path / name, tensors, use_rslora=rslora, **patterns)
        found, leaves = read(on(base, adapter)), lora.base_leaves()
        for module, scaling in (
            (lora.UP, 5 / root(2)),
            (lora.SQUARE, 6 / root(9)),
        ):
            path = f"{module}.weight"
            expected = leaves[path] + lora.delta(tensors, module, scaling)
            np.testing.assert_allclose(found[path], expected, **CLOSE)


def test_weights_stored_the_other_way_are_added_to_transposed(tmp_path):
    leaves = {"h.0.c_attn.weight": (24, 72), "h.0.c_proj.weight": (24, 24)}
    leaves = {k: np.zeros(s, np.float32) for k, s in leaves.items()}
    base = lora.save_base(tmp_path / "base", leaves)
    shapes = {"h.0.c_attn.weight": (72, 24), "h.0.c_proj.weight": (24, 24)}
    modules = ("h.0.c_attn", "h.0.c_proj")
    tensors = lora.factors(1, modules, shapes=shapes)
    # As PEFT saves it of a GPT-2, whose own files leave out the first part.
    named = {k.replace("h.0", "transformer.h.0"): v for k, v in tensors.items()}
    found = read(on(base, lora.save(tmp_path / "a", named, fan_in_fan_out=True)))
    for module in modules:
        expected = lora.delta(tensors, module, 1.5).T
        np.testing.assert_allclose(found[f"{module}.weight"], expected, **CLOSE)


def test_saved_modules_replace_leaves_and_base_layers_are_added_to(tmp_path, base):
    tensors = lora.factors(1, (lora.EMBED,))
    tensors = {k.replace("A", "A.qa").replace("B", "B.qa"): v
               for k, v in tensors.items()}  # fmt: skip
    norm, embed = np.full(24, 7, np.float32), np.ones((50, 24), np.float32)
    extra = {"model.norm.weight": norm, f"{lora.EMBED}.base_layer.weight": embed}
    tensors |= {lora.PREFIX + k: v for k, v in extra.items()}
    found = read(on(base, lora.save(tmp_path / "a", tensors, modules_to_save=["norm"])))
    assert (found["model.norm.weight"] == norm).all()
    expected = 1 + lora.delta(tensors, lora.EMBED, 1.5)
    np.testing.assert_allclose(found[f"{lora.EMBED}.weight"], expected, **CLOSE)


@pytest.mark.parametrize("method", ["ties(density=0.3)", "model_stock", "iso_c"])
def test_merged_adapters_have_the_bits_of_folded_models(tmp_path, method):
    leaves = lora.base_leaves(dtype=jnp.bfloat16)
    base = lora.save_base(tmp_path / "base", leaves)
    experts, folded, trees = {}, {}, {}
    for seed, name in enumerate(("qa", "nli", "full")):
        source = on(base, lora.save(tmp_path / name, lora.factors(seed, EVERY)))
        trees[name] = read(source)
        folded[name] = lora.save_base(tmp_path / f"{name}_folded", trees[name])
        experts[name] = str(tmp_path / name)
    experts["full"] = folded["full"]  # a model among adapters
    experts["nli"] = f"{base}+{experts['nli']}"
    outputs = []
    for which, budget in ((experts, "120KB"), (folded, "1GB")):
        out = tmp_path / f"out{len(outputs)}"
        with pytest.warns(UserWarning, match="no config.json"):
            merging.merge_checkpoints(base, which, method, out, memory_budget=budget)
        outputs.append(load_file(out / "model.safetensors"))
    name, _, rest = method.partition("(")
    settings = {"density": 0.3} if rest else {}
    memory = merging.merge(leaves, trees, methods.get(name, **settings))
    for path, leaf in outputs[0].items():
        assert leaf.tobytes() == outputs[1][path].tobytes()
        assert leaf.tobytes() == np.asarray(memory[path]).tobytes()


def test_a_tied_head_that_repeats_the_embedding_is_left_out_with_adapters(tmp_path):
    leaves = lora.base_leaves()
    leaves["lm_head.weight"] = leaves[f"{lora.EMBED}.weight"].copy()
    base = lora.save_base(tmp_path / "base", leaves)
    adapter = lora.save(tmp_path / "a", lora.factors(1))
    from merging.merge.inputs import open_inputs

    assert "lm_head.weight" not in open_inputs(base, {"a": adapter}).first_leaves
    adapter = lora.save(tmp_path / "b", lora.factors(1, EVERY))
    assert "lm_head.weight" in open_inputs(base, {"a": adapter}).first_leaves


def spoiled(folder, *, tensors=None, config=None, text=None):
    """Save an adapter that is not as it should be."""
    tensors = lora.factors(1) if tensors is None else tensors
    lora.save(folder, tensors, **(config or {}))
    if text is not None:
        (folder / "adapter_config.json").write_text(text)
    return str(folder)


A = f"{lora.PREFIX}{lora.UP}.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def changed(**leaves):
    found = lora.factors(1)
    for name, leaf in leaves.items():
        found.pop({"a": A, "b": B}.get(name, ""), None)
        if leaf is not None:
            found[{"a": A, "b": B}.get(name, lora.PREFIX + name)] = leaf
    return found


MISTAKES = [
    ({"config": {"use_dora": True}}, r"use_dora \(DoRA scales each column"),
    ({"config": {"bias": "lora_only"}}, r"bias='lora_only' \(biases were trained"),
    ({"config": {"layer_replication": [[0, 2]]}}, r"layer_replication \(it runs"),
    ({"config": {"init_lora_weights": "pissa"}}, r"='pissa' \(it changed the base"),
    ({"config": {"init_lora_weights": 1}}, r"init_lora_weights=1 \(it changed"),
    ({"config": {"novel_trick": {"x": 1}}}, r"novel_trick \(not known here\)"),
    ({"config": {"target_parameters": ["w"]}}, "target_parameters"),
    ({"config": {"peft_type": "VERA"}}, "of the kind 'VERA'; LORA is read"),
    ({"config": {"r": 0}}, "r must be a whole number from 1, not 0"),
    ({"config": {"r": True}}, "r must be a whole number from 1, not True"),
    ({"config": {"r": 10**400}}, "r must be .*, not a long number"),
    ({"config": {"r": 8}}, r"up_proj: A \[4, 24\] and B \[37, 4\] are not of rank 8"),
    ({"config": {"lora_alpha": math.nan}}, "lora_alpha must be a finite number"),
    ({"config": {"lora_alpha": 10**400}}, "lora_alpha must be a finite number"),
    ({"config": {"lora_alpha": "6"}}, "lora_alpha must be a finite number, not '6'"),
    ({"config": {"rank_pattern": [4]}}, "rank_pattern must be an object, not list"),
    ({"config": {"rank_pattern": {"x": -1}}}, "rank_pattern of 'x' must be a whole"),
    ({"config": {"alpha_pattern": {"(": 1}}}, r"'\(' of alpha_pattern: the pattern is"),
    ({"config": {"alpha_pattern": {"(a+)+$": 1}}}, r"has '\+\$', which is not"),
    ({"config": {"alpha_pattern": {"(.*.*.*)x": 1}}}, "in too many ways"),
    ({"config": {"rank_pattern": {"(a|a)" * 38 + "q": 4}}}, "in too many ways"),
    ({"config": {"rank_pattern": {"a?" * 30 + "a" * 30: 4}}}, "in too many ways"),
    (
        {"config": {"rank_pattern": {"a{%s}" % (20 * "9"): 4}}},
        "has '{999.*, which is not",
    ),
    (
        {"config": {"rank_pattern": {f"x.*{i}.*": 4 for i in range(201)}}},
        "rank_pattern has 201 patterns, more than are tried",
    ),
    (
        {"config": {"rank_pattern": {f".*a.*{i}": 4 for i in range(17)}}},
        "rank_pattern has patterns that may fit in too many ways together",
    ),
    ({"text": "[1]"}, "adapter_config.json is damaged"),
    ({"text": "[" * 100_000}, "adapter_config.json is damaged"),
    ({"text": '{"peft_type": "LORA"}'}, "r must be a whole number from 1, not None"),
    ({"tensors": changed(a=None)}, "up_proj: lora_B alone"),
    ({"tensors": changed(a=np.ones(4, np.float32))}, "factors of 1 axes"),
    ({"tensors": changed(a=np.ones((4, 24), np.int32))}, "factors of int32"),
    ({"tensors": changed(x=np.ones(4, np.float32))}, "base: x is not there"),
    ({"tensors": changed(b=np.ones((38, 4), np.float32))}, r"BA \[38, 24\] for \[37,"),
    (
        {"tensors": changed(**{"q.lora_magnitude_vector": np.ones(4, np.float32)})},
        "q.lora_magnitude_vector: no A or B of a LoRA",
    ),
    (
        {"tensors": changed(**{f"{lora.UP}.lora_A.qa.weight": np.ones((4, 24))})},
        "up_proj: two lora_A; adapters of 2 names",
    ),
    (
        {"tensors": changed(**{"model.norm.weight": np.ones(25, np.float32)})},
        r"model.norm.weight \[25\] for \[24\]",
    ),
    ({"tensors": {}}, "no tensors at all"),
]


@pytest.mark.parametrize("fault, message", MISTAKES, ids=range(len(MISTAKES)))
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, base, fault, message):
    adapter = spoiled(tmp_path / "a", **fault)
    with pytest.raises(UserError, match=message):
        on(base, adapter)


def test_a_folder_that_is_no_adapter_alone_says_what_to_do(tmp_path, base):
    config = {"base_model_name_or_path": "meta/llama"}
    adapter = lora.save(tmp_path / "a", lora.factors(1), **config)
    with pytest.raises(UserError, match=r"no model without its base.*on meta/llama"):
        checkpoints.open_checkpoint(adapter)
    for name, content, message in (
        ("model.safetensors", b"", "holds an adapter .* and a model"),
        ("adapter_model.bin", b"", "a pickle, which can run code"),
        ("", b"", "it has no adapter_model.safetensors"),
    ):
        folder = tmp_path / f"with_{name}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(lora.CONFIG))
        if name:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            on(base, str(folder))
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file(lora.factors(1), alone / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no adapter_config.json"):
        on(base, str(alone))
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "adapter_config.json").write_text(json.dumps(lora.CONFIG))
    (linked / "adapter_model.safetensors").symlink_to(
        alone / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="link to outside its folder"):
        on(base, str(linked))


def test_a_factor_that_is_not_finite_is_named_by_the_merge(tmp_path, base):
    tensors = lora.factors(1)
    tensors[A][2, 3] = np.inf
    adapter = lora.save(tmp_path / "a", tensors)
    with pytest.raises(UserError, match=r"NaN or Inf in the weights of:\s+.*up_proj.*"):
        merging.merge_checkpoints(base, {"qa": adapter}, "average", tmp_path / "out")
