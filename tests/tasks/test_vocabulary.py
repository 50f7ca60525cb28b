import numpy as np
import pytest
import toy_suite

from merging.tasks.words import Words

WORDS = Words(toy_suite.VOCABULARY)


@pytest.fixture(scope="module")
def vocabulary():
    from merging.tasks.vocabulary import Vocabulary

    return Vocabulary(WORDS)


@pytest.mark.parametrize("text", ["the cat is red", " red  ? ", "", "a red <eos>"])
def test_tensorflow_encodes_as_python_does(vocabulary, text):
    ids = vocabulary.encode_tf(text).numpy()
    assert ids.tolist() == vocabulary.encode(text) == WORDS.encode(text)
    assert ids.dtype == np.int32


def test_tensorflow_decodes_as_python_does(vocabulary):
    ids = [*WORDS.encode("the red fox"), 1, 5]
    assert vocabulary.decode(ids) == "the red fox"
    assert vocabulary.decode_tf(np.array(ids)).numpy() == b"the red fox"


def test_vocabularies_of_the_same_words_are_equal(vocabulary):
    from merging.tasks.vocabulary import Vocabulary

    assert vocabulary == Vocabulary(WORDS)
    assert vocabulary != Vocabulary(Words(WORDS.words[:-1]))
    assert vocabulary.vocab_size == len(toy_suite.VOCABULARY)
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)


def test_tensorflow_sees_no_accelerator_and_objects_are_collected_again(vocabulary):
    import gc

    import tensorflow as tf

    assert gc.isenabled() and gc.get_freeze_count() > 100_000

    assert tf.config.get_visible_devices("GPU") == []
    assert tf.config.get_visible_devices("TPU") == []
