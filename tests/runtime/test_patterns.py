"""Expressions of strangers: what is taken fits as Python has it, and soon."""

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging import UserError
from merging.runtime.patterns import LONGEST_TEXT, MOST_WAYS, Pattern

NAME = "model.layers.12.self_attn.q_proj"


@pytest.mark.parametrize(
    ("text", "ways"),
    [
        (r"^model\.layers\.(0|2)\.mlp.*", 1),
        (r"layers\.[01]\.", 1),
        (r"layers\.(0|1|10|11)\.", 2),
        (r"norm|embed", 1),
        (r"(?:self_attn|mlp)\.(q|k|v)_proj$", 1),
        (r"layers\.\d+\.mlp\..*_proj", 2**10),
        (r".*\.layers\.[0-9]+\.self_attn\..*_proj", 2**17),
        (r"^.*layers\.\d+\.mlp\.experts\.\d+\.w\d+", 2**16),
        (r"(?i)norm", 1),
        (r"(?i)(ab|AB|cd)x", 3),
        (r"(?P<kind>mlp|attn)\.", 1),
        (r"^model\-x/w(?![0-9])", 1),
        (r"a{3}b{1,2}c?", 4),
        (r"(ab)?[cd]", 2),
        (r"a+?b", 2**7),
        (r"(.|a)(b\d|b)", 4),
        (r"\w\b[]a][^]a]", 1),
    ],
)
def test_the_ways_of_what_is_usual_are_counted(text, ways):
    assert Pattern(text).ways == ways


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(a|a)" * 38 + "q", "too many ways"),
        ("a?" * 30 + "a" * 30, "too many ways"),
        (".*.*.*x", "too many ways"),
        ("(?i)" + "(ab|AB)" * 25 + "x", "too many ways"),
        ("a{0,999}" * 3, "too many ways"),
        ("(a+)+$", r"'\+\$', which is not taken"),
        ("(a|a)*", r"'\*', which is not taken"),
        ("(ab){3}", "which is not taken"),
        (r"(a)\1", "which is not taken"),
        ("a{99999999999999999999}", "which is not taken"),
        ("(?<=a)b", "which is not taken"),
        ("a**", "which is not taken"),
        ("[a", "which is not taken"),
        ("(" * 300, "which is not taken"),
        ("(", "leaves a group open"),
        ("a)", "a group that is not open"),
        ("[b-a]", "malformed: bad character range"),
        ("x{3,1}", "malformed: min repeat greater"),
        (r"\q", "malformed: bad escape"),
        ("a" * 1001, "no line of at most 1000 characters"),
        ("a\x1b", "no line of at most"),
    ],
)
def test_what_may_take_long_or_is_none_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        Pattern(text)


def test_it_is_found_anywhere_or_fits_an_end_after_a_dot():
    assert Pattern(r"attn\.q").found_in(NAME)
    assert not Pattern("^attn").found_in(NAME)
    assert Pattern("q_pro.").ends(NAME)
    assert Pattern(r"^model\.layers\..*").ends(NAME)
    assert not Pattern("_proj").ends(NAME)
    assert not Pattern("^q_proj").ends(NAME)


def test_the_worst_that_is_taken_ends_soon():
    worst = Pattern(r".*a.*b\d*c")
    assert worst.ways == MOST_WAYS
    start = time.monotonic()
    assert not worst.found_in(("ab1234567." * 20)[:LONGEST_TEXT])
    assert not worst.ends("a." * (LONGEST_TEXT // 2))
    assert time.monotonic() - start < 20
    assert Pattern(".*norm|.*bias").found_in("layer_1700000000.norm")
    with pytest.raises(UserError, match="longer than the 200 characters"):
        worst.found_in("a" * (LONGEST_TEXT + 1))
    with pytest.raises(UserError, match="a number of more digits than"):
        worst.found_in("a.123456789")


PIECES = st.sampled_from(
    ["a", "b", ".", "*", "+", "?", "(", ")", "|", "[ab]", r"\.", r"\d", "{2}", "{1,}"]
    + ["^", "$", "(?:", "(?!", "\\", "[", "{", "\n", "é"]
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(PIECES, max_size=8).map("".join), st.text("ab.1", max_size=9))
def test_any_expression_fits_as_pythons_does_or_is_refused(text, name):
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    assert pattern.found_in(name) == (re.search(text, name) is not None)
    peft = re.fullmatch(rf"(?:.*\.)?(?:{text})", name)
    assert pattern.ends(name) == (peft is not None)
