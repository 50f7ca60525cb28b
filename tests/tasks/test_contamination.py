import pytest

from merging.tasks import contamination
from merging.tasks.contamination import Overlap, check

LONG = " ".join(f"word{n}" for n in range(16))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["The mill shut!"], ["the  MILL\nshut"]),
        (["caf\u00e9 \uff21"], ["cafe\u0301 a"]),
        (["one", "two"], ["Two.", "One."]),
    ],
)
def test_case_punctuation_spaces_and_order_do_not_count(a, b):
    assert contamination.fingerprint(a) == contamination.fingerprint(b)


@pytest.mark.parametrize("b", [["one two"], ["one", "too"], ["one"], ["onetwo"]])
def test_other_words_do(b):
    assert contamination.fingerprint(["one", "two"]) != contamination.fingerprint(b)


def test_whole_examples_and_long_texts_are_found():
    evaluated = {
        "a": [["Is it red?", "Yes."], ["Is it blue?", "No."], [LONG, "q1"]],
        "b": [["Is it red?", "no"], ["is it red", "yes"]],
    }
    trained = {
        "x": iter([["is it red", "YES"], ["is it red", "perhaps"]]),
        "y": [[LONG.upper(), "another question"], [LONG, "and one more"]],
        "z": [["Is it blue?"], [LONG.rsplit(maxsplit=1)[0], "q1"]],
    }
    assert check(evaluated, trained) == [
        Overlap("a", "x", 1, 0, (0,)),
        Overlap("b", "x", 1, 0, (1,)),
        Overlap("a", "y", 0, 1, (2,)),
    ]
    assert check(evaluated, {}) == check({}, {"z": trained["z"]}) == []
