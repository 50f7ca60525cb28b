"""A sweep's step, `merging.evaluate` and the command give one model one value."""

import dataclasses
import types
from pathlib import Path

import one_device
import pytest
import scored_models

import merging
from merging import tasks
from merging.cli.main import main
from merging.models import hf
from merging.runtime import results
from merging.runtime.errors import UserError
from merging.sweep import given, scoring

CONFIG = Path(__file__).parents[2] / "configs" / "evaluate" / "miniworld.py"
DATASETS = ("ropes", "copa")
EXAMPLES, CONTEXT, SHORT = 40, 256, 32


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    """One: that eight give the same values is held by test_scoring.py."""
    one_device.use(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    texts = tasks.suite("miniworld").source.generator.documents(0, 300)
    tokenizer = scored_models.byte_level(texts, 300)
    return scored_models.write(folder, tokenizer, width=16, context=CONTEXT)


@pytest.fixture(scope="module")
def suite(checkpoint):
    return tasks.suite(
        "miniworld", test_examples=EXAMPLES, tokenizer=str(checkpoint), chat=False
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def of_a_step(checkpoint, suite, data, context):
    """Return what a sweep's step finds with the checkpoint as its base."""
    settings = types.SimpleNamespace(suite=suite)
    decoder = given.decoder(str(checkpoint), suite.tokenizer, "float32", "float32")
    decoder = dataclasses.replace(decoder, max_length=context)
    _, params = hf.load(checkpoint)
    return scoring.tested(settings, decoder, params, DATASETS, data)


@pytest.fixture(scope="module")
def step(checkpoint, suite, data):
    return of_a_step(checkpoint, suite, data, CONTEXT)


def of_the_command(checkpoint, workdir, context):
    command = ["evaluate", "--config", str(CONFIG), "--workdir", str(workdir)]
    values = dict(checkpoint=checkpoint, datasets=",".join(DATASETS), context=context)
    values["suite.test_examples"] = EXAMPLES
    assert main([*command, *(f"--config.{k}={v}" for k, v in values.items())]) == 0
    return {row.dataset: row for row in results.read(workdir)}


def by_dataset(scores):
    return {score.dataset: score.value for score in scores}


@pytest.mark.parametrize(
    "context", [CONTEXT, pytest.param(SHORT, marks=pytest.mark.long)]
)
def test_every_way_to_evaluate_gives_the_same_values(
    checkpoint, suite, data, step, tmp_path, context
):
    whole = context == CONTEXT
    made = step if whole else of_a_step(checkpoint, suite, data, context)
    expected = made["test"]
    assert set(expected) == set(DATASETS) and len(set(expected.values())) > 1
    assert whole or expected != step["test"]  # a context that truncates shows
    how = dict(datasets=DATASETS, context=context)
    stored = merging.evaluate(checkpoint, suite, **how)
    assert by_dataset(stored) == expected
    truncated = sum(score.truncated for score in stored)
    assert truncated > EXAMPLES if context == SHORT else truncated == 0
    decoder, params = hf.load(checkpoint)
    shorter = dataclasses.replace(decoder, max_length=context)
    held = merging.evaluate((shorter, params), suite, datasets=DATASETS)
    assert by_dataset(held) == expected
    rows = of_the_command(checkpoint, tmp_path, context)
    assert {name: row.value for name, row in rows.items()} == expected
    assert set(made["targets"]) == set(DATASETS)
    for name, (log_p, tokens) in made["targets"].items():
        assert rows[name].target_tokens == tokens
        # Batches of another shape round otherwise.
        assert rows[name].target_log_p == pytest.approx(log_p, rel=1e-5)


def test_scores_come_in_the_suites_order_with_each_examples_counts(checkpoint, suite):
    how = dict(datasets=["copa", "ropes"], count=5, metrics=("accuracy_norm", "f1"))
    ropes, copa = merging.evaluate(checkpoint, suite, **how)
    assert (ropes.dataset, copa.dataset) == ("ropes", "copa")
    (only,) = copa.templates.values()
    assert list(only.values) == ["accuracy", "accuracy_norm"]
    assert only.counts["accuracy"].shape == (5, 1) and copa.examples == 5
    assert only.counts["accuracy"].mean() == copa.value
    assert copa.value == only.values["accuracy"]


@pytest.mark.parametrize("where", ["here", "in an object store"])
def test_a_workdir_keeps_what_is_finished_for_any_later_call(
    checkpoint, suite, tmp_path, monkeypatch, where, request
):
    if where != "here":
        request.getfixturevalue("object_store")
        tmp_path = "gs://store/scores"
    how = dict(datasets=["copa"], count=5, workdir=tmp_path)
    before = merging.evaluate(checkpoint, suite, **how)
    monkeypatch.setattr(merging.evaluation, "evaluate", None)
    again = merging.evaluate(str(checkpoint), suite, **how)
    assert by_dataset(again) == by_dataset(before)
    one, other = before[0].templates[""], again[0].templates[""]
    assert one.values == other.values and one.answers == other.answers
    for metric, counts in one.counts.items():
        assert counts.tolist() == other.counts[metric].tolist()


def test_a_model_in_memory_has_no_name_in_a_workdir(checkpoint, suite, tmp_path):
    with pytest.raises(UserError, match="a model in memory has no name"):
        merging.evaluate(hf.load(checkpoint), suite, workdir=tmp_path)
