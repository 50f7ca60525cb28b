"""The tables of suite t0 and what they render, without TensorFlow.

`python tests/tasks/test_t0_tables.py` writes the golden renderings anew.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from merging.cli import main
from merging.runtime.errors import UserError
from merging.tasks import templates
from merging.tasks.t0 import page, rendering, tables
from merging.tasks.t0.entries import cut

GOLDEN = Path(__file__).parent / "goldens" / "t0.txt"
PAGE = Path(__file__).parents[2] / "docs" / "t0.md"

TABLE = """
about = "a"
category = "c"
split = "held_in"
metric = "accuracy"
chance = 0.5
[source]
tfds = ["x"]
examples = { train = 9 }
[parts]
train = "train[:80%]"
validation = "train[80%:90%]"
test = "train[90%:]"
[fields]
text = { type = "text" }
list = { type = "texts" }
role = { type = "text", at = "kind", words = { cause = "why", effect = "then" } }
label = { type = "integer" }
[answer]
choices = ["No", "Yes"]
right = "label"
[example]
text = "t"
[prompts.one]
inputs = "{text}"
[prompts.two]
inputs = "{text}?"
[prompts.three]
inputs = "{role}: {text}\\n{options}"
"""


def renderings():
    shown = [
        page.shown(entry, prompt, rendering.checked(entry, entry.example))
        for entry in tables.every().values()
        for prompt in entry.prompts.values()
    ]
    return "\n\n".join(shown) + "\n"


def test_every_prompt_renders_as_it_was_reviewed():
    assert renderings() == GOLDEN.read_text("utf-8")


def test_the_page_is_what_the_tables_say(capsys):
    assert main.main(["tasks", "list", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text("utf-8")


def test_there_are_16_held_in_and_7_held_out_datasets_in_12_categories():
    entries = tables.every().values()
    held_in = [e for e in entries if e.split == "held_in"]
    assert (len(held_in), len(entries) - len(held_in)) == (16, 7)
    categories = {
        c: sum(e.category == c for e in held_in) for c in _categories(held_in)
    }
    assert categories == dict.fromkeys(_categories(held_in), 2) and len(categories) == 8
    assert len(_categories(entries)) == 12


def _categories(entries):
    return dict.fromkeys(e.category for e in entries)


def test_no_prompt_stands_twice_within_a_dataset():
    for entry in tables.every().values():
        texts = {prompt.inputs for prompt in entry.prompts.values()}
        assert len(texts) == len(entry.prompts) >= 3


def test_chance_is_one_over_the_number_of_choices():
    for entry in tables.every().values():
        for prompt in entry.prompts.values():
            columns = rendering.checked(entry, entry.example)
            made = rendering.render(entry, prompt, columns)
            if entry.ranked:
                assert entry.chance == pytest.approx(1 / len(made.choices), abs=1e-4)
            else:
                assert entry.chance == 0 and made.choices == []


@pytest.mark.parametrize(
    ("part", "size", "expected"),
    [
        ("train", 7, ("train", 0, 7)),
        ("train[:95%]", 400, ("train", 0, 380)),
        ("train[95%:]", 400, ("train", 380, 400)),
        ("train_xl[90%:95%]", 30, ("train_xl", 27, 28)),
    ],
)
def test_a_part_is_cut_to_the_nearest_example(part, size, expected):
    assert cut(part, size) == expected


def test_a_value_is_shown_and_never_read_as_a_template():
    hostile = "{label} {0} {text.__class__} {{x}} %s ${x}"
    assert templates.fill("<{text}> {a.b}", {"text": hostile}) == f"<{hostile}> {{a.b}}"
    assert templates.slots("{one} {two.x} {} {three!r} {four}") == ("one", "four")


def test_choices_words_and_the_right_one_come_out_of_the_fields():
    entry = tables.parse("x", TABLE)
    record = {"text": " long ", "list": ["a"], "kind": "effect", "label": 1}
    made = rendering.render(entry, entry.prompts["three"], _raw(entry, record))
    assert made == ("then: long\n- No\n- Yes", "Yes", ["No", "Yes"], 1)
    listed = tables.parse(
        "x", TABLE.replace('choices = ["No", "Yes"]', 'choices="list"')
    )
    record |= {"list": ["p", "q", "r"], "label": 2}
    made = rendering.render(listed, listed.prompts["one"], _raw(listed, record))
    assert made == ("long", "r", ["p", "q", "r"], 2)


@pytest.mark.parametrize("label", [-2, -1, 2])
def test_a_label_beside_the_choices_makes_no_right_one(label):
    entry = tables.parse("x", TABLE)
    record = {"text": "t", "list": [], "kind": "cause", "label": label}
    made = rendering.render(entry, entry.prompts["one"], _raw(entry, record))
    assert (made.targets, made.label) == ("", -1)


def test_a_long_text_keeps_its_first_words_and_their_line_breaks():
    table = TABLE.replace(
        'text = { type = "text" }', 'text={type="text",first_words=3}'
    )
    entry = tables.parse("x", table)
    record = {"text": "one\ntwo  three four", "list": [], "kind": "cause", "label": 0}
    made = rendering.render(entry, entry.prompts["one"], _raw(entry, record))
    assert made.inputs == "one\ntwo  three"
    columns = _raw(entry, record | {"text": "one\ntwo three"})
    made = rendering.render(entry, entry.prompts["one"], columns)
    assert made.inputs == "one\ntwo three"


def _raw(entry, record):
    return rendering.checked(entry, record)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "1"}, "label must be a whole number, not str"),
        ({"label": True}, "label must be a whole number, not bool"),
        ({"label": 1 << 70}, "label must be a whole number"),
        ({"text": None}, "text must be text, not NoneType"),
        ({"list": ["a", 1]}, "list must be a list of texts"),
        ({"kind": "other"}, "role is 'other', and may be cause, effect"),
    ],
)
def test_a_record_of_another_shape_is_refused(change, said):
    entry = tables.parse("x", TABLE)
    record = {"text": "t", "list": [], "kind": "cause", "label": 0} | change
    with pytest.raises(ValueError, match=said):
        rendering.render(entry, entry.prompts["three"], _raw(entry, record))
    with pytest.raises(ValueError, match="no field .label. .there: text, list, kind"):
        _raw(entry, {"text": "t", "list": [], "kind": "cause"})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('about = "a"', 'abuot = "a"', "about"),
        ('split = "held_in"', 'split = "in"', "split 'in'"),
        ('metric = "accuracy"', 'metric = "f1"', "metric f1 with right = 'label'"),
        ('inputs = "{text}?"', 'inputs = "{txt}"', "prompt two: {txt} is no field"),
        ("{options}", "{list}", "the list {list} needs `join` or `pick`"),
        ('["No", "Yes"]', '["No", "No"]', "2 choices, needs two that differ"),
        ('right = "label"', 'right = "lable"', "right = 'lable' is no field"),
        ('test = "train[90%:]"', 'test = "tests"', "test = 'tests' is cut from a part"),
        ('test = "train[90%:]"', 'test = "train[:x]"', "is no part like 'train'"),
        ('[prompts.two]\ninputs = "{text}?"', "", "2 prompts, needs 3"),
        ('list = { type = "texts" }', 'list = { type = "txts" }', "type 'txts'"),
        (
            'list = { type = "texts" }',
            'list = {type="texts", a=1}',
            "key of field list",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(old, new, said):
    assert old in TABLE
    with pytest.raises(ValueError) as caught:
        tables.parse("x", TABLE.replace(old, new))
    assert said in str(caught.value)


def test_an_unknown_dataset_or_prompt_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean copa"):
        tables.entry("copaa")
    with pytest.raises(UserError, match="did you mean story"):
        tables.entry("copa").prompt("storey")


def test_the_list_and_an_example_need_no_tensorflow():
    code = (
        "import sys; from merging.cli.main import main\n"
        "main(['tasks', 'list']); main(['tasks', 'show', 'copa'])\n"
        "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert sum(line.startswith(("copa  ", "qqp  ")) for line in lines) == 2
    assert sum(line.startswith("--- copa, prompt ") for line in lines) == 3
    assert "[right] The noon bell stayed silent." in lines
    assert lines[-1] == "False False"


def test_the_miniworld_is_listed_and_shown(capsys):
    assert main.main(["tasks", "list", "--suite", "miniworld"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and lines[0].split()[:2] == ["dataset", "split"]
    assert "hellaswag held_out sentence_completion accuracy 0.25".split() in [
        line.split() for line in lines
    ]
    assert main.main(["tasks", "show", "copa", "--suite", "miniworld"]) == 0
    out = capsys.readouterr().out
    assert out.count("--- copa ---") == out.count("[right] ") == 3
    assert out.count("[choice] ") == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show"], "needs the name of a dataset"),
        (["show", "cpoa"], "did you mean copa"),
        (["list", "copa"], "takes no dataset"),
        (["prepare"], "needs --data_dir DIR"),
        (["prepare", "--data_dir", "x", "--suite", "t1"], "did you mean t0"),
        (["prepare", "--suite", "miniworld"], "it has no data to fetch"),
        (["show", "cpoa", "--suite", "miniworld"], "did you mean copa"),
        (["list", "--suite", "jsonl"], "suite jsonl is files of your own"),
        (["lst"], "invalid choice: 'lst'"),
        (["show", "copa", "--data_dir", "nowhere"], "there is no such directory"),
    ],
)
def test_a_wrong_command_is_the_users_mistake(capsys, argv, said):
    assert main.main(["tasks", *argv]) == 2
    assert said in capsys.readouterr().err


if __name__ == "__main__":
    GOLDEN.write_text(renderings(), "utf-8")
