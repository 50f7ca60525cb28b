import textwrap

import pytest
from ml_collections import ConfigDict

from merging.runtime import config as configs
from merging.runtime.errors import UserError

EXAMPLE = """
    from ml_collections import ConfigDict

    def get_config(name="small"):
        config = ConfigDict()
        config.name = name
        config.seed = 1
        config.rate = 0.5
        config.resume = True
        config.sizes = ("1x", "8x", "24x")
        config.scales = (0, 0.5)
        config.counts = (2, 4)
        config.none = None
        config.grid = ConfigDict({"density": 0.2, "pairs": ((1, 2), (3, 4))})
        return config
"""


@pytest.fixture
def write(tmp_path):
    def write(text=EXAMPLE, name="example.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def refusal(spec, overrides=None):
    with pytest.raises(UserError) as caught:
        configs.load(spec, overrides)
    return str(caught.value)


def test_the_argument_after_the_colon_reaches_get_config(write):
    path = write()
    assert configs.load(path).name == "small"
    assert configs.load(f"{path}:large").name == "large"
    assert configs.split_spec(f"{path}:a:b")[1] == "a:b"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "1e3", "1e3"),
        ("seed", "-7", -7),
        ("rate", "1", 1.0),
        ("resume", "False", False),
        ("sizes", "1x,8x", ("1x", "8x")),
        ("sizes", "('1x', '8x')", ("1x", "8x")),
        ("sizes", "64x", ("64x",)),
        ("sizes", "(64x,)", ("64x",)),
        ("sizes", "()", ()),
        ("scales", "1,2", (1.0, 2.0)),
        ("counts", "[2, 8]", (2, 8)),
        ("none", "3", 3),
        ("none", "text", "text"),
        ("grid.density", "1e-1", 0.1),
        ("grid.pairs", "((5, 6),)", ((5, 6),)),
    ],
)
def test_an_override_is_read_as_the_type_it_replaces(write, key, text, value):
    config = configs.load(write(), {key: text})
    found = configs.leaves(config)[key]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [*map(type, found)] == [*map(type, value)]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("seed", "1.5", "a whole number"),
        ("rate", "fast", "a number"),
        ("resume", "1", "true or false"),
        ("counts", "2,four", "values like a whole number, separated by commas"),
        ("sizes", "1x,,8x", "values like text"),
        ("grid.pairs", "1,2", "a tuple like ((1, 2), (3, 4))"),
        ("grid.pairs", "((1,", "a tuple like"),
    ],
)
def test_a_wrong_type_is_refused_with_the_one_expected(write, key, text, expected):
    assert f"--config.{key}={text}: expected {expected}" in refusal(
        write(), {key: text}
    )


def test_every_wrong_override_is_listed_at_once(write):
    message = refusal(write(), {"seed": "x", "grid.densty": "1", "rate": "y"})
    assert "seed=x" in message and "rate=y" in message
    assert "'grid.densty': did you mean grid.density" in message


def test_an_override_of_a_section_names_its_keys(write):
    assert "grid.density, grid.pairs" in refusal(write(), {"grid": "1"})


def test_the_loaded_config_is_locked_in_every_section(write):
    config = configs.load(write(), {"seed": "2"})
    with pytest.raises((AttributeError, KeyError)):
        config.sede = 3
    with pytest.raises((AttributeError, KeyError)):
        config.grid.densty = 0.3


def test_the_hash_ignores_the_order_of_keys_and_nothing_else():
    one = ConfigDict({"a": 1, "b": {"c": (1, 2), "d": "x"}})
    two = ConfigDict({"b": {"d": "x", "c": (1, 2)}, "a": 1})
    others = [
        {"a": 2, "b": {"c": (1, 2), "d": "x"}},
        {"a": 1.0, "b": {"c": (1, 2), "d": "x"}},
        {"a": 1, "b": {"c": (2, 1), "d": "x"}},
        {"a": 1, "b": {"c": (1, 2)}, "d": "x"},
    ]
    hashes = {configs.config_hash(ConfigDict(other)) for other in others}
    assert configs.config_hash(one) == configs.config_hash(two) == "2e8f1ec94f37"
    assert len(hashes) == 4 and configs.config_hash(one) not in hashes


def test_an_overridden_config_hashes_like_one_written_so(write):
    changed = write(EXAMPLE.replace("seed = 1", "seed = 5"), "changed.py")
    overridden = configs.load(write(), {"seed": "5"})
    assert configs.config_hash(overridden) == configs.config_hash(configs.load(changed))


def test_a_missing_file_names_its_neighbours(write, tmp_path):
    write(name="tiny.py")
    message = refusal(str(tmp_path / "tinny.py"))
    assert "did you mean tiny.py?" in message
    assert "there is no file" in refusal(str(tmp_path / "nowhere" / "tiny.py"))
    assert "is a Python file" in refusal(str(tmp_path / "tiny.json"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", "defines no get_config()"),
        ("def get_config():\n    return {}", "returned dict"),
        (
            "def get_config(:\n    pass",
            "broken.py:1: the config failed with SyntaxError",
        ),
        (
            "\nimport no_such_thing",
            "broken.py:2: the config failed with ModuleNotFound",
        ),
        (
            "def get_config():\n\n    return 1 / 0",
            "broken.py:3: the config failed with",
        ),
        ("def get_config(arg):\n    return arg", "needs an argument"),
    ],
)
def test_a_broken_file_is_the_users_to_mend(write, text, expected):
    assert expected in refusal(write(text, "broken.py"))


def test_an_argument_for_a_config_that_takes_none_is_refused(write):
    path = write("def get_config():\n    return 1", "plain.py")
    assert "takes no argument, and got 'x'" in refusal(f"{path}:x")


def test_values_that_are_not_data_are_refused_by_name(write):
    path = write(EXAMPLE.replace("rate = 0.5", "rate = print"))
    assert "rate is a builtin_function_or_method" in refusal(path)


def test_more_than_forty_leaves_are_refused(write):
    text = """
        from ml_collections import ConfigDict

        def get_config(count):
            return ConfigDict({"a": {f"k{i}": i for i in range(int(count))}})
    """
    path = write(text)
    assert len(configs.leaves(configs.load(f"{path}:40"))) == 40
    assert "41 values, and a config may have 40" in refusal(f"{path}:41")


def test_a_config_may_import_its_neighbour_even_a_second_one_of_that_name(tmp_path):
    import sys

    for folder, seed in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        base = textwrap.dedent(EXAMPLE).replace("seed = 1", f"seed = {seed}")
        (tmp_path / folder / "neighbour.py").write_text(base)
        path = tmp_path / folder / "config.py"
        path.write_text("from neighbour import get_config\n")
        assert configs.load(str(path)).seed == seed
    assert "neighbour" not in sys.modules
    assert not any(entry.startswith(str(tmp_path)) for entry in sys.path)
