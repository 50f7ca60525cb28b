import pytest

from merging.tasks.words import Words

WORDS = Words(("<pad>", "<eos>", "<unk>", "red", "blue"))


def test_encoding_gives_the_index_of_each_word():
    assert WORDS.encode(" blue  red ") == [4, 3]


@pytest.mark.parametrize("word", ["green", "<pad>", "<eos>", "Red"])
def test_a_word_outside_the_list_is_unknown_and_so_is_a_spelt_control_token(word):
    assert WORDS.encode(f"red {word}") == [3, 2]
    assert WORDS.unknown(["red", f"red {word}"]) == [(1, word)]


def test_decoding_stops_at_the_first_end_mark_and_drops_trailing_padding_only():
    assert WORDS.decode([3, 4, 1, 3]) == "red blue"
    assert WORDS.decode([3, 0, 4, 0, 0]) == "red <pad> blue"
    assert WORDS.decode([3, 99, -1]) == "red <unk> <unk>"
    assert WORDS.decode([]) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("red",), "starts with"),
        (("<pad>", "<eos>", "<unk>", "red", "red"), r"repeated words: \['red'\]"),
        (("<pad>", "<eos>", "<unk>", "dark red"), r"not one word: \['dark red'\]"),
    ],
)
def test_a_malformed_list_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        Words(words)
