"""`merging evaluate`, from checkpoints to rows, on one to eight devices."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import one_device
import pytest
import scored_models
import together
import tokenizers

from merging import evaluation, models, report, tasks
from merging.cli.main import main
from merging.evaluation import bootstrap, export, job, scores, store, tables
from merging.evaluation.requests import reference_requests
from merging.models import hf as families
from merging.runtime import processes, results
from merging.tasks import rows
from merging.tasks.metrics import METRICS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "evaluate" / "miniworld.py"
DATASETS = ("ropes", "mrpc", "copa", "hellaswag")
EXAMPLES = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models of one tokenizer, each evaluated once."""
    folder = tmp_path_factory.mktemp("scoring")
    texts = tasks.suite("miniworld").source.generator.documents(0, 300)
    tokenizer = scored_models.byte_level(texts, 300)
    for name, seed in (("a", 0), ("b", 1)):
        scored_models.write(folder / name, tokenizer, seed=seed, width=16)
        assert evaluate(folder, name) == 0
    return folder


def tokenizer_of(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def evaluate(folder, model, workdir=None, every_device=False, **values):
    """Run the command and return its status; `values` replace the config's."""
    with pytest.MonkeyPatch.context() as patch:
        if not every_device:
            one_device.use(patch)
        return main(arguments(folder, model, workdir, **values))


def arguments(folder, model, workdir=None, **values):
    settings = {
        "checkpoint": folder / model,
        "datasets": ",".join(DATASETS),
        "suite.test_examples": EXAMPLES,
        "bootstrap.resamples": 50,
        "metrics": "accuracy_norm,rouge_l,bleu",
    } | {key.replace("__", "."): value for key, value in values.items()}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    place = workdir or folder / f"scores_{model}"
    return ["evaluate", "--config", str(CONFIG), "--workdir", str(place), *flags]


def values(workdir):
    return {row.dataset: row.value for row in results.read(workdir)}


def copy(made, tmp_path, without=()):
    """Return a copy of model a's workdir, some of its finished datasets left out."""
    shutil.copytree(made / "scores_a", tmp_path / "w")
    for name in without:
        for path in (tmp_path / "w" / "tasks").glob(f"{name}-*"):
            path.unlink()
    return tmp_path / "w"


def finished(workdir):
    return sorted(path.name for path in (workdir / "tasks").glob("*-*.json"))


@pytest.fixture
def evaluated(monkeypatch):
    """The names of the datasets that are evaluated from here on."""
    names = []
    original = evaluation.evaluate

    def counted(*arguments, datasets, **how):
        names.extend(datasets)
        return original(*arguments, datasets=datasets, **how)

    monkeypatch.setattr(evaluation, "evaluate", counted)
    return names


def log_likelihood(model, prompt, choice):
    """Return log p of a choice's ids behind those of a prompt, by one forward pass."""
    config, params = model
    sequence = np.zeros(200, np.int32)
    ids = [*prompt, *choice]
    sequence[1 : 1 + len(ids)] = ids
    forward = jax.jit(models.logits, static_argnums=0)
    log_p = jax.nn.log_softmax(forward(config, params, sequence[None])[0])
    return sum(float(log_p[len(prompt) + i, id]) for i, id in enumerate(choice))


@pytest.mark.parametrize("dataset", ["mrpc", "hellaswag"])
def test_a_value_is_that_of_plain_forward_passes_over_every_choice(made, dataset):
    model = families.load(made / "a")
    suite = tasks.suite("miniworld", test_examples=EXAMPLES, tokenizer=str(made / "a"))
    (one,) = tasks.load_suite(
        suite, "test", datasets=[dataset], cache_dir=tasks.kept_for_user()
    )
    sizes = zip(one.prompt_lengths, one.continuation_lengths, strict=True)
    scores = [
        log_likelihood(model, one.prompts[i, :start], one.continuations[i, :size])
        for i, (start, size) in enumerate(sizes)
    ]
    right = []
    for example in range(one.examples):
        mine = np.flatnonzero(one.groups == example)
        right.append(one.targets[mine[int(np.argmax(np.array(scores)[mine]))]][1])
    assert len(right) == EXAMPLES
    assert values(made / "scores_a")[dataset] == pytest.approx(np.mean(right))
    rows = {row.dataset: row for row in results.read(made / "scores_a")}
    correct = [target[1] for target in one.targets]
    row, log_p = rows[dataset], float(np.array(scores)[correct].sum())
    assert row.target_log_p == pytest.approx(log_p, rel=1e-4)
    assert row.target_tokens == one.continuation_lengths[correct].sum() > EXAMPLES
    assert row.cross_entropy == pytest.approx(-log_p / row.target_tokens, rel=1e-4)
    assert one.bos_id == 0 and one.continuation_lengths.max() > 1


def test_where_texts_are_generated_the_loss_is_of_their_references(made):
    model = families.load(made / "a")
    suite = tasks.suite("miniworld", test_examples=EXAMPLES, tokenizer=str(made / "a"))
    (one,) = tasks.load_suite(
        suite, "test", datasets=["ropes"], cache_dir=tasks.kept_for_user()
    )
    sizes = zip(one.prompt_lengths, one.continuation_lengths, strict=True)
    log_p = sum(
        log_likelihood(model, one.prompts[i, :start], one.continuations[i, :size])
        for i, (start, size) in enumerate(sizes)
    )
    (row,) = [r for r in results.read(made / "scores_a") if r.dataset == "ropes"]
    assert not one.ranked and row.target_tokens == one.continuation_lengths.sum()
    assert row.target_log_p == pytest.approx(log_p, rel=1e-4)


def test_a_reference_is_scored_no_further_than_texts_are_generated(made, tmp_path):
    suite = tasks.suite("miniworld", test_examples=3, tokenizer=str(made / "a"))
    (one,) = tasks.load_suite(suite, "test", datasets=["ropes"], cache_dir=tmp_path)
    short = dataclasses.replace(one, max_new_tokens=2)
    asked = reference_requests(suite.dataset("ropes"), short, 0)
    assert [len(r.choices[0]) for r in asked.requests] == [2, 2, 2]


@pytest.mark.parametrize("suite", ["jsonl", "miniworld"])
def test_a_chat_models_prompts_stand_in_its_template(
    made, tmp_path, suite, capsys, monkeypatch
):
    one_device.use(monkeypatch)
    folder = shutil.copytree(made / "a", tmp_path / "a")
    flags = ["--workdir", str(tmp_path / "w"), f"--config.checkpoint={folder}"]
    if suite == "jsonl":
        flags += [f"--config.suite.files={tmp_path / 'mine.jsonl'}"]
    else:
        flags += ["--config.datasets=copa", "--config.suite.test_examples=24"]
    of = {"dataset": "copa", "category": "made_up", "split": "held_out"}
    module = tasks.suite("miniworld").source.generator
    keys = ("inputs", "choices", "label")
    examples = [
        {key: example[key] for key in keys}
        for example in module.examples("copa", "test", 0, 24)
    ]
    lines = [json.dumps(of | example) for example in examples]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    config = ["evaluate", "--config", str(CONFIG.with_stem(suite)), *flags]
    assert main(config) == 0
    plain = counts(tmp_path / "w")
    assert main([*config, "--config.suite.chat=true"]) == 2
    assert "holds no chat template" in capsys.readouterr().err
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{{ bos_token }}Q: {{ messages[0]['content'] }}\nA: "
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main([*config, "--config.suite.chat=true"]) == 0
    model = families.load(folder)
    codec = tokenizer_of(folder)
    ids = lambda text: codec.encode(text, add_special_tokens=False).ids  # noqa: E731
    right = []
    for example in examples:
        prompt = ids(f"Q: {example['inputs']}\nA: ")
        both = [ids(f"Q: {example['inputs']}\nA: {c}") for c in example["choices"]]
        scores = [log_likelihood(model, prompt, b[len(prompt) :]) for b in both]
        right.append(float(np.argmax(scores) == example["label"]))
    assert counts(tmp_path / "w") == right != plain


def counts(workdir):
    """Return 1 or 0 for every example of an evaluation of one dataset."""
    (record,) = store.present(workdir)
    (only,) = record.score.templates.values()
    return only.counts["accuracy"][:, 0].tolist()


def test_rows_say_what_was_evaluated_and_are_read_by_the_report(made, tmp_path):
    rows = {row.dataset: row for row in results.read(made / "scores_a")}
    assert set(rows) == set(DATASETS)
    copa = rows["copa"]
    config, params = families.load(made / "a")
    assert copa.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert copa.size == f"{copa.params / 1e3:.3g}K" and copa.family == "llama"
    assert (copa.method, copa.K, copa.base, copa.seed) == ("base", 0, "pt", 0)
    assert (copa.suite, copa.metric, copa.chance) == ("miniworld", "accuracy", 0.5)
    assert copa.examples == EXAMPLES and 0 < copa.wall_seconds < 60
    assert copa.value_of_base == copa.value and copa.normalised == 1
    assert copa.value_of_expert is None
    page = report.report(rows.values(), tmp_path / "report")
    assert "copa" in page.read_text()


def test_the_same_command_again_evaluates_nothing(made, evaluated, capsys):
    before = (made / "scores_a" / results.FILE).read_bytes()
    assert evaluate(made, "a", batch_size=8) == 0
    assert evaluated == []
    printed = capsys.readouterr().out
    assert "hellaswag" in printed and "Padding took" in printed
    lines = before.decode().splitlines()
    again = (made / "scores_a" / results.FILE).read_text().splitlines()
    strip = [json.loads(line) | {"config_hash": ""} for line in lines]
    assert [json.loads(line) | {"config_hash": ""} for line in again] == strip


def test_another_workdir_finds_the_rows_that_the_first_one_read(
    made, tmp_path, monkeypatch
):
    reads = []
    original = rows._read

    def counted(suite, task, *how):
        reads.append(task)
        return original(suite, task, *how)

    monkeypatch.setattr(rows, "_read", counted)
    assert evaluate(made, "a", tmp_path / "again") == 0
    assert reads == []
    assert values(tmp_path / "again") == values(made / "scores_a")
    other = {"tokenizers": str(tmp_path)}  # which no earlier run of tests has had
    monkeypatch.setattr(rows.revision, "versions", lambda *names: other)
    assert evaluate(made, "a", tmp_path / "other", datasets="copa") == 0
    assert len(reads) == 1 and "copa" in reads[0]


def test_where_no_rows_can_be_kept_they_are_read(made, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert evaluate(made, "a", tmp_path / "w", datasets="copa") == 0
    assert values(tmp_path / "w")["copa"] == values(made / "scores_a")["copa"]


def test_a_compilation_is_worth_fewer_tokens_of_a_larger_model(made):
    small = job.open_model(made / "a").parameters
    assert job.compile_cost(small) == 10 * job.compile_cost(10 * small) > 10**5


def test_neither_batches_nor_devices_change_a_value(made, tmp_path):
    changed = dict(batch_size=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    # One of texts, and one of choices.
    workdir = copy(made, tmp_path, without=["ropes", "copa"])
    assert evaluate(made, "a", workdir, every_device=True, **changed) == 0
    assert values(workdir) == values(made / "scores_a")


def test_a_killed_evaluation_goes_on_where_it_was(
    made, tmp_path, evaluated, monkeypatch
):
    workdir = copy(made, tmp_path, without=DATASETS)
    save = store.save

    def killed(place, key, record):
        save(place, key, record)
        if record.score.dataset == DATASETS[1]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", killed)
        assert evaluate(made, "a", workdir) == 130
    assert evaluated == list(DATASETS[:2]) and len(finished(workdir)) == 2
    assert evaluate(made, "a", workdir) == 0
    assert evaluated == list(DATASETS)
    assert values(workdir) == values(made / "scores_a")


def test_sigterm_ends_between_two_batches_and_says_how_to_go_on(
    made, tmp_path, monkeypatch, capsys
):
    workdir = copy(made, tmp_path, without=["copa"])
    monkeypatch.setattr(processes, "preempted", lambda: True)
    assert evaluate(made, "a", workdir) == 75
    assert "to continue:\n  merging evaluate" in capsys.readouterr().err
    assert not any(name.startswith("copa") for name in finished(workdir))


def test_a_damaged_file_is_made_again(made, tmp_path, evaluated):
    workdir = copy(made, tmp_path)
    (path,) = (workdir / "tasks").glob("copa-*")
    path.write_text(path.read_text()[:-20])
    assert evaluate(made, "a", workdir) == 0
    assert evaluated == ["copa"]
    assert values(workdir) == values(made / "scores_a")


@pytest.mark.parametrize(
    "changed",
    [
        dict(count=5),
        dict(metrics="accuracy_per_token"),
        dict(context=64),
        dict(suite__world_seed=3),
    ],
    ids=str,
)
def test_what_values_depend_on_makes_another_task(made, tmp_path, evaluated, changed):
    workdir = copy(made, tmp_path)
    assert evaluate(made, "a", workdir, datasets="copa", **changed) == 0
    assert evaluated == ["copa"]
    (row,) = results.read(workdir)
    assert row.examples == changed.get("count", EXAMPLES)


def test_prompts_longer_than_the_context_are_counted(made, tmp_path, capsys):
    workdir = copy(made, tmp_path)
    assert evaluate(made, "a", workdir, datasets="copa", context=24) == 0
    printed = capsys.readouterr().out
    (path,) = (
        set((workdir / "tasks").glob("copa-*"))
        - set((made / "scores_a" / "tasks").glob("copa-*"))
        - {workdir / "tasks" / n for n in finished(made / "scores_a")}
    )
    score = json.loads(path.read_text())["score"]
    cut = score["templates"][""]["truncated"]
    assert cut == score["truncated"]
    assert 0 < cut <= EXAMPLES
    assert f"copa: {cut} of {EXAMPLES} prompts were longer than the model's" in printed


def test_a_row_is_held_against_another_evaluation(made, tmp_path):
    labels = dict(labels__method="ties", labels__K=2, labels__subset="x,y")
    workdir = tmp_path / "w"
    shutil.copytree(made / "scores_b", workdir)
    assert evaluate(made, "b", workdir, base_results=made / "scores_a", **labels) == 0
    base = values(made / "scores_a")
    for row in results.read(workdir):
        assert row.value_of_base == base[row.dataset]
        assert (row.method, row.K, row.subset) == ("ties", 2, ("x", "y"))
        if row.split == "held_out":
            assert row.normalised == pytest.approx(row.value / base[row.dataset])


def test_a_row_is_not_held_against_other_examples(made, tmp_path, capsys):
    other, workdir = copy(made, tmp_path), tmp_path / "b"
    shutil.copytree(made / "scores_b", workdir)
    assert evaluate(made, "a", other, datasets="copa", suite__world_seed=3) == 0
    assert evaluate(made, "b", workdir, base_results=other) == 2
    assert "copa: the base's value is of other examples" in capsys.readouterr().err
    # Rows alone know how many examples there were.
    rows = other / results.FILE
    assert evaluate(made, "b", workdir, base_results=rows) == 0
    assert "base_results: rows alone do not say" in capsys.readouterr().out


def test_two_evaluations_are_compared_on_the_same_examples(made, capsys, tmp_path):
    a, b = made / "scores_a", made / "scores_b"
    out = ["--out", str(tmp_path)]
    assert main(["evaluate", "--compare", str(a), str(b), *out]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"Report: {tmp_path / 'index.html'}"
    assert f"({a})" in (tmp_path / "index.html").read_text("utf-8")
    # A model's own page lies in its workdir.
    page = (a / "report" / "index.html").read_text("utf-8")
    assert "copa (accuracy)" in page
    assert "<dd>merging evaluate --config " in page and f"--workdir {a}</dd>" in page
    assert "<dt>Model: run with</dt><dd>python 3." in page
    found = {line.split()[0]: line.split() for line in lines[3:]}
    assert set(found) == {*DATASETS, "mean"}
    for name in DATASETS:
        mine, other = values(a)[name], values(b)[name]
        numbers = [float(cell) for cell in found[name][2:7]]
        assert numbers[:3] == pytest.approx([mine, other, other - mine], abs=6e-4)
        assert numbers[3] <= numbers[2] + 6e-4 and numbers[2] <= numbers[4] + 6e-4
        sure = numbers[3] > 0 or numbers[4] < 0
        assert found[name][7] == ("yes" if sure else "no")


def test_other_examples_are_not_compared(made, tmp_path, capsys):
    workdir = copy(made, tmp_path)
    for other in (dict(count=6), dict(suite__world_seed=3)):
        assert evaluate(made, "a", workdir, datasets="copa", **other) == 0
        both = [str(made / "scores_b"), str(workdir)]
        assert main(["evaluate", "--compare", *both]) == 2
        assert "other examples of copa" in capsys.readouterr().err
    assert main(["evaluate", "--compare", str(tmp_path), str(workdir)]) == 2
    assert "holds no finished evaluation" in capsys.readouterr().err


def test_the_export_has_the_names_of_lm_evaluation_harness(made):
    (path,) = (made / "scores_a" / "lm_eval").glob("*/results_*.json")
    record = json.loads(path.read_text())
    rows = {row.dataset: row for row in results.read(made / "scores_a")}
    found = record["results"]
    assert set(found) == {f"miniworld_{name}" for name in DATASETS}
    assert found["miniworld_copa"]["acc,none"] == rows["copa"].value
    assert 0 < found["miniworld_copa"]["acc_stderr,none"] < 0.3
    assert 0 <= found["miniworld_copa"]["acc_norm,none"] <= 1
    assert found["miniworld_copa"]["name"] == "miniworld_copa"
    # Not the harness's exact_match, which normalises nothing.
    assert found["miniworld_ropes"]["em,none"] == rows["ropes"].value
    assert "exact_match,none" not in found["miniworld_ropes"]
    assert {"rougeL,none", "bleu,none"} < set(found["miniworld_ropes"])
    assert record["n-samples"]["miniworld_copa"]["effective"] == EXAMPLES
    assert record["higher_is_better"]["miniworld_copa"]["acc"] is True
    assert record["config"]["model_num_parameters"] == rows["copa"].params


def sha(content):
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(("dataset", "metric"), [("copa", "acc"), ("ropes", "em")])
def test_the_export_has_a_line_for_every_example(made, dataset, metric):
    folder = made / "scores_a" / "lm_eval"
    (file,) = folder.glob(f"*/samples_miniworld_{dataset}_*.jsonl")
    (path,) = folder.glob("*/results_*.json")
    assert file.stem.endswith(path.stem.removeprefix("results"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == list(range(EXAMPLES))
    assert (
        np.mean([line[metric] for line in lines]) == values(made / "scores_a")[dataset]
    )
    texts = tasks.suite("miniworld").source.generator.examples(
        dataset, "test", 0, EXAMPLES
    )
    hashes = []
    for line, example in zip(lines, texts, strict=True):
        asked = list(line["arguments"].values())
        assert asked[0]["arg_0"] == line["doc"]["inputs"] == example["inputs"]
        assert line["prompt_hash"] == sha(example["inputs"])
        if dataset == "copa":
            assert [one["arg_1"] for one in asked] == [
                f" {choice}" for choice in example["choices"]
            ]
            log_p = [float(answer[0]) for answer in line["filtered_resps"]]
            right = int(np.argmax(log_p)) == example["label"]
            assert line["acc"] == right and line["target"] == str(example["label"])
        else:
            assert line["target"] == example["targets"]
            assert line["resps"] == [line["filtered_resps"]]
            assert isinstance(line["resps"][0][0], str)
        hashes += [line["doc_hash"], line["prompt_hash"], line["target_hash"]]
    record = json.loads(path.read_text())
    assert record["task_hashes"][f"miniworld_{dataset}"] == sha("".join(hashes))


def exported(workdir, score, summary, **how):
    how = dict(model="m", suite="s", split="test", context=8, config={}) | how
    how = dict(chat_template="") | how
    return export.write(workdir, [scores.Record(score, 1, "r")], [summary], **how)


@pytest.mark.parametrize(
    ("model", "folder"),
    [("../hf/base", "hf__base"), ("./m", "m"), (".", "here"), ("gs://b/m", "gs__b__m")],
)
def test_no_export_lies_in_a_hidden_folder(tmp_path, monkeypatch, model, folder):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    score = scores.DatasetScore("d", "c", "held_in", "bleu", 0.0, 0.5, 2)
    path = exported(tmp_path, score, {}, model=model)
    assert path.parent == tmp_path / "lm_eval" / folder
    assert json.loads(path.read_text())["model_name"] == model


def test_the_export_has_the_template_that_prompts_stood_in(tmp_path):
    score = scores.DatasetScore("d", "c", "held_in", "bleu", 0.0, 0.5, 2)
    found = json.loads(
        exported(tmp_path, score, {}, chat_template="{{ x }}é").read_text()
    )
    assert found["chat_template"] == "{{ x }}é"
    expected = hashlib.sha256("{{ x }}é".encode()).hexdigest()
    assert found["chat_template_sha"] == expected
    plain = json.loads(exported(tmp_path, score, {}).read_text())
    assert plain["chat_template"] is plain["chat_template_sha"] is None
    assert "lm_eval_version" not in plain


def test_bleu_is_exported_out_of_a_hundred(tmp_path):
    texts = ["the cat sat on the mat", "a dog ran home today"]
    counts = METRICS["bleu"].counts(texts, ["the cat sat on the rug", texts[1]])
    value = METRICS["bleu"].value(counts.sum(axis=0), 2)
    only = scores.TemplateScore(2, 0, "", {"bleu": value}, {"bleu": counts})
    facts = ("d", "c", "held_in", "bleu", 0.0)
    score = scores.DatasetScore(*facts, value, 2, templates={"": only})
    summary = {"bleu": tables.value(score, "bleu", bootstrap.Options(9, 0.9))}
    path = exported(tmp_path, score, summary)
    found = json.loads(path.read_text())["results"]["s_d"]
    assert found["bleu,none"] == pytest.approx(100 * value) and 0.5 < value < 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(checkpoint=""), "no checkpoint to evaluate"),
        (dict(checkpoint="nowhere"), "nowhere"),
        (dict(metrics="acuracy"), "unknown metric 'acuracy': did you mean accuracy"),
        (dict(datasets="copra"), "unknown dataset 'copra': did you mean copa"),
        (dict(split="tests"), "unknown split 'tests': did you mean test"),
        (dict(labels__method="ties", labels__K=2), "labels.K is 2"),
        (dict(batch_size=0), "batch_size = 0 must be 1 or more"),
        (dict(mesh__data=3), "does not use 8 devices"),
        (dict(base_results="."), "no results.jsonl in it"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(made, tmp_path, capsys, changed, said):
    workdir = copy(made, tmp_path, without=["copa"])
    changed = {"datasets": "copa", "every_device": True} | changed
    assert evaluate(made, "a", workdir, **changed) == 2
    assert said in capsys.readouterr().err


def test_a_vocabulary_larger_than_the_embedding_is_refused(made, tmp_path, capsys):
    tokenizer = tokenizer_of(made / "a")
    scored_models.write(tmp_path / "small", tokenizer, vocabulary=280, width=16)
    assert evaluate(tmp_path, "small") == 2
    assert "has 300 ids, and the model's embedding 280 rows" in capsys.readouterr().err


def test_datasets_that_are_not_asked_for_need_not_be_there(made, tmp_path, monkeypatch):
    one_device.use(monkeypatch)
    record = {"premise": "It rained.", "question": "effect", "label": 0}
    record |= {"choice1": "The street was wet.", "choice2": "The sun was out."}
    for part in ("train", "validation"):
        path = tmp_path / "data" / "copa" / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((json.dumps(record) + "\n") * 3)
    flags = dict(checkpoint=made / "a", datasets="copa")
    flags |= {"suite.data_dir": tmp_path / "data"}
    flags = [f"--config.{key}={value}" for key, value in flags.items()]
    config = ["evaluate", "--config", str(CONFIG.with_stem("t0")), *flags]
    assert main([*config, "--workdir", str(tmp_path / "w")]) == 0
    (row,) = results.read(tmp_path / "w")
    assert (row.dataset, row.examples, row.suite) == ("copa", 3, "t0")


def test_a_model_is_not_scored_on_ids_that_are_not_its_own(made, tmp_path, capsys):
    folder = shutil.copytree(made / "a", tmp_path / "a")
    (folder / "tokenizer.json").unlink()
    assert evaluate(tmp_path, "a") == 2
    words = len(tasks.suite("miniworld").tokenizer)
    said = capsys.readouterr().err
    assert f"{folder} holds no tokenizer, and its embedding has 300 rows" in said
    assert f"the words of suite miniworld are {words}" in said
    assert evaluate(tmp_path, "a", tokenizer=made / "a", datasets="copa") == 0
    assert values(tmp_path / "scores_a")["copa"] == values(made / "scores_a")["copa"]


@pytest.mark.long
def test_two_processes_find_the_values_of_one(made, tmp_path):
    workdir = copy(made, tmp_path, without=["copa", "ropes"])
    command = [sys.executable, "-m", "merging", *arguments(made, "a", workdir)]
    started = together.start(command, 2, together.environment())
    printed = together.heard(started)
    assert together.statuses(started) == [0, 0], printed
    assert "hellaswag" in printed[0] and "hellaswag" not in printed[1]
    assert values(workdir) == values(made / "scores_a")


def test_the_mean_over_prompt_templates_and_its_spread_are_shown(made):
    score = store.present(made / "scores_a")[2].score
    assert score.dataset == "copa"
    (only,) = score.templates.values()
    higher = {metric: value + 0.25 for metric, value in only.values.items()}
    templates = {"one": only, "two": dataclasses.replace(only, values=higher)}
    both = dataclasses.replace(score, templates=templates)
    summary = tables.value(both, "accuracy")
    value = only.values["accuracy"]
    assert summary.value == pytest.approx(value + 0.125)
    assert summary.by_template == {"one": value, "two": value + 0.25}
    assert summary.spread == pytest.approx(0.25 / 2**0.5)
