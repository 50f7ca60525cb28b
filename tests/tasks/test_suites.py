import dataclasses
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy_suite

from merging import tasks
from merging.runtime.errors import UserError
from merging.tasks import generated, miniworld, suites
from merging.tasks.suites import file_digests


def test_the_facts_of_a_suite_need_no_tensorflow():
    program = (
        "import sys; from merging import evaluation, tasks;"
        "s = tasks.suite('miniworld');"
        "print(len(s.datasets), len(s.categories), 'tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["23", "8", "False"]


def test_categories_are_the_held_in_ones_in_order(toy):
    assert toy.categories == ("pick", "echo")
    assert toy.dataset("pair").chance == 0.5


def test_names_in_seqio(toy):
    assert toy.training("pair") == "toy_0_pair"
    assert toy.training("pick") == "toy_0_category_pick"
    assert toy.training("pretrain") == "toy_0_pretrain"
    assert toy.evaluations("pair") == {"": "toy_0_pair_score_eval"}
    assert toy.evaluations("bag") == {"": "toy_0_bag"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: tasks.suite("minworld"), "unknown suite.*did you mean miniworld"),
        (lambda s: tasks.suite("miniworld", seed=1), "did you mean world_seed"),
        (lambda s: tasks.suite("miniworld", documents=0), "documents=0"),
        (lambda s: s.dataset("colours"), "unknown dataset.*did you mean colour"),
        (lambda s: s.training("multi"), "did you mean multitask"),
        (lambda s: s.evaluations("bags"), "did you mean bag"),
        (lambda s: s.examples("tests"), "did you mean test"),
    ],
)
def test_a_wrong_name_or_number_is_the_users_mistake(toy, call, said):
    with pytest.raises(UserError, match=said):
        call(toy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "pretrain"}, "'pretrain' is used twice"),
        ({"split": "heldin"}, "colour: split 'heldin'"),
        ({"metric": "perplexity"}, "colour: metric 'perplexity'"),
        ({"chance": 33.3}, "colour: chance 33.3"),
    ],
)
def test_a_suite_that_contradicts_itself_is_refused(monkeypatch, change, said):
    first, *rest = toy_suite.DATASETS
    monkeypatch.setattr(toy_suite, "DATASETS", (first._replace(**change), *rest))
    with pytest.raises(ValueError, match=said):
        tasks.Suite("toy", tasks.Generated("toy_suite"))


def test_the_digest_follows_settings_and_source(toy, tmp_path, monkeypatch):
    assert toy.digest == dataclasses.replace(toy).digest
    world_1 = dataclasses.replace(toy.source, world_seed=1)
    assert toy.digest != dataclasses.replace(toy, source=world_1).digest
    copy = tmp_path / "copied_toy_suite.py"
    shutil.copy(Path(toy_suite.__file__), copy)
    monkeypatch.syspath_prepend(tmp_path)
    copied = dataclasses.replace(toy.source, module="copied_toy_suite")
    before = dataclasses.replace(toy, source=copied).digest
    copy.write_text(copy.read_text() + "\n")
    assert dataclasses.replace(toy, source=copied).digest != before


def test_the_digest_follows_every_file_of_a_generator(toy, tmp_path, monkeypatch):
    copy = tmp_path / "copied_world"
    shutil.copytree(Path(miniworld.__file__).parent, copy)
    monkeypatch.syspath_prepend(tmp_path)
    source = tasks.Generated("copied_world")
    before = tasks.Suite("copied", source).digest
    for file in ("__init__.py", "world.py", "held_out.py"):
        (copy / file).write_text((copy / file).read_text() + "\n")
        changed = tasks.Suite("copied", source).digest
        assert changed != before
        before = changed


def test_the_digest_follows_the_version_and_no_other_code_of_ours(toy, monkeypatch):
    """An edit of a docstring in `merging/tasks` must not redo a sweep."""
    read = []

    def digests(paths):
        read.extend(paths)
        return file_digests(read[-1:])

    monkeypatch.setattr(generated, "file_digests", digests)
    before = dataclasses.replace(toy).digest
    assert read == [Path(toy_suite.__file__)]
    monkeypatch.setattr(suites, "VERSION", suites.VERSION + 1)
    assert dataclasses.replace(toy).digest != before


def test_a_suite_can_be_sent_to_another_process(toy):
    assert pickle.loads(pickle.dumps(toy)) == toy


def test_a_suite_of_some_categories_has_their_datasets_and_no_others():
    some = tasks.suite("miniworld", categories=("sentiment", "coreference"))
    names = [d.name for d in some.datasets]
    assert names == ["app_reviews", "imdb", "wsc", "winogrande"]
    assert some.categories == ("sentiment",)
    assert some.members("multitask") == ("app_reviews", "imdb")
    assert some.digest != tasks.suite("miniworld").digest
    with pytest.raises(UserError, match="coreference"):
        tasks.suite("miniworld", categories=("corefference",))
