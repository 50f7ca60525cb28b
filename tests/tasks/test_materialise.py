import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_suite

from merging.runtime.errors import UserError
from merging.tasks import materialise, store

LENGTH = 32


def text(suite, ids):
    return suite.tokenizer.decode(ids)


def test_pretraining_learns_every_token_and_the_end_mark(toy):
    tokens, weights = materialise(toy, "pretrain", "train", LENGTH)
    texts = toy_suite.documents(0, 25)
    assert tokens.shape == (20, LENGTH)
    assert [text(toy, row) for row in tokens] == texts[:20]
    lengths = [len(t.split()) + 1 for t in texts[:20]]
    np.testing.assert_array_equal(weights, np.arange(LENGTH) < np.c_[lengths])
    assert [row[n - 1] for row, n in zip(tokens, lengths, strict=True)] == [1] * 20


def test_validation_texts_follow_the_training_texts(toy):
    tokens, _ = materialise(toy, "pretrain", "validation", LENGTH)
    assert [text(toy, row) for row in tokens] == toy_suite.documents(0, 25)[20:]


@pytest.mark.parametrize("what", ["pair", "phrase", "copy", "instruct"])
def test_arrays_are_what_seqios_decoder_converter_makes(toy, what):
    """`DecoderFeatureConverter`: prefix LM with the loss on the targets only."""
    from merging.tasks.registration import register, seqio

    register(toy)
    made = seqio.DecoderFeatureConverter(pack=False)(
        seqio.get_mixture_or_task(toy.training(what)).get_dataset(
            split="train", shuffle=False
        ),
        {"inputs": LENGTH, "targets": LENGTH},
    )
    rows = list(made.as_numpy_iterator())
    tokens, weights = materialise(toy, what, "train", LENGTH)
    expected = np.stack([row["decoder_target_tokens"] for row in rows])
    np.testing.assert_array_equal(tokens, expected[:, :LENGTH])
    expected = np.stack([row["decoder_loss_weights"] for row in rows])
    np.testing.assert_array_equal(weights, expected[:, :LENGTH])


def test_a_mixture_holds_each_of_its_datasets_once(toy):
    parts = [materialise(toy, d, "train", LENGTH).tokens for d in ("colour", "pair")]
    tokens = materialise(toy, "pick", "train", LENGTH).tokens
    np.testing.assert_array_equal(tokens, np.concatenate(parts))
    assert toy.members("multitask") == ("colour", "pair", "copy", "bag")
    assert materialise(toy, "multitask", "test", LENGTH).tokens.shape[0] == 4 * 7


def test_drawing_repeats_datasets_at_equal_rates_and_gives_the_same_again(
    toy, tmp_path
):
    def drawn():
        found = store(toy, "pick", "train", LENGTH, tmp_path)
        return found.take(found.draw(0, 0, 400)).tokens

    colour = materialise(toy, "colour", "train", LENGTH).tokens
    tokens = drawn()
    colour = {row[: tokens.shape[1]].tobytes() for row in colour}
    share = np.mean([row.tobytes() in colour for row in tokens])
    assert tokens.shape[0] == 400
    assert 0.4 < share < 0.6
    np.testing.assert_array_equal(tokens, drawn())


def test_from_the_cache_no_tensorflow_is_imported(toy, tmp_path):
    made = materialise(toy, "pick", "train", LENGTH, cache_dir=tmp_path)
    program = (
        "import sys; from merging import tasks;"
        f"m = tasks.Generated('toy_suite', **{toy.source.settings});"
        "s = tasks.Suite('toy', m);"
        f"a = tasks.materialise(s, 'pick', 'train', {LENGTH}, cache_dir=sys.argv[1]);"
        "print(a.tokens.sum(), a.loss_weights.sum(), 'tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(toy_suite.__file__).parent), "PATH": ""},
    )
    tokens, weights, imported = result.stdout.split()
    assert int(tokens) == made.tokens.sum()
    assert int(weights) == made.loss_weights.sum()
    assert imported == "False"


def test_a_damaged_cache_file_is_made_again_with_a_warning(toy, tmp_path):
    first = materialise(toy, "pair", "train", LENGTH, cache_dir=tmp_path)
    (path,) = tmp_path.rglob("tokens")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="making it again"):
        second = materialise(toy, "pair", "train", LENGTH, cache_dir=tmp_path)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert list(tmp_path.rglob("tokens")) == [path]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("what", "split", "length", "said"),
    [
        ("pretrain", "train", 5, r"pretrain \(train\): example \d+: \d+ tokens, more"),
        ("pretrain", "test", LENGTH, "unknown split of pretrain 'test'"),
        ("pair", "training", LENGTH, "did you mean train"),
    ],
)
def test_what_cannot_be_read_is_named(toy, what, split, length, said):
    with pytest.raises(UserError, match=said):
        materialise(toy, what, split, length)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": " "}, r"copy \(train\): example 3: empty answer"),
        ({"inputs": "the lynx"}, r"copy \(train\): example 3: the word 'lynx'"),
    ],
)
def test_a_faulty_example_is_named_with_its_dataset(toy, monkeypatch, change, said):
    monkeypatch.setattr(
        toy_suite, "tamper", lambda d, i, row: row | change if i == 3 else row
    )
    with pytest.raises(UserError, match=said):
        materialise(toy, "copy", "train", LENGTH)
