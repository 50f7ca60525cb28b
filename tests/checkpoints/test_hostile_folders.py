"""Any adapter_config.json and any of Orbax's descriptions: read, or refused by us."""

import json
import shutil

import lora
import numpy as np
import orbax.checkpoint as v0
import pytest
from etils import epath
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merging import UserError, checkpoints
from merging.checkpoints import adapter_config

EXAMPLES = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = st.sampled_from(["a", "b/c", "", "\0", "\ud800", "..", "r", "é", "\x1b[1m"])
NUMBERS = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**44, 2**64, 10**400]), st.floats()
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=6,
)
BYTES = st.binary(max_size=64) | VALUES.map(lambda v: json.dumps(v).encode())


def refused(work):
    """Return what `work` does, or None if it is refused; nothing else may happen."""
    try:
        return work()
    except UserError as error:
        assert 0 < len(str(error)) < 10_000
        assert str(error).replace("\n", "").isprintable()
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


def read_config(place, content):
    (place / adapter_config.NAME).write_bytes(content)
    config = refused(lambda: adapter_config.read(epath.Path(place)))
    refused(lambda: adapter_config.base_named(epath.Path(place)))
    if config is not None:
        for module in (lora.UP, "a" * 40, ".", "x" * 900):
            refused(lambda m=module: (config.rank_of(m), config.scaling_of(m)))
    return config


PATTERN = st.lists(
    st.sampled_from(["a", ".", "*", "+", "?", "(", ")", "|", "{9}", r"\d", "[a]"]),
    max_size=12,
).map("".join)
KEYS = st.sampled_from([*lora.CONFIG, "use_rslora", "use_dora", "init_lora_weights"])


@EXAMPLES
@given(content=BYTES)
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 100_000)
@example(content=b'{"r": ' + b"9" * 5000 + b"}")
@example(content=b"[" + b"[]," * 2**20 + b"[]]")
def test_any_bytes_as_an_adapters_config(place, content):
    assert read_config(place, content) is None


@EXAMPLES
@given(changes=st.dictionaries(KEYS, VALUES, max_size=2))
def test_any_values_in_an_adapters_config(place, changes):
    found = read_config(place, json.dumps(lora.CONFIG | changes).encode())
    if not changes:
        assert found is not None and found.rank_of(lora.UP) == 4


@EXAMPLES
@given(
    ranks=st.dictionaries(PATTERN | NAMES, NUMBERS | st.just(2), max_size=3) | VALUES,
    alphas=st.dictionaries(PATTERN, st.just(1.5), max_size=3),
)
@example(ranks={"(a|a)" * 38 + "q": 2}, alphas={})
@example(ranks={"a?" * 30 + "a" * 30: 2}, alphas={})
@example(ranks={"a{99999999999999999999}": 2}, alphas={})
@example(ranks={"(" * 900: 2}, alphas={".*a.*b": 2})
def test_any_patterns_of_an_adapters_config(place, ranks, alphas):
    more = {"rank_pattern": ranks, "alpha_pattern": alphas}
    read_config(place, json.dumps(lora.CONFIG | more).encode())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder of Orbax with a leaf of eight numbers, and its descriptions."""
    folder = tmp_path_factory.mktemp("saved") / "x"
    v0.PyTreeCheckpointer(use_ocdbt=False).save(folder, {"a": np.arange(8.0)})
    return folder, *((folder / n).read_bytes() for n in ("_METADATA", "a/.zarray"))


def read_orbax(folder):
    source = checkpoints.open_checkpoint(folder)
    for path, leaf in source.abstract.items():
        if np.prod(leaf.shape, dtype=float) < 2**16:
            size = int(np.prod(leaf.shape))
            source.read_into(path, 0, np.empty(size, leaf.dtype))
    return source.skeleton


def with_descriptions(saved, listed=None, array=None):
    folder, *whole = saved
    for name, content, of in (("_METADATA", listed, 0), ("a/.zarray", array, 1)):
        (folder / name).write_bytes(whole[of] if content is None else content)
    return refused(lambda: read_orbax(folder))


def test_the_descriptions_themselves_are_read(saved):
    assert with_descriptions(saved) == {"a": "a"}


ENTRY = st.fixed_dictionaries(
    {
        "key_metadata": st.lists(
            st.fixed_dictionaries(
                {"key": NAMES | st.just("a") | VALUES, "key_type": NUMBERS}
            ),
            max_size=3,
        ),
        "value_metadata": st.fixed_dictionaries(
            {"value_type": st.sampled_from(["np.ndarray", "None", "Dict"]) | VALUES}
        ),
    }
)


def listing(keys):
    """Return a list of one leaf, of these keys."""
    entry = {"key_metadata": keys, "value_metadata": {"value_type": "np.ndarray"}}
    return json.dumps({"tree_metadata": {"a": entry}}).encode()


LISTED = st.fixed_dictionaries(
    {"tree_metadata": st.dictionaries(NAMES, ENTRY | VALUES, max_size=3) | VALUES},
    optional={"use_zarr3": VALUES, "use_ocdbt": VALUES, "more": VALUES},
).map(lambda v: json.dumps(v).encode())


@EXAMPLES
@given(content=BYTES | LISTED)
@example(content=b'{"tree_metadata":' + b"[" * 100_000)
@example(content=b'{"tree_metadata":{"a":' + b'{"a":' * 100_000)
@example(content=listing([{"key": "a", "key_type": 2}] * 65))
@example(content=listing([{"key": "\x1b[1m", "key_type": 2}]))
def test_any_list_of_leaves(saved, content):
    with_descriptions(saved, listed=content)


SIZES = st.lists(st.sampled_from([0, 1, 3, 8, 2**20, 2**44, 2**63, -1]), max_size=2)
ARRAY = st.fixed_dictionaries(
    {},
    optional={
        "chunks": SIZES,
        "shape": SIZES,
        "dtype": st.sampled_from(["<f4", "<f8", "|S9", "|O", "<M8[s]"]) | VALUES,
        "order": st.sampled_from(["C", "F"]) | VALUES,
        "compressor": VALUES | st.fixed_dictionaries({"id": NAMES, "level": NUMBERS}),
        "fill_value": VALUES,
        "filters": VALUES,
        "zarr_format": NUMBERS,
        "dimension_separator": NAMES,
    },
)


@EXAMPLES
@given(changes=ARRAY)
@example(changes={"chunks": [2**44]})
@example(changes={"chunks": [2**44], "shape": [2**44]})
@example(changes={"chunks": [2**44], "compressor": None})
def test_any_description_of_an_array(saved, changes):
    whole = json.loads(saved[2])
    with_descriptions(saved, array=json.dumps(whole | changes).encode())


@EXAMPLES
@given(content=BYTES)
def test_any_bytes_as_a_description_of_an_array(saved, content):
    assert with_descriptions(saved, array=content) is None


def test_any_bytes_as_a_chunk(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "x")
    with_descriptions((folder, *saved[1:]))
    whole = (folder / "a" / "0").read_bytes()
    for content in (b"", b"\0", whole[:-3], whole + b"\0", bytes(len(whole))):
        (folder / "a" / "0").write_bytes(content)
        assert refused(lambda: read_orbax(folder)) is None
