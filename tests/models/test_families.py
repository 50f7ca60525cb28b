"""Families against what transformers found, and config.json files that are wrong."""

import dataclasses
import json

import family_cases
import jax
import numpy as np
import pytest
from family_cases import CLOSE, GOLDENS, NAMES

from merging import models
from merging.models import hf as families
from merging.runtime.errors import UserError


@pytest.mark.numeric
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    case = family_cases.load(GOLDENS / name)
    assert np.std(case[2]["logits"]) > 0.5
    assert family_cases.error(*case) < CLOSE
    assert family_cases.padded_error(*case) < CLOSE


@pytest.mark.parametrize("mistake", ["wrong_norm", "wrong_rotary"])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_convention_shows(name, mistake):
    config, params, case = family_cases.load(GOLDENS / name)
    mistaken = getattr(family_cases, mistake)(config, params)
    assert family_cases.padded_error(*mistaken, case) > 100 * CLOSE


SWITCHES = [
    ("llama3", {"rope_scaling": None}),
    ("llama3", {"rope_scaling": models.RopeScaling("linear", 8.0)}),
    ("smollm2", {"rope_theta": 10_000.0}),
    ("mistral", {"window": 6}),
    ("mistral", {"local_layers": ()}),
    ("qwen2_window", {"local_layers": (True, False)}),
    ("gemma2", {"activation": "swiglu"}),
    ("gemma2", {"scaled_embeddings": False}),
    ("gemma2", {"query_scalar": None}),
    ("gemma2", {"attention_softcap": None}),
    ("gemma2", {"logit_softcap": None}),
    ("gemma2", {"local_layers": (False, True)}),
    ("gemma3", {"local_rope_theta": None}),
    ("gemma3", {"rope_scaling": None}),
    ("gemma3", {"local_layers": (True, False, True)}),
]


@pytest.mark.parametrize(("name", "change"), SWITCHES)
def test_every_switch_of_a_family_is_seen_in_its_logits(name, change):
    config, params, case = family_cases.load(GOLDENS / name)
    changed = dataclasses.replace(config, **change)
    assert changed != config
    assert family_cases.padded_error(changed, params, case) > 5 * CLOSE


@pytest.mark.parametrize(
    ("name", "leaf"),
    [("qwen2", "key_bias"), ("qwen3", "query_norm"), ("gemma2", "mlp_post_norm")],
)
def test_every_further_leaf_of_a_family_is_seen_in_its_logits(name, leaf):
    config, params, case = family_cases.load(GOLDENS / name)
    changed = {**params, "layers": {**params["layers"]}}
    changed["layers"][leaf] = params["layers"][leaf] + 0.5
    assert family_cases.padded_error(config, changed, case) > 5 * CLOSE


# Layers of two kinds, and a window in every layer.
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_generation_past_the_window_is_that_of_whole_forward_passes(name):
    config, params, case = family_cases.load(GOLDENS / name)
    prompt, count = case["ids"][:, 1:8], 9
    # In the shape of the other tests' programs.
    texts = np.zeros((4, 18), np.int32)
    texts[:2, 0], texts[:2, 1:8] = config.bos_id, prompt
    for at in range(8, 8 + count):
        made = family_cases.logits(config, params, texts)
        texts[:2, at] = made[:2, at - 1].argmax(-1)
    lengths = np.full(2, prompt.shape[1])
    prefixes = np.full(2, config.bos_id, np.int32)
    predictor = models.predictor(config)
    got = predictor.generate(params, prefixes, prompt, lengths, count, ())
    np.testing.assert_array_equal(got, texts[:2, 8 : 8 + count])


def test_sequences_open_with_the_familys_own_token():
    config, params, case = family_cases.load(GOLDENS / "llama2")
    assert config.bos_id == 1
    ids = case["ids"].copy()
    ids[:, 0] = 1
    texts = np.pad(ids, ((0, 2), (0, 18 - ids.shape[1])))
    given = family_cases.logits(config, params, texts)
    forward = jax.jit(models.forward, static_argnums=0)
    ours = forward(config, params, np.pad(ids[:, 1:], ((0, 0), (0, 1))))
    np.testing.assert_allclose(ours, given[:2, : ids.shape[1]], atol=CLOSE)


