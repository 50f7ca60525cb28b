"""Statistics of a model: what they are, in either layout, stopped and gone on with."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scored_models
from safetensors import safe_open
from tolerance import decoder_length, rounding

from merging import checkpoints, merge_checkpoints, models
from merging.models import decoder
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.models.positions import causal
from merging.runtime import config as configs
from merging.runtime import processes, sharding, tree, workdir
from merging.runtime.errors import Preempted, UserError
from merging.training import collect, statistics
from merging.training.batches import Examples, opened

CONFIG = models.DecoderConfig(
    vocab_size=24,
    d_model=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    d_ff=24,
    tied_embeddings=False,
    unroll=2,
)
ROWS, LENGTH, WORDS = 24, 16, 290


def examples(vocabulary, rows=ROWS):
    """Prompts and answers of several lengths, padded."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, vocabulary, (rows, LENGTH)).astype(np.int32)
    weights = np.zeros((rows, LENGTH), bool)
    for row, stop in enumerate(rng.integers(5, LENGTH, rows)):
        weights[row, 3:stop] = True
        tokens[row, stop:] = 0
    return Examples(tokens, weights)


@pytest.fixture(scope="module")
def params():
    return models.init(CONFIG, 0)


@pytest.fixture(scope="module", params=["one device", "a mesh"])
def sums(request, params):
    """The sums over two batches, the second half empty; and the tokens counted."""
    mesh = None
    if request.param == "a mesh":
        mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    functions = statistics.collector(CONFIG, params, statistics.KINDS, mesh)
    tokens, weights = examples(24, 16)
    found, total = functions.start(), 0
    for part in (slice(0, 8), slice(8, 16)):
        given = weights[part] * (np.arange(16)[part] < 12)[:, None]
        batch = [sharding.place_batch(mesh, x) for x in (tokens[part], given * 1.0)]
        found, counted = functions.add(params, found, *batch)
        total += int(counted)
    return found, total


@pytest.fixture(scope="module")
def squares(params):
    """The sum of twelve examples' squared gradients, one after the other."""

    def log_p(params, tokens, weights):
        log_p = jax.nn.log_softmax(models.forward(CONFIG, params, tokens[None]))[0]
        return jnp.sum(log_p[np.arange(LENGTH), tokens] * weights)

    gradient = jax.jit(jax.grad(log_p))
    tokens, weights = examples(24, 16)
    expected = jax.tree.map(lambda x: np.zeros(x.shape), params)
    for row in range(12):
        one = gradient(params, tokens[row], weights[row] * 1.0)
        expected = jax.tree.map(lambda s, g: s + np.square(g), expected, one)
    return tree.flatten(expected)


@pytest.mark.long
def test_fisher_information_is_the_sum_of_the_examples_squared_gradients(sums, squares):
    found, expected = tree.flatten(sums[0]["fisher"]), squares
    assert found.keys() == expected.keys()
    length = decoder_length(
        layers=2, width=16, inner=32, mlp=24, context=LENGTH, vocabulary=24
    )
    for path, leaf in expected.items():
        # Forward and backward; a square doubles the relative error.
        tolerance = rounding(4 * length, leaf.max())
        np.testing.assert_allclose(found[path], leaf, atol=tolerance, err_msg=path)


@pytest.fixture(scope="module")
def inputs(params):
    """What every linear map is given of twelve examples, and the last layer gives."""
    tokens, apply = examples(24, 16).tokens[:12], decoder._apply

    @jax.jit
    def forward(params):
        seen = []

        def recorded(weight, x):
            seen.append((weight[...], x))
            return apply(weight, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "_apply", recorded)
            hidden, _ = models.bind(CONFIG, params)(
                models.shift_right(tokens), causal(CONFIG, LENGTH)
            )
        return seen, hidden

    seen, hidden = forward(params)
    seen = [(weight, np.asarray(x, np.float64)) for weight, x in seen]
    return seen, hidden


def test_gram_matrices_are_of_the_inputs_of_every_linear_map(sums, params, inputs):
    seen, hidden = inputs
    weights = examples(24, 16).loss_weights[:12]
    last = LENGTH - np.argmax(weights[:, ::-1], axis=1)
    counted = np.arange(LENGTH) < last[:, None]
    assert sums[1] == counted.sum()

    def gram(x):
        return x[counted].T @ x[counted]

    names = ("query", "key", "value", "output", "gate", "up", "down")
    found = tree.flatten(sums[0]["gram"])
    assert sorted(found) == sorted([f"layers/{n}" for n in names] + ["head"])
    for number, (weight, x) in enumerate(seen):
        layer, name = divmod(number, len(names))
        leaf = params["layers"][names[name]][layer]
        np.testing.assert_array_equal(weight, leaf)
        expected = gram(x)
        np.testing.assert_allclose(
            found[f"layers/{names[name]}"][layer],
            expected,
            atol=rounding(1000, expected.max()),
        )
    expected = gram(np.asarray(hidden, np.float64))
    np.testing.assert_allclose(
        found["head"], expected, atol=rounding(1000, expected.max())
    )


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    """The folder of a Llama in our layout."""
    return written(tmp_path_factory.mktemp("experts") / "a", seed=0)


def written(folder, seed):
    tokenizer = scored_models.byte_level(["a few words and a few more"], WORDS)
    how = dict(heads=2, width=16, vocabulary=WORDS)
    return str(scored_models.write(folder, tokenizer, seed=seed, **how))


