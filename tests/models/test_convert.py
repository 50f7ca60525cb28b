"""Models into Orbax and back: the same bytes under any budget, or a clear refusal."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from merging import models, open_checkpoint
from merging.cli import main as command_line
from merging.models import hf as families
from merging.models.hf import loading
from merging.models.hf.convert import convert
from merging.runtime import sharding, tree
from merging.runtime.errors import UserError

GOLDENS = Path(__file__).parent / "goldens"
CONFIGS = Path(__file__).parents[2] / "configs" / "convert"
NAMES = sorted(path.name for path in GOLDENS.iterdir())
LLAMA = GOLDENS / "llama3"

pytestmark = pytest.mark.filterwarnings("ignore:.*no tokenizer")


def tensors(folder):
    """Return {name: (dtype, shape, bytes)} of all files of a folder."""
    found = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        found |= load_file(path)
    return {n: (str(x.dtype), x.shape, x.tobytes()) for n, x in found.items()}


@pytest.fixture(scope="session")
def stacked(tmp_path_factory):
    """The goldens as Orbax, by name."""
    folder = tmp_path_factory.mktemp("stacked")
    return {
        name: convert(str(GOLDENS / name), str(folder / name), format="orbax")
        for name in NAMES
    }


@pytest.fixture
def broken(tmp_path):
    """Return a function that copies the Llama with other tensors or another config."""

    def make(change=lambda tensors: tensors, **settings):
        folder = tmp_path / "broken"
        folder.mkdir()
        config = json.loads((LLAMA / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        found = change(dict(load_file(LLAMA / "model.safetensors")))
        save_file(found, folder / "model.safetensors")
        return str(folder)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_from_orbax_is_what_transformers_wrote(name, stacked, tmp_path):
    back = convert(str(stacked[name]), str(tmp_path / "back"), format="safetensors")
    assert tensors(back) == tensors(GOLDENS / name)
    config = (GOLDENS / name / "config.json").read_bytes()
    assert (back / "config.json").read_bytes() == config


@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
def test_orbax_holds_the_decoders_leaves_and_its_logits(name, stacked):
    config, params = families.load(stacked[name])
    assert tree.differences({"ours": models.abstract(config), "orbax": params}) == []
    direct = families.load(GOLDENS / name)[1]
    jax.tree.map(np.testing.assert_array_equal, params, direct)


@pytest.mark.parametrize("piece", [1, 3000])
def test_foreign_weights_go_straight_to_their_shards(monkeypatch, piece):
    monkeypatch.setattr(loading, "PIECE", piece)
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    config, params = families.load(LLAMA, mesh=mesh)
    whole = families.load(LLAMA)[1]
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    like = models.abstract(config, mesh)
    for leaf, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(like), strict=True
    ):
        assert leaf.sharding == expected.sharding
        assert leaf.addressable_shards[0].data.size * 4 <= leaf.size or leaf.ndim < 3


def test_a_small_budget_and_small_shards_change_no_byte(stacked, tmp_path):
    arguments = {"format": "safetensors", "memory_budget": 2000, "shard_size": "4KB"}
    back = convert(str(stacked["llama3"]), str(tmp_path / "back"), **arguments)
    assert len(list(back.glob("model-*.safetensors"))) > 3
    assert tensors(back) == tensors(LLAMA)
    again = convert(str(back), str(tmp_path / "again"), format="orbax")
    jax.tree.map(
        np.testing.assert_array_equal,
        families.load(again)[1],
        families.load(stacked["llama3"])[1],
    )


def test_ranges_of_a_leaf_are_slices_of_it():
    model = families.open_model(GOLDENS / "gemma3")
    for path, leaf in model.leaves.items():
        size, row = int(np.prod(leaf.shape)), families.row_size(leaf)
        whole = np.empty(size, leaf.dtype)
        model.read_into(path, 0, whole)
        for start, stop in ((0, row), (size - row, size), (3 * row, 17 * row)):
            part = np.empty(min(stop, size) - min(start, size), leaf.dtype)
            model.read_into(path, start, part)
            np.testing.assert_array_equal(part, whole[start:stop])


def test_a_conversion_holds_no_more_than_its_budget(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 128}
    source = write_bfloat16(tmp_path / "model", **sizes)
    stacked = convert(source, str(tmp_path / "stacked"), format="orbax")
    budget = 1_000_000
    tracemalloc.start()
    arguments = {"format": "safetensors", "memory_budget": budget}
    back = convert(str(stacked), str(tmp_path / "back"), **arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensors(back) == tensors(source)
    assert (back / "model.safetensors").stat().st_size > 15 * budget
    assert 0.5 * budget < peak < 1.5 * budget


def write_bfloat16(folder, **sizes):
    """Write a Llama of random bfloat16 weights; return its folder."""
    config = json.loads((LLAMA / "config.json").read_text()) | sizes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    family, decoder = families.read_config(json.dumps(config))
    random = np.random.default_rng(0)
    table = families.leaves(family, decoder).values()
    found = {
        name: random.standard_normal(leaf.tensor_shape).astype(jnp.bfloat16)
        for leaf in table
        for name in leaf.tensors
    }
    save_file(found, folder / "model.safetensors")
    return str(folder)


def test_merged_orbax_models_go_back_to_their_family(stacked, tmp_path):
    import merging

    other = tmp_path / "other"
    shutil.copytree(LLAMA, other)
    moved = {n: 2 * x for n, x in load_file(LLAMA / "model.safetensors").items()}
    save_file(moved, other / "model.safetensors")
    expert = convert(str(other), str(tmp_path / "expert"), format="orbax")
    merged = merging.merge_checkpoints(
        None, [str(stacked["llama3"]), str(expert)], "average", str(tmp_path / "merged")
    )
    back = convert(str(merged), str(tmp_path / "back"), format="safetensors")
    for name, leaf in load_file(back / "model.safetensors").items():
        np.testing.assert_allclose(leaf, 0.75 * moved[name], rtol=1e-6)


def test_stacked_leaves_never_go_into_a_safetensors_file(stacked, tmp_path):
    import merging

    models_ = [str(stacked["llama3"])]
    output = str(tmp_path / "flat")
    with pytest.raises(UserError, match=r"merging convert --config .*to_safetensors"):
        merging.merge_checkpoints(
            None, models_, "average", output, format="safetensors"
        )
    assert not list(tmp_path.iterdir())


def test_a_merge_from_safetensors_to_orbax_has_the_familys_names(tmp_path):
    """They are read as a folder of safetensors is: evaluated, trained on, converted."""
    import merging

    merged = merging.merge_checkpoints(
        None, [str(LLAMA)], "average", str(tmp_path / "merged"), format="orbax"
    )
    assert set(open_checkpoint(merged).abstract) == set(tensors(LLAMA))
    config, params = families.load(merged)
    expected, leaves = families.load(LLAMA)
    assert config == expected
    jax.tree.map(np.testing.assert_array_equal, params, leaves)
    back = convert(str(merged), str(tmp_path / "back"), format="safetensors")
    assert tensors(back) == tensors(LLAMA)


def test_palms_shape_comes_back(tmp_path):
    described = tmp_path / "described"
    described.mkdir()
    config = {
        "architectures": ["PaLMForCausalLM"],
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    (described / "config.json").write_text(json.dumps(config))
    decoder = families.read_config(json.dumps(config))[1]
    params = models.init(decoder, 0)
    merging_checkpoint = tmp_path / "trained"
    from merging import checkpoints

    checkpoints.save(merging_checkpoint, params)
    with pytest.raises(UserError, match="no config.json"):
        convert(str(merging_checkpoint), str(tmp_path / "out"), format="safetensors")
    out = convert(
        str(merging_checkpoint),
        str(tmp_path / "out"),
        format="safetensors",
        auxiliary_files=str(described),
    )
    found, again = families.load(out)
    assert found.parallel_block and found.kv_heads == 1
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_tokenizer_files_are_kept_and_missed(tmp_path):
    with pytest.warns(UserWarning, match="no tokenizer files"):
        convert(str(LLAMA), str(tmp_path / "without"), format="orbax")
    source = tmp_path / "source"
    shutil.copytree(LLAMA, source)
    (source / "tokenizer.json").write_text('{"model": "bpe"}')
    (source / "run_me.py").write_text("print('no')")
    with pytest.warns() as warned:
        import warnings

        warnings.warn("one is needed", stacklevel=1)
        convert(str(source), str(tmp_path / "with"), format="orbax")
    assert not any("tokenizer" in str(w.message) for w in warned)
    assert (tmp_path / "with" / "tokenizer.json").read_text() == '{"model": "bpe"}'
    assert not (tmp_path / "with" / "run_me.py").exists()


KILLED = """
    import os, signal, sys
    from merging.models.hf import convert

    calls, write = [], convert.scatter

    def scatter(*arguments):
        calls.append(1)
        if len(calls) > 7:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    convert.scatter = scatter
    convert.convert(*sys.argv[1:], format="safetensors")
