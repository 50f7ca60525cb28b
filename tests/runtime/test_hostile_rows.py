"""Any bytes are rows of results, or refused in our own words."""

import dataclasses
import gzip
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merging.runtime import results
from merging.runtime.errors import UserError
from merging.tasks import jsonlines

EXAMPLES = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROW = {
    **{"suite": "s", "family": "f", "size": "1x", "params": 9, "base": "pt"},
    **{"method": "ties", "parameters": {}, "K": 1, "subset": ["a"], "seed": 0},
    **{"dataset": "d", "category": "a", "split": "held_in", "metric": "accuracy"},
    **{"chance": 0.5, "merged": True, "value": 0.5, "value_of_expert": 1.0},
    **{"value_of_base": 0.2, "normalised": 0.5, "examples": 9, "wall_seconds": 1.0},
    **{"git_revision": "r", "config_hash": "c"},
}
KEYS = st.sampled_from([field.name for field in dataclasses.fields(results.Row)])
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 9), st.floats()),
    st.sampled_from(["", "a", "held_out", "base", "it", "\0", "\ud800", "\x1b[1m"]),
    st.sampled_from([2**63, 10**400, 1e13, "=cmd()", "x" * 999]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["scale", "a", ""]), inner, max_size=2)
    ),
    max_leaves=6,
)


def refused(work):
    """Return what `work` does, or None if it is refused; nothing else may happen."""
    try:
        return work()
    except UserError as error:
        assert 0 < len(str(error)) < 10_000
        assert str(error).replace("\n", "").isprintable()
        return None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "results.jsonl"


def rows(path, content):
    path.write_bytes(content)
    return refused(lambda: results.read(path))


@EXAMPLES
@given(content=st.binary(max_size=64) | VALUES.map(lambda v: json.dumps(v).encode()))
@example(content=b"\x1f\x8b" + b"\0" * 20)
@example(content=gzip.compress(b"[" * 10_000)[:-4])
@example(content=b"[" * 60_000)
@example(content=b"9" * 60_000)
@example(content=b'{"a": 1}\n' * 50)
def test_any_bytes_as_rows(path, content):
    assert not rows(path, content)
    for line in jsonlines.read(path):
        assert (line.record is None) == bool(line.error)


@EXAMPLES
@given(changes=st.dictionaries(KEYS, VALUES, max_size=2))
@example(changes={"value": 10**400})
@example(changes={"subset": [[]]})
@example(changes={"split": []})
@example(changes={"parameters": {"scale": 10**400}})
@example(changes={"value": 1e-300, "value_of_expert": 1e-320, "normalised": 1.0})
def test_any_values_of_a_row_are_read_and_written_again(path, changes):
    found = rows(path, (json.dumps(ROW | changes) + "\n").encode())
    if found:
        results.write(path, found)
        assert results.read(path) == found
    assert found or changes
