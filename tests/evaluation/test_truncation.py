"""Prompts that are too long lose their beginning, and that is counted."""

import dataclasses

import numpy as np
import pytest
import toy_suite

from merging import evaluation, tasks
from merging.evaluation.truncation import truncate
from merging.runtime.errors import UserError
from merging.tasks import Generated, Suite

VOCABULARY = len(toy_suite.VOCABULARY)


@pytest.fixture(scope="module")
def sets():
    suite = Suite("toy", Generated("toy_suite", test_examples=12, train_examples=1))
    return {s.dataset: s for s in tasks.load_suite(suite, "test")}


def texts(one):
    return [
        p[:n].tolist() for p, n in zip(one.prompts, one.prompt_lengths, strict=True)
    ]


def test_what_fits_stays_as_it_is(sets):
    for one in sets.values():
        assert truncate(one, 64, VOCABULARY) == (one, 0)


@pytest.mark.parametrize("opened", [True, False])
def test_all_choices_keep_the_same_end_of_a_prompt_that_is_too_long(sets, opened):
    one = dataclasses.replace(sets["phrase"], bos_id=0 if opened else None)
    shorter, cut = truncate(one, 19, VOCABULARY)
    # The longest choice has three tokens, of which the last is never read.
    room = 19 - 2 - opened
    before, after = texts(one), texts(shorter)
    assert after == [prompt[-room:] for prompt in before]
    long = [len(prompt) > room for prompt in before[::2]]
    assert cut == sum(long) and 0 < cut < 12
    assert shorter.continuations is one.continuations


def test_one_text_out_of_measure_widens_no_table(sets, monkeypatch):
    suite = Suite("toy", Generated("toy_suite", test_examples=12, train_examples=1))
    how = dict(datasets=["phrase", "copy"], context=19, vocab_size=VOCABULARY)
    asked = evaluation.requests(suite, "test", **how)
    for one in asked.sets:
        whole = sets[one.dataset.name]
        shorter, cut = truncate(whole, 19, VOCABULARY)
        assert texts(one.eval_set) == texts(shorter) and one.truncated == cut > 0
        assert one.eval_set.prompts.shape[1] == 20 < whole.prompts.shape[1]


def test_room_is_left_for_what_is_to_be_generated(sets):
    one = sets["copy"]
    shorter, cut = truncate(one, 20, VOCABULARY)
    assert one.max_new_tokens == 8
    assert max(shorter.prompt_lengths) == 20 - 8 and cut > 0


def test_tokens_that_the_model_does_not_have_are_refused(sets):
    largest = sets["copy"].prompts.max()
    assert truncate(sets["copy"], 64, largest + 1)[1] == 0
    with pytest.raises(
        UserError, match=f"copy: token {largest} is none of the model's"
    ):
        truncate(sets["copy"], 64, largest)


def test_answers_that_fill_the_context_are_refused(sets):
    with pytest.raises(UserError, match="copy: answers of 8 tokens leave no room"):
        truncate(sets["copy"], 8, VOCABULARY)


def test_an_empty_prompt_is_no_prompt_that_is_too_long(sets):
    one = sets["phrase"]
    empty = dataclasses.replace(one, prompt_lengths=np.zeros_like(one.prompt_lengths))
    shorter, cut = truncate(empty, 8, VOCABULARY)
    assert cut == 0 and shorter is empty
