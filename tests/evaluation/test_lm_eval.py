"""Our model in lm-evaluation-harness, against plain forward passes."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import scored_models

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[lm-eval]'"
)
from lm_eval.api.instance import Instance

from merging import models
from merging.cli.main import main
from merging.evaluation import lm_eval, lm_eval_parsing
from merging.models import hf
from merging.runtime.errors import UserError

CONTEXT = 32
WORDS = "the cat sat on a mat and so did no dog at all but one".split()


def text(seed, count):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = scored_models.byte_level([text(i, 40) for i in range(30)], 280)
    place = tmp_path_factory.mktemp("harness") / "model"
    return scored_models.write(place, tokenizer, width=16, context=CONTEXT, scale=2)


@pytest.fixture(scope="module")
def lm(folder):
    return lm_eval.MergingLM(str(folder), mesh=None, batch_size=4)


@pytest.fixture(scope="module")
def logits(folder):
    """`ids` -> log p [len(ids), V] of what follows each, by one forward pass."""
    config, params = hf.load(folder)
    run = jax.jit(functools.partial(models.forward, config, params))

    def of(ids):
        # The model opens a text itself, and is asked about what follows that.
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : len(ids) - 1] = ids[1:]
        assert ids[0] == config.bos_id
        return np.asarray(jax.nn.log_softmax(run(row)))[0, : len(ids)]

    return of


def requests(kind, *arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def encoded(lm, content):
    codec = lm._tokenizer
    return [codec.bos_id, *codec.encode(content)]


def expected(lm, logits, context, continuation):
    """Log p and whether greedy, of one pair that is parted where the harness does."""
    start = len(encoded(lm, context.rstrip())) if context else 1
    ids = encoded(lm, context + continuation)
    begin = max(0, len(ids) - 1 - CONTEXT)
    assert begin == 0  # what is cut does not begin with the model's opening
    table = logits(ids[:-1])
    rows = range(start - 1, len(ids) - 1)
    log_p = sum(float(table[i, ids[i + 1]]) for i in rows)
    return log_p, all(int(np.argmax(table[i])) == ids[i + 1] for i in rows)


def test_log_likelihoods_are_those_of_plain_forward_passes(lm, logits):
    context = text(1, 6)
    pairs = [(context, f" {text(seed, n)}") for seed, n in ((2, 1), (3, 4), (4, 2))]
    pairs += [("", text(5, 3)), (f"{text(6, 4)} ", text(7, 2)), (text(8, 3), " cat")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs))
    for answer, pair in zip(found, pairs, strict=True):
        log_p, greedy = expected(lm, logits, *pair)
        assert answer == (pytest.approx(log_p, rel=1e-4), greedy)


def test_what_generation_gives_is_greedy_and_what_it_does_not_is_not(lm):
    settings = {"until": [], "max_gen_toks": 1}
    contexts = [text(seed, 6) for seed in range(12)]
    made = lm.generate_until(requests("x", *((c, settings) for c in contexts)))
    pairs = [
        (context, one)
        for context, one in zip(contexts, made, strict=True)
        if one.isascii()
        and encoded(lm, context + one) == encoded(lm, context) + encoded(lm, one)[1:]
        and len(encoded(lm, one)) == 2  # a token that is read as it was made
    ]
    assert len(pairs) > 2
    found = lm.loglikelihood(requests("x", *pairs))
    assert [greedy for _, greedy in found] == [True] * len(pairs)
    others = [(context, chr(ord(one[0]) ^ 1)) for context, one in pairs]
    found = lm.loglikelihood(requests("x", *others))
    assert [greedy for _, greedy in found] == [False] * len(pairs)


def test_a_pair_that_is_too_long_loses_the_beginning_for_itself_alone(lm):
    long, short = text(9, 60), " cat"
    alone = lm.loglikelihood(requests("loglikelihood", (long, short)))
    longer = (long, f" {text(3, 8)}")
    both = lm.loglikelihood(requests("loglikelihood", longer, (long, short)))
    assert both[1] == (pytest.approx(alone[0][0], rel=1e-5), alone[0][1])
    assert both[0][0] < both[1][0]
    with pytest.raises(UserError, match="at most the model's 32"):
        lm.loglikelihood(requests("loglikelihood", ("a", f" {text(3, 80)}")))


def test_a_rolling_log_likelihood_predicts_every_token_once(lm, logits):
    short, long = text(10, 9), text(11, 30)
    found = lm.loglikelihood_rolling(requests("x", (short,), (long,)))
    # As the harness has it, the opening is predicted from itself.
    ids = encoded(lm, short)
    table = logits([ids[0], *ids[:-1]])
    whole = sum(float(table[i, one]) for i, one in enumerate(ids))
    assert found[0] == pytest.approx(whole, rel=1e-4)
    ids = encoded(lm, long)
    assert CONTEXT < len(ids) < 2 * CONTEXT
    table = logits([ids[0], *ids[: CONTEXT - 1]])
    first = sum(float(table[i, one]) for i, one in enumerate(ids[:CONTEXT]))
    assert found[1] < first < found[1] / 3


def greedy(lm, logits, context, count):
    ids = encoded(lm, context)
    start = len(ids)
    for _ in range(count):
        ids.append(int(np.argmax(logits(ids)[-1])))
        if ids[-1] in lm._tokenizer.end_ids:
            break
    return lm._tokenizer.decode(ids[start:])


def test_texts_are_greedy_and_end_before_the_first_stop(lm, logits, monkeypatch):
    contexts = [text(seed, 5) for seed in range(12, 15)]
    plain = [greedy(lm, logits, context, 12) for context in contexts]
    whole = {"until": None, "max_gen_toks": 12}
    found = lm.generate_until(requests("x", *((c, whole) for c in contexts)))
    assert found == plain and min(map(len, plain)) > 8
    # A letter is in a token; three may be in several, and are looked for on the way.
    monkeypatch.setattr(lm_eval, "_LOOK", 4)
    asked = []
    original = lm._answers
    monkeypatch.setattr(
        lm, "_answers", lambda rows, what: asked.append(rows) or original(rows, what)
    )
    for stop in (plain[0][4], plain[0][3:6]):
        settings = {"until": [stop, "no such thing"], "max_gen_toks": 12}
        texts = lm.generate_until(requests("x", *((c, settings) for c in contexts)))
        assert texts == [one.partition(stop)[0] for one in plain]
        assert len(texts[0]) <= 4
    # A special token has no text, and ends one all the same.
    special = lm._tokenizer.spelled([lm._tokenizer.bos_id])
    assert lm._tokenizer.bos_id in lm._ends((special,)) and special == "<|begin|>"
    assert [one.call[0] for one in asked][:2] == [4, 8]
    assert len(asked[1].requests) <= len(asked[0].requests) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True}, "generated greedily"),
        ({"temperature": 0.7}, "generated greedily"),
        ({"max_gen_toks": CONTEXT}, "no room for a prompt"),
    ],
)
def test_what_can_not_be_generated_is_refused(lm, settings, said):
    with pytest.raises(UserError, match=said):
        lm.generate_until(requests("x", ("a", settings)))


def test_devices_change_nothing(folder, lm):
    other = lm_eval.MergingLM(checkpoint=str(folder), mesh="2x2x2", batch_size="auto")
    pairs = [(text(seed, 5), f" {text(seed + 50, 2)}") for seed in range(5)]
    mine = lm.loglikelihood(requests("x", *pairs))
    theirs = other.loglikelihood(requests("x", *pairs))
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    np.testing.assert_allclose(*([a for a, _ in x] for x in (mine, theirs)), rtol=1e-5)
    for mesh in ("2x", "1x1x1x1", "two"):
        with pytest.raises(UserError, match="write DATAxFSDPxTENSOR"):
            lm_eval.MergingLM(str(folder), mesh=mesh)


def test_chat_is_the_tokenizers_template_opened_once(folder, tmp_path):
    other = tmp_path / "chat"
    shutil.copytree(folder, other)
    (other / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    lm = lm_eval.MergingLM.__new__(lm_eval.MergingLM)
    lm._model = lm_eval.job.open_model(folder)._replace(tokenizer=str(other))
    lm._tokenizer = lm_eval.tasks.open_tokenizer(str(other))
    said = [dict(role="user", content="a cat"), dict(role="assistant", content="sat ")]
    asked = lm.apply_chat_template(said[:1])
    assert asked == "<|begin|>[user] a cat\n[assistant]"
    begun = lm.apply_chat_template(said, add_generation_prompt=False)
    assert begun == "<|begin|>[user] a cat\n[assistant] sat"
    (ids,) = lm._encode([asked])
    assert ids.count(lm._tokenizer.bos_id) == 1
    assert "[assistant]" in lm.chat_template(True) and lm.chat_template() == ""


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A folder with a task of two examples."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    lines = [
        {"inputs": text(i, 4), "choices": [text(20 + i, 2), text(30 + i, 2)]}
        for i in range(2)
    ]
    data = tmp_path / "cats.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    task = {
        "task": "cats",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{inputs}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "cats.yaml").write_text(json.dumps(task))
    return tmp_path


def test_the_command_writes_the_harness_own_files(folder, local, capsys):
    flags = [f"--config.checkpoint={folder}", f"--config.include_path={local}"]
    flags += ["--config.batch_size=8", "--workdir", str(local / "w")]
    command = ["evaluate", "--config", "evaluate/lm_eval", *flags]
    assert main(command) == 2
    assert "no tasks: --config.tasks=" in capsys.readouterr().err
    data = local / "cats.jsonl"
    data.rename(local / "dogs.jsonl")
    assert main([*command, "--config.tasks=cats"]) == 2
    assert "error: task cats can't be loaded" in capsys.readouterr().err
    (local / "dogs.jsonl").rename(data)
    assert main([*command, "--config.tasks=c*s"]) == 0
    assert "|cats " in capsys.readouterr().out
    (path,) = (local / "w").glob("*/results_*.json")
    record = json.loads(path.read_text())
    assert record["model_source"] == "merging" and record["task_hashes"]["cats"]
    assert record["model_name"] == str(folder)
    date = path.stem.removeprefix("results")
    samples = (path.parent / f"samples_cats{date}.jsonl").read_text().splitlines()
    assert len(samples) == 2 and json.loads(samples[0])["filtered_resps"]


@pytest.fixture
def its_tasks(tmp_path, monkeypatch):
    """A folder as the harness's own, and the files in it that were parsed."""
    from lm_eval.tasks import _index

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, read, parsed = tmp_path / "tasks", _index.load_yaml, []
    root.mkdir()
    (root / "_shared").write_text("output_type: multiple_choice\nrepeats: 2\n")
    (root / "cats.yaml").write_text("include: _shared\ntask: cats\ntag: [a, b]\n")
    (root / "dogs.yaml").write_text("task: dogs\ndoc_to_text: !function utils.f\n")
    (root / "days.yaml").write_text("task: days\nmetadata: {1: 2026-11-29}\n")
    (root / "none.yaml").write_text("- no task\n")
    (root / "nowhere").symlink_to(root / "gone")

    def reading(path, **words):
        parsed.append(path.name)
        return read(path, **words)

    monkeypatch.setattr(_index, "load_yaml", reading)
    return root, parsed


