"""Any rule, method or manifest is read, or refused in our own words and soon."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merging import UserError
from merging.merge import manifest, rules
from merging.runtime.storage import parse_size

EXAMPLES = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LEAVES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.mlp.weight" for i in range(3)),
    "lm_head.weight",
]
BIG = "9" * 400


def refused(work):
    """Return what `work` does, or None if it is refused; nothing else may happen."""
    try:
        return work()
    except UserError as error:
        assert 0 < len(str(error)) < 10_000
        assert str(error).replace("\n", "").isprintable()
        return None


PIECES = st.sampled_from(
    ["ties", "dare", "(", ")", "density", "scale", "weights", "scope", "=", ",", " "]
    + ["0.5", "1", "-1", "1e400", BIG, "'row'", "None", "True", "1j", "{}", "[]", "()"]
    + ["by_layer(", "by_layer(0.1, 0.5)", "(1, 2)", "\0", "\ud800", "x", "**", "\n"]
)
NUMBERS = st.sampled_from(["0.5", "-1", "2", "1e400", BIG, "None", "'a'", "1j", "()"])
NUMBERS |= st.floats().map(repr)
VALUES = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, min_size=1, max_size=3).map(lambda v: f"({', '.join(v)},)"),
    st.lists(NUMBERS, min_size=2, max_size=3).map(lambda v: f"by_layer({','.join(v)})"),
)
CALLS = st.builds(
    lambda name, values: f"{name}({', '.join(f'{k}={v}' for k, v in values.items())})",
    st.sampled_from(["ties", "dare", "average", "slerp", "task_arithmetic", "della"]),
    st.dictionaries(
        st.sampled_from(["density", "scale", "weights", "scope", "t", "seed", "x"]),
        VALUES,
        max_size=3,
    ),
)


@EXAMPLES
@given(text=CALLS | st.lists(PIECES, max_size=8).map("".join))
@example(text=f"ties(density={BIG})")
@example(text=f"ties(density=by_layer(0.1, {BIG}))")
@example(text="ties(density={[]})")
@example(text="ties(density=" + "(" * 9000)
@example(text="ties(density=" + "-" * 9000 + "1)")
def test_any_text_as_a_method(text):
    refused(lambda: rules.recipe(LEAVES, text))


PATTERN = st.lists(
    st.sampled_from(["m", "l", ".", "*", "+", "?", "(", ")", "|", "{9}", r"\d", "[a]"]),
    max_size=8,
).map("".join)


@EXAMPLES
@given(pattern=PATTERN | st.text(max_size=8), then=st.just("base") | CALLS)
@example(pattern="a{99999999999999999999}", then="base")
@example(pattern="(" * 3000, then="base")
@example(pattern="(a|a)" * 38 + "q", then="base")
@example(pattern="(.*)*x", then="base")
def test_any_rule(pattern, then):
    line = f"{pattern} => {then}"
    refused(lambda: rules.recipe(LEAVES, "average", [line]))


def test_the_rules_of_usual_merges_are_read():
    lines = [r"layers\.[01]\..*mlp => base", "embed|head => ties(density=0.5)"]
    found = rules.recipe(LEAVES, "average", lines)
    assert [found[leaf] is None for leaf in LEAVES] == [False, True, True, False, False]


@EXAMPLES
@given(
    text=st.text(max_size=9)
    | st.from_regex(r"[0-9.]{1,9}[KMGT]?i?B?", fullmatch=True)
    | st.integers()
)
@example(text=BIG)
@example(text="9" * 5000)
def test_any_text_as_a_size(text):
    found = refused(lambda: parse_size(text))
    assert found is None or 0 < found < 2**63


KEYS = st.sampled_from(["version", "leaves", "inputs", "settings", "uri", "files", "x"])
RECORD = {"version": manifest.VERSION, "inputs": [], "leaves": {}, "settings": {}}
ANY = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-2, 9), st.floats()),
        st.sampled_from(["", "a", "\0", "\x1b[1m", "a" * 64, 10**400]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place") / manifest.NAME


@EXAMPLES
@given(
    content=st.binary(max_size=64)
    | ANY.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(KEYS, ANY).map(lambda v: json.dumps(RECORD | v).encode())
)
@example(content=b"[" * 100_000)
@example(content=b'{"leaves": ' + b'{"a":' * 100_000)
@example(content=b'{"version": ' + b"9" * 5000 + b"}")
@example(content=b'{"version": 1e999}')
def test_any_bytes_as_a_manifest(place, content):
    place.write_bytes(content)
    assert refused(lambda: manifest.read(place)) is None