"""


def test_a_killed_conversion_leaves_no_output_and_is_done_again(stacked, tmp_path):
    arguments = [str(stacked["gemma2"]), str(tmp_path / "back")]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".back.merging-lock", "back.partial"]
    back = convert(*arguments, format="safetensors")
    assert tensors(back) == tensors(GOLDENS / "gemma2")
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_model_that_is_written_to_meanwhile_is_not_published(
    broken, stacked, tmp_path, monkeypatch, format
):
    module = sys.modules[convert.__module__]
    copy, name = module._copy, broken()
    if format == "safetensors":
        name = shutil.copytree(stacked["llama3"], tmp_path / "orbax")

    def copy_and_change(*arguments):
        copy(*arguments)
        for path in Path(name).rglob("*"):
            if path.is_file() and path.name != "config.json":
                path.touch()

    monkeypatch.setattr(module, "_copy", copy_and_change)
    with pytest.raises(UserError, match="changed while they were read: .*Nothing was"):
        convert(str(name), str(tmp_path / "out"), format=format)
    assert not (tmp_path / "out").exists()


def without_two(tensors):
    del tensors["lm_head.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    return tensors | {"model.layers.2.mlp.up_proj.weight": np.ones(3, np.float32)}


def test_missing_and_extra_tensors_are_all_listed(broken, tmp_path):
    with pytest.raises(UserError) as error:
        convert(broken(without_two), str(tmp_path / "out"), format="orbax")
    lines = str(error.value).splitlines()
    assert "  lm_head.weight: missing" in lines
    assert "  model.layers.1.mlp.up_proj.weight: missing" in lines
    assert "  model.layers.2.mlp.up_proj.weight: no tensor of this model" in lines
    assert len(lines) == 4 and not (tmp_path / "out.partial").exists()


def of_another_kind(tensors):
    tensors["model.norm.weight"] = np.ones(5, np.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    tensors["model.embed_tokens.weight"] = np.ones((40, 16), np.int32)
    return tensors


def test_tensors_of_another_shape_or_dtype_are_all_listed(broken, tmp_path):
    with pytest.raises(UserError) as error:
        convert(broken(of_another_kind), str(tmp_path / "out"), format="orbax")
    for text in (
        "model.norm.weight: shape (5,), config.json makes it (16,)",
        "layers/up: its layers have several dtypes, float16, float32",
        "embed: int32 is no dtype of weights",
    ):
        assert text in str(error.value)


def test_leaves_of_another_model_are_all_listed(stacked, tmp_path):
    with pytest.raises(UserError) as error:
        families.open_model(stacked["llama3"], str(GOLDENS / "qwen3"))
    for text in ("layers/query_norm: missing", "layers/query: shape"):
        assert text in str(error.value)


def test_computed_buffers_of_old_checkpoints_are_left_out(broken, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    source = broken(lambda tensors: tensors | {name: np.ones(4, np.float32)})
    out = convert(source, str(tmp_path / "out"), format="orbax")
    back = convert(str(out), str(tmp_path / "back"), format="safetensors")
    assert tensors(back) == tensors(LLAMA)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architectures": ["BertModel"]}, "unknown architecture 'BertModel'"),
        (
            {"architectures": ["BertModel"]},
            "Only `merging merge` needs none: it merges any",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn' is not supported"),
    ],
)
def test_the_command_refuses_with_one_message_and_makes_nothing(
    settings, expected, broken, tmp_path, capsys
):
    command = ["convert", "--config", str(CONFIGS / "to_orbax.py")]
    command += [f"--config.input={broken(**settings)}"]
    status = command_line.main([*command, f"--config.output={tmp_path / 'out'}"])
    assert status == 2
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_command_converts_there_and_back(tmp_path, capsys):
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    for config, source, output in (
        ("to_orbax.py", LLAMA, there),
        ("to_safetensors.py", there, back),
    ):
        command = ["convert", "--config", str(CONFIGS / config)]
        command += [f"--config.input={source}", f"--config.output={output}"]
        assert command_line.main(command) == 0
        assert f"Converted: {output}" in capsys.readouterr().out
    assert tensors(back) == tensors(LLAMA)
    assert command_line.main(command) == 0
    assert f"Nothing to do, it is converted: {back}" in capsys.readouterr().out
    assert command_line.main([*command, "--config.shard_size=1MB"]) == 2
    assert "exists, and is not what this very" in capsys.readouterr().err
    assert tensors(back) == tensors(LLAMA)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"format": "safetensor"}, "did you mean safetensors"),
        ({"input": ""}, "name the checkpoint"),
        ({"input": "nowhere"}, "no checkpoint at nowhere"),
        ({"memory_budget": "100"}, "raise memory_budget"),
    ],
)
def test_wrong_arguments_are_explained(changed, expected, tmp_path):
    arguments = {"input": str(LLAMA), "output": str(tmp_path / "o"), "format": "orbax"}
    with pytest.raises(UserError, match=expected):
        convert(**arguments | changed)
    assert list(tmp_path.iterdir()) == []