def test_layers_of_two_kinds_run_alike_written_out_scanned_or_again():
    config, params, case = family_cases.load(GOLDENS / "gemma3")
    for change in ({"unroll": 3}, {"remat": True}):
        changed = dataclasses.replace(config, **change)
        assert family_cases.padded_error(changed, params, case) < CLOSE


def test_palms_shape_is_parallel_with_one_key_head_and_llamas_names():
    family, config = families.read_config(json.dumps(PALM))
    assert config.parallel_block and config.kv_heads == 1 and config.tied_embeddings
    table = families.leaves(family, config)
    names = {name for leaf in table.values() for name in leaf.tensors}
    assert "model.layers.2.self_attn.k_proj.weight" in names
    assert not any("post_attention" in name or "lm_head" in name for name in names)
    assert table["layers/key"].tensor_shape == (4, 16)


def test_loading_in_bfloat16_casts_and_stays_close():
    config, params = families.load(GOLDENS / "qwen3", dtype="bfloat16")
    assert config.dtype == "bfloat16" and str(params["embed"].dtype) == "bfloat16"
    error = family_cases.error(config, params, family_cases.load(GOLDENS / "qwen3")[2])
    assert CLOSE < error < 0.5


def test_a_model_loads_sharded_and_a_mesh_that_does_not_divide_it_is_refused():
    from merging.runtime import sharding

    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    config, params = families.load(GOLDENS / "llama2", mesh=mesh)
    assert params["layers"]["query"].addressable_shards[0].data.shape == (2, 4, 8)
    case = family_cases.load(GOLDENS / "llama2")[2]
    assert family_cases.error(config, params, case) < CLOSE
    with pytest.raises(UserError, match="layers/gate"):
        families.load(GOLDENS / "llama2", mesh=sharding.make_mesh({"tensor": 8}))


PALM = {
    "architectures": ["PaLMForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "silu",
}
LLAMA = json.loads((GOLDENS / "llama3" / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architectures": ["LamaForCausalLM"]}, ["did you mean Llama", "Gemma3For"]),
        ({"architectures": []}, ["no architecture", "Qwen3ForCausalLM"]),
        ({"quantization_config": {"bits": 4}}, ["quantised", "dequantise"]),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            ["'yarn'", "linear", "llama3"],
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
            ["'dynamic'", "linear", "llama3"],
        ),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            ["factor is missing", "low_freq_factor is missing", "high_freq"],
        ),
        (
            {"hidden_size": "16", "vocab_size": -3, "num_attention_heads": None},
            ["hidden_size = '16'", "vocab_size = -3", "num_attention_heads is missing"],
        ),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({"hidden_act": "gelu", "attention_bias": True}, ["hidden_act", "attention_b"]),
        ({"head_dim": 3}, ["head_dim = 3 must be even"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps"]),
        ({"bos_token_id": 99}, ["bos_id = 99"]),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_with_all_its_faults(change, expected):
    with pytest.raises(UserError) as error:
        families.read_config(json.dumps(LLAMA | change))
    for text in expected:
        assert text in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, b"\xff\xfe\x00"])
def test_a_config_that_is_no_object_is_refused(text):
    with pytest.raises(UserError, match="config.json can't be read"):
        families.read_config(text)


def test_older_spellings_of_rotary_settings_mean_the_same():
    old = dict(LLAMA)
    settings = dict(old.pop("rope_parameters"))
    old["rope_theta"] = settings.pop("rope_theta")
    settings["type"] = settings.pop("rope_type")
    old["rope_scaling"] = settings
    assert families.read_config(json.dumps(old)) == families.read_config(
        json.dumps(LLAMA)
    )
    gemma = json.loads((GOLDENS / "gemma3" / "config.json").read_text())
    rope = gemma.pop("rope_parameters")
    layers = gemma.pop("layer_types")
    assert layers[-1] == "full_attention"
    old = gemma | {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    found = families.read_config(json.dumps(old))[1]
    assert found == family_cases.load(GOLDENS / "gemma3")[0]