@pytest.fixture(scope="module")
def experts(expert, tmp_path_factory):
    """{name: folder} of two Llamas, in our layout and in Hugging Face's."""
    root = tmp_path_factory.mktemp("layouts")
    ours = {"a": expert, "b": written(root / "b", seed=1)}
    theirs = {
        name: str(convert(folder, f"{root}/hf_{name}", format="safetensors"))
        for name, folder in ours.items()
    }
    return ours, theirs


@pytest.fixture
def asked(monkeypatch):
    """Return what makes a config; the examples are random, and no seqio is asked."""
    source = opened(examples(WORDS), WORDS)
    monkeypatch.setattr(collect.tasks, "store", lambda *_: source)

    def config(checkpoint, **values):
        values = {"examples": "20", "batch_size": "8", "save_every": "8", **values}
        spec = "configs/collect/expert.py:sentiment"
        return configs.load(spec, {"checkpoint": checkpoint, **values})

    return config


def leaves(folder):
    return tree.flatten(checkpoints.restore(folder))


@pytest.mark.long
def test_both_layouts_have_their_own_names_and_merge_alike(experts, asked, tmp_path):
    merged = {}
    for layout, models_of in zip(("ours", "theirs"), experts, strict=True):
        told = {
            name: str(collect.run(asked(folder), tmp_path / layout / name))
            for name, folder in models_of.items()
        }
        for method in ("fisher", "regmean"):
            output = tmp_path / f"{layout}_{method}"
            merge_checkpoints(None, models_of, f"{method}()", output, statistics=told)
            merged[layout, method] = output
    names = (tmp_path / "theirs" / "a" / "gram").glob("*.safetensors")
    with safe_open(next(names), "np") as opened_file:
        assert "model.layers.1.mlp.down_proj.weight" in opened_file.keys()
    record = json.loads((tmp_path / "ours/a/fisher/statistics.json").read_text())
    assert (record["kind"], record["examples"], record["what"]) == (
        "fisher",
        20,
        "sentiment",
    )
    for method in ("fisher", "regmean"):
        back = convert(
            str(merged["theirs", method]), f"{tmp_path}/back_{method}", format="orbax"
        )
        found, expected = leaves(back), leaves(merged["ours", method])
        for path, leaf in expected.items():
            # Sums of at most 300 terms, in systems of a condition of at most 10 n.
            tolerance = rounding(300 * 10 * 32, np.abs(leaf).max())
            np.testing.assert_allclose(found[path], leaf, atol=tolerance, err_msg=path)


@pytest.mark.long
def test_a_stopped_collection_goes_on_to_the_same_bytes(
    expert, asked, tmp_path, monkeypatch
):
    config = asked(expert)
    whole = collect.run(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(processes, "preempted", lambda: True)
        with pytest.raises(Preempted, match="at example 8 of 20"):
            collect.run(config, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "fisher").exists()
    stopped = collect.run(config, tmp_path / "stopped")
    for kind in ("fisher", "gram"):
        found = leaves(stopped / kind)
        for path, leaf in leaves(whole / kind).items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert not (stopped / "partial").exists()
    assert collect.run(config, tmp_path / "stopped") == stopped  # nothing to do


def test_statistics_of_a_model_are_not_taken_for_those_of_its_successor(
    asked, tmp_path, monkeypatch, capsys
):
    def gather(values, folder, model, suite, mesh, identity):
        digest = configs.config_hash(identity)
        workdir.claim(folder, identity.to_dict(), digest, "collection")
        (folder / collect.DONE).write_text("{}")

    monkeypatch.setattr(collect, "_collect", gather)
    model = written(tmp_path / "model", seed=0)
    for said in ("", "Nothing to do"):
        collect.run(asked(model), tmp_path / "gathered")
        assert said in capsys.readouterr().out
    shutil.rmtree(model)
    written(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match="another config"):
        collect.run(asked(model), tmp_path / "gathered")


def test_what_the_devices_cannot_hold_is_refused_before_anything_is_made(
    expert, asked, tmp_path, monkeypatch
):
    decoder = families.open_model(expert).config
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    taken = {
        kinds: statistics.bytes_to_gather(decoder, kinds, mesh)
        for kinds in (("fisher",), ("gram",), ("fisher", "gram"))
    }
    # Two layers of 16 inputs to six maps and 32 to `down`, cut by rows over 8 devices.
    grams = 2 * (6 * 16**2 + 32**2) * 4 // 8
    model = models.parameter_count(decoder) * 4
    assert taken["gram",] == model + 2 * grams
    assert taken["fisher",] == model + 2 * model + model
    assert taken["fisher", "gram"] == taken["fisher",] + 2 * grams
    monkeypatch.setattr(sharding, "device_memory", lambda: taken["fisher",])
    both = "take one kind at a time (statistics; fisher takes .*, gram takes .*) or 9 "
    with pytest.raises(UserError, match=both.replace("(", r"\(").replace(")", r"\)")):
        collect.run(asked(expert), tmp_path / "out")
    monkeypatch.setattr(sharding, "device_memory", lambda: taken["gram",] - 1)
    with pytest.raises(UserError, match="gram of .*: gathering takes .*: take 9 dev"):
        collect.run(asked(expert, statistics="gram"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"statistics": "fishr"}, "did you mean fisher"),
        ({"examples": "0"}, "examples = 0 must be at least 1"),
        ({"checkpoint": ""}, "name the checkpoint"),
        ({"what": "sentimnt"}, "did you mean sentiment"),
        ({"batch_size": "7"}, "a batch of 7 does not divide over 8 devices"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(
    expert, asked, tmp_path, values, words
):
    config = asked(**{"checkpoint": expert, **values})
    with pytest.raises(UserError, match=words):
        collect.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