def indexed(root):
    from lm_eval.tasks._index import TaskIndex

    with lm_eval_parsing.once(root):
        return TaskIndex.build([root])


def test_task_files_are_parsed_once_and_again_when_one_changes(its_tasks):
    root, parsed = its_tasks
    first = indexed(root)
    said = {"output_type": "multiple_choice", "repeats": 2}
    assert first["cats"].cfg == said | {"task": "cats", "tag": ["a", "b"]}
    assert len(parsed) == 4
    parsed.clear()
    first["cats"].cfg["tag"].append("c")
    second = indexed(root)
    # A date is no JSON, and what is no task is asked again.
    assert parsed == ["days.yaml", "none.yaml"]
    assert second["cats"].cfg["tag"] == ["a", "b"]
    assert second["days"].cfg == first["days"].cfg
    assert second["dogs"].cfg["doc_to_text"] == str(root / "utils.f")
    (root / "_shared").write_text("output_type: generate_until\n")
    parsed.clear()
    assert indexed(root)["cats"].cfg["output_type"] == "generate_until"
    assert len(parsed) == 4


def test_a_damaged_cache_of_task_files_is_none(its_tasks, tmp_path):
    root, parsed = its_tasks
    whole = indexed(root)
    (kept,) = (tmp_path / "cache" / "merging" / "lm_eval").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    parsed.clear()
    assert indexed(root) == whole and len(parsed) == 4


def test_a_template_is_compiled_once_and_only_for_our_command(its_tasks):
    from lm_eval import utils

    before = utils.env.from_string
    with lm_eval_parsing.once(its_tasks[0]):
        assert utils.env.from_string("{{x}}") is utils.env.from_string("{{x}}")
        assert utils.apply_template("{{x}}!", {"x": 1}) == "1!"
    assert utils.env.from_string == before
