"""Any config.json describes a decoder, or is refused in our own words."""

import json

import pytest
from family_cases import GOLDENS, NAMES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merging.models import hf as families
from merging.runtime.errors import UserError

EXAMPLES = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONGEST_MESSAGE = 10_000

CONFIGS = [json.loads((GOLDENS / name / "config.json").read_text()) for name in NAMES]
KEYS = sorted({key for config in CONFIGS for key in config} | {"rope_scaling"})
INNER = ["rope_type", "type", "factor", "rope_theta", "full_attention", "llama3"]
TEXTS = st.sampled_from(["", "\0", "\ud800", "silu", "llama3", "linear", "float16"])
NUMBERS = st.one_of(
    st.integers(-1, 9),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**400]),
    st.floats(),
    st.sampled_from([1e300, 5e-324]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(INNER), inner, max_size=3)
    ),
    max_leaves=6,
)
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)


def refused(work):
    """Return what `work` does, or None if it is refused; nothing else may happen."""
    try:
        return work()
    except UserError as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE
        assert str(error).replace("\n", "").isprintable()
        return None


def described(text):
    family, config = families.read_config(text)
    return families.leaves(family, config)


@EXAMPLES
@given(text=st.binary(max_size=64) | VALUES.map(json.dumps))
@example(text='{"architectures": ["LlamaForCausalLM"], "vocab_size": ' + "9" * 5000)
@example(text=json.dumps({"architectures": ["\x1b[1m" * 3000]}))
@example(text="[" * 100_000)
def test_any_bytes_as_a_config(text):
    assert refused(lambda: described(text)) is None


@EXAMPLES
@given(start=st.sampled_from(CONFIGS), changes=CHANGES)
@example(start=CONFIGS[0], changes={"layer_types": ["x"] * 9999})
@example(start=CONFIGS[1], changes={"num_hidden_layers": 10_000})
@example(start=CONFIGS[0], changes={"layer_types": [[], {}]})
@example(start=CONFIGS[0], changes={"query_pre_attn_scalar": 10**400})
def test_any_values_in_a_familys_config(start, changes):
    refused(lambda: described(json.dumps(start | changes)))


@EXAMPLES
@given(start=st.sampled_from(CONFIGS), key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_one_field(start, key, value):
    refused(lambda: described(json.dumps(start | {key: value})))


@pytest.mark.parametrize("name", NAMES)
def test_the_configs_themselves_are_described(name):
    assert described((GOLDENS / name / "config.json").read_text())["embed"]
