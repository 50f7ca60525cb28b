"""Models of several vocabularies under a mergekit YAML's `tokenizer_source`."""

import json

import ml_dtypes
import numpy as np
import pytest
from mergekit_models import OUTSIDE, SINGLE
from safetensors.numpy import load_file, save_file

from merging import UserError
from merging.checkpoints import Rows, open_checkpoint
from merging.cli.main import main
from merging.merge.streamed import merge_yaml

EMBED, NORM, HEAD = OUTSIDE
TOKENS = {"base": ["<s>", "x", "y"], "a": ["y", "p", "<s>", "q"], "b": ["q", "<s>"]}
ADDED = {"base": ["<s>"], "a": ["<s>", "q"], "b": ["<s>"]}
ROWS = {"base": 5, "a": 4, "b": 3}  # some more than there are tokens
UNION, A = ["<s>", "x", "y", "p", "q"], ("a", TOKENS["a"])


def tokenizer(name):
    ids = {token: number for number, token in enumerate(TOKENS[name])}
    added = [{"id": ids[t], "content": t, "special": t == "<s>"} for t in ADDED[name]]
    return {"added_tokens": added, "model": {"type": "BPE", "vocab": ids, "merges": []}}


@pytest.fixture
def merge(tmp_path):
    """Merge a base and two experts by what is said of tokenizers."""
    random = np.random.default_rng(0)
    models = {}
    for name, rows in ROWS.items():
        leaves = {EMBED: random.normal(size=(rows, 6)), NORM: random.normal(size=6)}
        leaves[HEAD] = random.normal(size=(rows, 6))
        models[name] = {n: x.astype(np.float32) for n, x in leaves.items()}
        (tmp_path / name).mkdir()
        save_file(models[name], tmp_path / name / SINGLE, {"format": "pt"})
        config = {"model_type": "llama", "vocab_size": rows}
        for file, content in (
            ("config.json", config),
            ("tokenizer.json", tokenizer(name)),
            ("vocab.json", {}),
            ("tokenizer_config.json", {"of": name}),
        ):
            (tmp_path / name / file).write_text(json.dumps(content))

    def merged(said, output="out", **settings):
        text = f"merge_method: linear\nbase_model: {tmp_path}/base\n{said}\nmodels:\n"
        for name, weight in zip(ROWS, (0.5, 0.3, 0.2), strict=True):
            text += (
                f"- {{model: {tmp_path}/{name}, parameters: {{weight: {weight}}}}}\n"
            )
        (tmp_path / "merge.yml").write_text(text)
        return merge_yaml(tmp_path / "merge.yml", str(tmp_path / output), **settings)

    merged.models, merged.folder = models, tmp_path
    return merged


def aligned(models, leaf, tokens, padding=0):
    """The rule, token by token: own row, only owner's, base's, mean, or zeros."""
    found = {}
    for name in models:
        rows = []
        for token in tokens:
            having = [n for n in models if token in TOKENS[n]]
            taken = [name] if name in having else having
            if name not in having and len(having) > 1 and "base" in having:
                taken = ["base"]
            of = [models[n][leaf][TOKENS[n].index(token)] for n in taken]
            rows.append(np.mean(of, axis=0) if of else np.zeros(6))
        rows += [np.mean(rows, axis=0)] * padding
        found[name] = np.array(rows, np.float64)
    return found


@pytest.mark.parametrize(
    ("said", "donor", "tokens", "padding"),
    [
        ("tokenizer_source: base", "base", TOKENS["base"], 0),
        ("tokenizer_source: union", "base", UNION, 0),
        ("tokenizer: {pad_to_multiple_of: 4}", "base", UNION, 3),
        ("tokenizer_source: model:{folder}/b", "b", TOKENS["b"], 0),
        ("tokenizer: {source: '{folder}/a', pad_to_multiple_of: 8}", *A, 4),
    ],
)
def test_every_model_has_every_token_of_the_output(merge, said, donor, tokens, padding):
    folder = merge(said.replace("{folder}", str(merge.folder)))
    found = load_file(folder / SINGLE)
    for leaf in (EMBED, HEAD):
        rows = aligned(merge.models, leaf, tokens, padding)
        expected = 0.5 * rows["base"] + 0.3 * rows["a"] + 0.2 * rows["b"]
        np.testing.assert_allclose(found[leaf], expected, rtol=0, atol=1e-6)
    size = len(tokens) + padding
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == size
    written = json.loads((folder / "tokenizer.json").read_text())
    vocab = written["model"]["vocab"]
    vocab |= {entry["content"]: entry["id"] for entry in written["added_tokens"]}
    assert vocab == {token: number for number, token in enumerate(tokens)}
    union = tokens is UNION
    assert (folder / "vocab.json").exists() != union  # it would be the base's
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings == {"of": donor}


