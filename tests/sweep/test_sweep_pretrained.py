"""A sweep whose base is a checkpoint of a known family, with its own tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import one_device
import pytest
import tokenizers
from ml_collections import ConfigDict
from tolerance import decoder_length, rounding

from merging import checkpoints, models, sweep, tasks, training
from merging.analysis import of_sweep, rows
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.runtime import processes, results
from merging.runtime.errors import Preempted, UserError
from merging.sweep import given, groups, open_store, scoring, work
from merging.sweep.reading import read
from merging.sweep.steps import Grid, with_needs

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE that, as SmolLM2's, opens texts with nothing."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    world = tasks.suite("miniworld").source.generator
    made.train_from_iterator(world.documents(0, 300), trainer)
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny random Llama in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("given")
    described = folder / "described"
    described.mkdir()
    (described / "config.json").write_text(json.dumps(LLAMA))
    write_tokenizer(described)
    _, config = families.read_config(json.dumps(LLAMA))
    checkpoints.save(folder / "orbax", models.init(config, 0))
    return convert(
        str(folder / "orbax"),
        str(folder / "hf"),
        format="safetensors",
        auxiliary_files=str(described),
    )


def config(base: Path, **changes) -> ConfigDict:
    """Two experts of a given base, merged in two ways."""
    made = ConfigDict(
        {
            "suite": "miniworld",
            "data": {
                "world_seed": 2,
                "train_examples": 32,
                "validation_examples": 4,
                "test_examples": 8,
                "categories": (
                    "sentiment",
                    "paraphrase",
                    "word_sense_disambiguation",
                ),
            },
            "family": "tiny-llama",
            "sizes": ("6k",),
            "pretrained_bases": (str(base),),
            "bases": ("it",),
            "methods": ("average", "ties"),
            "experts_merged": (2,),
            "seeds": 1,
            "learning_rate": 1e-3,
            "learning_rate_exponent": 0.0,
            "batch_size": 8,
            "expert": {"steps": 7, "rate": 1.0},
            "scales": {"ties": (0.5, 1.0)},
            "densities": {},
            "workers": 1,
        }
    )
    made.update(changes)
    return made


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_device.use(patch)
        sweep(config(base), workdir)
    return workdir


@pytest.mark.long
def test_a_given_base_is_scored_and_its_experts_are_merged(finished):
    rows = results.read(finished)
    assert {r.method for r in rows} == {"base", "expert", "average", "ties"}
    assert {(r.family, r.size, r.base) for r in rows} == {("tiny-llama", "6k", "it")}
    assert len([r for r in rows if r.method == "base"]) == 5
    merged = [r for r in rows if r.method == "ties" and r.merged]
    assert len(merged) == 4 and all(r.value_of_expert is not None for r in merged)
    kinds = {path.name for path in (finished / "steps").iterdir()}
    assert kinds == {"data", "load", "expert", "merge"}


@pytest.mark.long
def test_a_sweep_of_a_given_base_is_analysed(finished, base, tmp_path):
    """The base has Hugging Face's names, its trained experts the decoder's."""
    asked = {"analysis": "sweep", "sweep": str(finished), "parts": ("geometry",)}
    out = tmp_path / "analysed"
    assert of_sweep.run(ConfigDict(asked), out)
    norms = {
        row.of[0]: row.value
        for row in rows.read(out, "sweep")["rows"]
        if row.quantity == "norm" and len(row.of) == 1
    }
    start = families.load(base)[1]
    (group,), _ = groups(finished)
    assert norms.keys() == group.experts.keys()
    for name, path in group.experts.items():
        params = checkpoints.restore(Path(path))
        steps = [
            np.asarray(a, np.float64) - np.asarray(b, np.float64)
            for a, b in zip(
                jax.tree.leaves(params), jax.tree.leaves(start), strict=True
            )
        ]
        norm = np.sqrt(sum(np.vdot(step, step) for step in steps))
        np.testing.assert_allclose(norms[name], norm, rtol=1e-6)
    assert not of_sweep.run(ConfigDict(asked), out)


def own_files(folder):
    """Write lines of two held-in categories, and of a held-out one to test on only."""
    lines = []
    for name, category, split in (
        ("tides", "sea", "held_in"),
        ("bells", "town", "held_in"),
        ("winds", "air", "held_out"),
    ):
        of = {"dataset": name, "category": category, "split": split}
        lines += [
            json.dumps(of | {"inputs": f"{name} {n}?", "target": f"at {n % 3}"})
            for n in range(12)
        ]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return str(folder / "mine.jsonl")


@pytest.mark.long
def test_own_files_need_no_validation_of_what_is_held_out(base, tmp_path):
    changes = {"suite": "jsonl", "methods": ("average",), "scales": {}}
    given = config(base, **changes, expert={"steps": 1, "rate": 1.0})
    given.data = ConfigDict({"files": (own_files(tmp_path),), "max_length": 48})
    sweep(given, tmp_path / "run")
    rows = results.read(tmp_path / "run")
    merged = {r.dataset for r in rows if r.method == "average"}
    assert merged == {"tides", "bells", "winds"}


@pytest.mark.long
def test_the_base_is_read_where_it_lies_and_not_copied(finished):
    (step,) = (finished / "steps" / "load").iterdir()
    assert [path.name for path in step.iterdir()] == ["output.json"]


@pytest.mark.long
def test_a_finished_sweep_of_a_given_base_does_nothing(finished, base, capsys):
    before = (finished / "results.jsonl").read_bytes()
    sweep(config(base), finished)
    assert "nothing to do" in capsys.readouterr().err
    assert (finished / "results.jsonl").read_bytes() == before


@pytest.mark.long
def test_experts_have_learned_and_are_float32(finished, base):
    start = families.load(base)[1]
    experts = sorted((finished / "steps" / "expert").iterdir())
    assert len(experts) == 2
    for expert in experts:
        params = checkpoints.restore(expert / "checkpoint")
        assert params["embed"].dtype == np.float32
        assert not np.array_equal(params["embed"], start["embed"])
        own = tasks.open_tokenizer(str(expert / "checkpoint"))
        assert own.digest == tasks.open_tokenizer(str(base)).digest


@pytest.mark.long
def test_a_large_models_training_survives_a_kill_while_it_is_scored(
    base, finished, tmp_path, monkeypatch
):
    chosen = config(base, **{"expert": {"steps": 20, "rate": 1.0}})
    store, _ = open_store(chosen, tmp_path / "run")
    shutil.copytree(finished / "data", store.data)
    experiment = read(chosen)
    expert = Grid(experiment).expert("6k", "it", "sentiment", 0)

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "scores", kill)
    with pytest.raises(KeyboardInterrupt):
        work.execute(expert, experiment, store, lambda *_: None)
    assert (store.partial(expert) / "training" / "step_00000020").is_dir()


def test_keys_follow_what_the_checkpoint_holds_and_not_where_it_lies(base, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    before = Grid(read(config(base))).base("6k", "it")
    assert Grid(read(config(moved))).base("6k", "it").key == before.key
    changed = tmp_path / "changed"
    shutil.copytree(base, changed)
    weights = changed / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Grid(read(config(changed))).base("6k", "it").key != before.key


def test_a_checkpoint_that_changed_meanwhile_is_refused(base, tmp_path):

    with pytest.raises(UserError, match="has changed since"):
        given.load(str(base), "0" * 16, "float32")


def test_no_text_is_opened_by_a_token_that_its_tokenizer_never_puts_there(base):
    settings = read(config(base))
    assert settings.suite.tokenizer.bos_id is None
    assert settings.decoder("6k").bos_id is None


def test_a_family_of_ours_is_scored_as_it_is_trained(base):
    changes = {"family": "tiny", "sizes": ("1x",), "bases": ("pt",)}
    changes |= {"pretrained_bases": (), "pretraining": {"steps": 3}}
    own = config(base, dtype="bfloat16", **changes)
    own.data.tokenizer = str(base)
    settings = read(own)
    decoder = settings.decoder("1x")
    assert settings.suite.tokenizer.bos_id is None and decoder.bos_id is None
    trained = Grid(settings).base("1x", "pt").settings
    assert trained["hyperparameters"]["dtype"] == decoder.dtype == "bfloat16"
    assert trained["decoder"]["dtype"] == "bfloat16"
    settings = read(config(base, **changes))
    assert settings.decoder("1x").bos_id == settings.suite.tokenizer.bos_id == 0


def test_a_scoring_that_is_asked_to_stop_stops_before_its_next_batch(
    base, tmp_path, monkeypatch
):
    made = []

    def evaluate(asked, predictor, tick, **_):
        for batch in range(3):
            made.append(batch)
            tick(128.0)

    asked = iter([False, True])
    monkeypatch.setattr(processes, "preempted", lambda: next(asked))
    one = dict(dataset=SimpleNamespace(category="a"), references=False)
    one = SimpleNamespace(**one, eval_set=SimpleNamespace(examples=8))
    requests = SimpleNamespace(sets=(one,))
    monkeypatch.setattr(scoring, "_requests", lambda *_: requests)
    monkeypatch.setattr(scoring.evaluation, "evaluate", evaluate)
    experiment = read(config(base))
    model = experiment.decoder("6k"), {"embed": np.zeros(1)}
    with pytest.raises(Preempted):
        scoring.scores(experiment, *model, "test", ["imdb"], tmp_path)
    assert made == [0, 1]


def test_the_steps_are_a_given_base_its_experts_and_merges(base):
    targets = Grid(read(config(base))).targets()
    kinds = [step.kind for step in with_needs(targets)]
    assert kinds == ["data", "load", "data", "expert", "expert", "merge", "merge"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrained_bases": ("nowhere",)}, "nowhere.*merging convert"),
        ({"bases": ("pt", "it")}, "name that one"),
        ({"sizes": ("6k", "7k")}, "1 checkpoints are given for 2 sizes"),
        ({"pretraining": {"steps": 5}}, "pretrained bases are not trained"),
        ({"dtype": "float31"}, "float32"),
        ({"pretrained_bases": ()}, "tokenizer|pretraining"),
    ],
)
def test_what_does_not_go_with_a_given_base_is_refused(base, change, message):
    with pytest.raises(UserError, match=message):
        read(config(base, **change))


def test_a_tokenizer_larger_than_the_model_is_refused(base, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    described = {**LLAMA, "vocab_size": 100}
    (small / "config.json").write_text(json.dumps(described))
    _, decoder = families.read_config(json.dumps(described))
    made = tmp_path / "orbax"
    checkpoints.save(made, models.init(decoder, 0))
    convert(
        str(made), str(small / "hf"), format="safetensors", auxiliary_files=str(small)
    )
    chosen = config(small / "hf")
    chosen.data.tokenizer = str(base)
    with pytest.raises(UserError, match="only 100"):
        read(chosen)


@pytest.mark.long
def test_a_text_without_opening_mark_is_learned_from_its_second_token_on():
    _, opened = families.read_config(json.dumps(LLAMA))
    unopened = dataclasses.replace(opened, bos_id=None)
    params, rng = models.init(opened, 0), np.random.default_rng(0)
    tokens = rng.integers(3, 500, (4, 9)).astype(np.int32)
    marked = np.insert(tokens, 0, opened.bos_id, axis=1)
    weights = rng.random((4, 9), np.float32)
    # A text that spells its opening mark out, and one that is opened by the model.
    spelled = np.insert(weights, 0, 1.0, axis=1)
    expected = training.loss(opened, params, tokens, weights)
    found = training.loss(unopened, params, marked, spelled)
    length = decoder_length(
        layers=2, width=16, inner=16, mlp=24, context=10, vocabulary=512
    )
    atol = rounding(length, float(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    other = training.loss(unopened, params, tokens, weights)
    assert abs(float(other - expected)) > max(1e-3, 3 * atol)