def test_a_tokens_settings_come_along_from_the_first_that_added_it(merge):
    folder = merge("tokenizer_source: union")
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [entry["content"] for entry in added] == ["<s>", "p", "q"]
    assert added[2] == {"id": 4, "content": "q", "special": False}
    assert added[1]["normalized"] and not added[1]["special"]


def test_blocks_of_any_size_have_the_bytes_of_one(merge):
    random = np.random.default_rng(3)
    source = open_checkpoint(str(merge.folder / "a")), EMBED
    other = open_checkpoint(str(merge.folder / "b")), EMBED
    places = np.stack([random.integers(0, 4, 40), random.integers(0, 3, 40)], 1)
    places[5:9, 0] = [0, 1, 2, 3]  # a run
    chosen = random.random((40, 2)) < 0.6
    chosen[5:9] = [True, False]
    rows = Rows([source, other], places, chosen, padding=3)
    whole = np.empty(43 * 6, np.float32)
    rows.read_into(0, whole)
    of = [merge.models[n][EMBED].astype(float) for n in "ab"]
    expected = [
        np.mean([x[p] for x, p, c in zip(of, at, take, strict=True) if c], axis=0)
        if take.any()
        else np.zeros(6)
        for at, take in zip(places, chosen, strict=True)
    ]
    expected += [np.mean(expected, axis=0)] * 3
    np.testing.assert_allclose(whole.reshape(43, 6), expected, rtol=0, atol=1e-6)
    for start, stop in random.integers(0, 43 * 6, (60, 2)):
        part = np.empty(max(stop - start, 0), np.float32)
        rows.read_into(int(start), part)
        assert np.array_equal(part, whole[start:stop])
    one = open_checkpoint(str(merge.folder / "base"))
    assert Rows([source, (one, EMBED)], places, chosen).abstract.dtype == np.float32


def test_another_tokenizer_is_another_merge(merge):
    said = "tokenizer_source: union\ndtype: bfloat16"
    folder = merge(said)
    assert load_file(folder / SINGLE)[EMBED].dtype == ml_dtypes.bfloat16
    before = (folder / SINGLE).read_bytes()
    assert (merge(said) / SINGLE).read_bytes() == before
    changed = tokenizer("a")
    changed["model"]["vocab"] = {"y": 1, "p": 0, "<s>": 2, "q": 3}
    (merge.folder / "a" / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="exists"):
        merge(said)
    (after,) = [merge(said, "again") / SINGLE]
    assert after.read_bytes() != before


@pytest.mark.parametrize(
    ("model", "content", "said"),
    [
        ("base", None, "holds no tokenizer.json"),
        ("a", "{}", "is no tokenizer: KeyError"),
        ("a", "[" * 100_000, "is no tokenizer"),
        ("a", '{"model": {"vocab": {"x": -1}}}', "an id that is no number"),
        ("base", '{"model": {"vocab": {"x": 7}}}', "leaves ids out"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_before_anything_is_made(
    merge, model, content, said, capsys
):
    path = merge.folder / model / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        merge("tokenizer_source: union")
    assert not (merge.folder / "out").exists()


def test_vocabularies_of_two_sizes_are_refused_without_it(merge, capsys):
    with pytest.raises(UserError, match="with tokenizer_source"):
        merge("")
    argv = ["merge", "--config", "merge/mergekit"]
    argv += [f"--config.merge_yaml={merge.folder / 'merge.yml'}"]
    assert main([*argv, f"--config.output={merge.folder / 'out'}"]) == 2
    assert "tokenizer_source" in capsys.readouterr().err
