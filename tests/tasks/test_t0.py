"""Suite t0 end to end, on folders in the real schema and files of JSON lines."""

import json
import pickle
import shutil
import socket

import invented
import numpy as np
import pytest
from test_tokenizers import byte_level

from merging import tasks
from merging.runtime.errors import UserError
from merging.tasks import contamination
from merging.tasks.registration import as_written, register, seqio
from merging.tasks.t0 import preparing, rendering, sources, tables
from merging.tasks.t0.entries import cut

ROOM = 512  # tokens; the tokenizer below knows little more than bytes


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t0")
    invented.write_all(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer") / "m")


@pytest.fixture(scope="session")
def t0(data_dir, tokenizer):
    return _suite(data_dir, tokenizer)


def _suite(data_dir, tokenizer, *only):
    settings = dict(data_dir=str(data_dir), only=only, tokenizer=tokenizer)
    return tasks.suite("t0", max_length=ROOM, **settings)


@pytest.fixture(scope="session")
def sets(t0):
    """Each dataset's test set, under one prompt or another: each takes 0.2 s."""
    register(t0)
    found = {}
    for number, entry in enumerate(tables.every().values()):
        tasks_of_it = list(t0.evaluations(entry.name).items())
        prompt, task = tasks_of_it[number % len(tasks_of_it)]
        read = as_written(tasks.load)
        found[entry.name, prompt] = read(task, "test", dataset=entry.name)
    return found


@pytest.mark.parametrize("name", tables.names())
def test_fields_have_the_types_and_names_of_the_real_builders(name, tmp_path):
    import tensorflow_datasets as tfds

    for builder in invented.builders(name, tmp_path):
        for field in tables.entry(name).fields.values():
            for place in field.at:
                feature = builder.info.features
                for key in place.split("."):
                    inner = getattr(feature, "feature", feature)
                    feature = inner[key]
                listed = isinstance(feature, tfds.features.Sequence) or "table" in place
                assert listed == (field.type in ("texts", "pairs"))
                element = getattr(feature, "feature", feature)
                number = np.issubdtype(element.numpy_dtype, np.integer)
                assert number == (field.type == "integer")
                named = getattr(feature, "names", None)
                assert tuple(named or ()) == field.names


@pytest.mark.parametrize("name", tables.names())
def test_the_hosts_that_are_asked_are_those_of_the_builders(name, tmp_path):
    for builder in invented.builders(name, tmp_path):
        try:
            urls = list(builder.url_infos)
        except TypeError:  # gem registers no checksums
            urls = list(builder.builder_config.data_urls.values())
        hosts = {url.split("/")[2] for url in urls} | {"firebasestorage.googleapis.com"}
        assert set(tables.entry(name).source.hosts) <= hosts


def test_a_dataset_gives_a_set_for_every_prompt(t0):
    made = tasks.load_suite(t0, "test", datasets=["anli", "ropes"])
    rounds = [(3 * invented.OTHER, True)] * 3 + [(invented.OTHER, False)] * 3
    assert [(s.examples, s.ranked) for s in made] == rounds
    prompts = [p for n in ("anli", "ropes") for p in tables.entry(n).prompts]
    assert [s.prompt for s in made] == prompts
    assert len({s.prompts[0].tobytes() for s in made}) == 6


def test_what_is_tokenised_is_what_renders(sets, t0, data_dir):
    for (name, prompt), made in sets.items():
        entry = tables.entry(name)
        if entry.source.tfds:
            record = invented.parts(name)[cut(entry.parts["test"], 0)[0]][0]
            columns = rendering.checked(entry, record)
        else:
            located = sources.locate(entry, data_dir)
            columns = next(sources.records(entry, located, "test"))
        example = rendering.render(entry, entry.prompt(prompt), columns)
        answers = example.choices or [example.targets]
        for row, answer in enumerate(answers):
            ids = made.prompts[row, : made.prompt_lengths[row]]
            answer_ids = made.continuations[row, : made.continuation_lengths[row]]
            pairs = t0.tokenizer.encode_pairs([example.inputs], [answer])
            assert ([ids.tolist()], [answer_ids.tolist()]) == pairs
        assert made.groups[: len(answers) + 1].tolist()[-2:] in ([0, 1], [0], [0, 0])


def test_who_knows_the_answers_scores_one_and_the_contrary_zero(sets):
    for made in sets.values():
        (metric,) = made.metrics
        if made.ranked:
            right = np.array([float(target[1]) for target in made.targets])
            assert set(metric(made.targets, right).values()) == {1.0}
            assert set(metric(made.targets, -right).values()) == {0.0}
            assert np.bincount(made.groups, right).tolist() == [1.0] * made.examples
        else:
            ids = zip(made.continuations, made.continuation_lengths, strict=True)
            texts = [made.decode(row[:size]) for row, size in ids]
            said = [made.postprocess(row, text) for row, text in enumerate(texts)]
            (value,) = metric(made.targets, said).values()
            assert value == pytest.approx(1)
            assert set(metric(made.targets, ["zzz"] * len(said)).values()) == {0.0}


def test_training_takes_every_example_under_every_prompt_once(t0):
    tokens, weights = tasks.materialise(t0, "paraphrase", "train", ROOM)
    assert tokens.shape == (2 * 3 * 19, ROOM)
    texts = [t0.tokenizer.decode(row[row > 0]) for row in tokens]
    first = [text for text in texts if text.startswith("First: The mill closed")]
    assert len(first) == len(set(first)) == 19
    answer = t0.tokenizer.decode(tokens[0][weights[0]]).strip()
    prompt = tables.entry("mrpc").prompt
    assert answer in (*prompt("verdict").choices, "Yes", "No")


def test_a_long_example_loses_tokens_at_its_begin_and_keeps_its_answer(t0):
    tokens, weights = tasks.materialise(t0, "xsum", "train", 48)
    summary = tables.entry("xsum").example["summary"]
    assert weights[0].sum() < 48
    assert t0.tokenizer.decode(tokens[0][weights[0]]) == f" {summary}"


def test_mixtures_weigh_by_size_and_cap_at_half_a_million_over_prompts(t0, monkeypatch):
    register(t0)
    mixture = seqio.MixtureRegistry.get(t0.training("multitask"))
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert len(rates) == 16 * 3
    assert rates["t0_mrpc_verdict"] == 19 and rates["t0_dream_overheard"] == 20
    sizes = {"wiki_bio": 582_659, "qqp": 345_654, "mrpc": 3_485}
    monkeypatch.setattr(sources, "size", lambda entry, *_: sizes[entry.name])
    rates = [t0.source.rate(name, "") for name in sizes]
    assert rates == [pytest.approx(500_000 / 3), pytest.approx(500_000 / 3), 3_485]


def test_the_facts_of_the_suite(t0, tokenizer, data_dir):
    assert len(t0.datasets) == 23 and len(t0.categories) == 8
    assert t0.members("sentiment") == ("app_reviews", "imdb")
    assert t0.evaluations("copa") == {
        "cause_or_effect": "t0_copa_cause_or_effect_score_eval",
        "role": "t0_copa_role_score_eval",
        "story": "t0_copa_story_score_eval",
    }
    assert t0.evaluations("ropes")["student"] == "t0_ropes_student"
    assert pickle.loads(pickle.dumps(t0)) == t0
    few = _suite(data_dir, tokenizer, "rte", "imdb")
    assert [d.name for d in few.datasets] == ["imdb", "rte"]
    assert few.digest != t0.digest
    with pytest.raises(UserError, match="did you mean validation"):
        t0.examples("valid")


def test_files_go_before_tfds_and_the_digest_follows_their_bytes(
    tmp_path, tokenizer, monkeypatch
):
    invented.write_tfds(tmp_path, "rte")
    of_tfds = _suite(tmp_path, tokenizer, "rte").digest
    rows = invented.parts("rte")
    rows["validation"][0]["premise"] = "Only the file says this."
    folder = invented.write_files(tmp_path, "rte", rows)
    of_files = _suite(tmp_path, tokenizer, "rte").digest
    located = sources.locate(tables.entry("rte"), tmp_path)
    texts = [
        c["premise"] for c in sources.records(tables.entry("rte"), located, "test")
    ]
    assert "Only the file says this." in texts and len(texts) == 4
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text() + "\n")
    changed = _suite(tmp_path, tokenizer, "rte").digest
    assert len({of_tfds, of_files, changed}) == 3
    monkeypatch.setattr(tables, "digest", lambda name: "of another table")
    assert _suite(tmp_path, tokenizer, "rte").digest != changed


def test_a_sorted_file_is_read_in_an_order_drawn_once(tmp_path):
    rows = invented.records("dbpedia", 40)
    for number, row in enumerate(rows):
        row["label"] = number // 3
    invented.write_files(tmp_path, "dbpedia", {"train": rows, "test": rows[:1]})
    entry = tables.entry("dbpedia")
    located = sources.locate(entry, tmp_path)
    labels = [c["label"] for c in sources.records(entry, located, "train")]
    assert len(labels) == 38 and labels != sorted(labels)
    assert labels == [c["label"] for c in sources.records(entry, located, "train")]
    held_back = [c["label"] for c in sources.records(entry, located, "validation")]
    assert sorted(labels + held_back) == [row["label"] for row in rows]


FAULTS = {
    "dream": [
        ({"choice": ["a"], "answer": "a"}, "1 choices, a rank task needs 2 or more"),
        ({"choice": ["a", " "], "answer": "a"}, "a choice is empty"),
        ({"answer": "elsewhere"}, "no choice is the right one"),
        ({"dialogue": "a"}, "dialogue must be a list of texts, not str"),
    ],
    "app_reviews": [({"star": 6}, "no choice is the right one")],
    "ropes": [
        ({"answers": {"text": []}}, "the answer is empty"),
        ({"answers": []}, "no field 'answers.text'"),
    ],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_records_are_named_with_file_and_line(tmp_path, tokenizer, name):
    rows = invented.parts(name)
    faults = FAULTS[name]
    for number, (change, _) in enumerate(faults):
        rows["train"][number] |= change
    invented.write_files(tmp_path, name, rows)
    suite = _suite(tmp_path, tokenizer, name)
    with pytest.raises(UserError) as caught:
        tasks.materialise(suite, name, "train", ROOM)
    for number, (_, said) in enumerate(faults, 1):
        assert f"{name}/train.jsonl:{number}: {said}" in str(caught.value)


def test_a_thousand_faults_are_told_in_ten(tmp_path, tokenizer):
    invented.write_files(
        tmp_path, "hotpot_qa", {"train": [{}] * 3000, "validation": []}
    )
    invented.write_files(tmp_path, "hotpot_qa", {"validation": [{}]})
    suite = _suite(tmp_path, tokenizer, "hotpot_qa")
    with pytest.raises(UserError, match="and 991 more") as caught:
        tasks.materialise(suite, "hotpot_qa", "train", ROOM)
    assert str(caught.value).count("no field 'question'") == 10


def test_what_is_not_ready_is_listed_whole(tmp_path, tokenizer):
    invented.write_tfds(tmp_path, "rte")
    folder = invented.write_files(tmp_path, "wiki_qa")
    (folder / "test.jsonl").unlink()
    (folder / "validation.jsonl").write_text("\n\n")
    (tmp_path / "anli" / "r1" / "0.1.0").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        _suite(tmp_path, tokenizer)
    said = str(caught.value)
    assert "22 datasets of suite 't0' are not ready" in said and "rte:" not in said
    assert f"wiki_qa: no {folder}/test.jsonl" in said
    assert f"anli: nothing of it in {tmp_path}" in said
    assert "merging tasks prepare --suite t0" in said
    (folder / "test.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="wiki_qa: no examples in validation"):
        _suite(tmp_path, tokenizer, "wiki_qa")
    with pytest.raises(UserError, match="there is no such directory"):
        _suite(tmp_path / "none", tokenizer)
    with pytest.raises(UserError, match="suite 't0' needs data_dir"):
        tasks.suite("t0", tokenizer=tokenizer)
    with pytest.raises(UserError, match="did you mean rte"):
        _suite(tmp_path, tokenizer, "rtf")


def test_a_file_that_leads_out_of_the_directory_is_refused(tmp_path, tokenizer):
    folder = invented.write_files(tmp_path / "in", "hotpot_qa")
    outside = tmp_path / "secret.jsonl"
    (folder / "train.jsonl").rename(outside)
    (folder / "train.jsonl").symlink_to(outside)
    with pytest.raises(UserError, match=r"train.jsonl leads out of"):
        _suite(tmp_path / "in", tokenizer, "hotpot_qa")


def test_of_several_versions_the_newest_is_read(tmp_path):
    invented.write_tfds(tmp_path, "rte")
    entry = tables.entry("rte")
    (real,) = sources.locate(entry, tmp_path).folders
    for version in ("0.9.9", "1.0.10"):
        shutil.copytree(real, real.with_name(version))
    (real.with_name("2.0.0")).mkdir()
    assert sources.locate(entry, tmp_path).folders == (real.with_name("1.0.10"),)


def test_a_damaged_tfds_folder_is_named(tmp_path, tokenizer):
    invented.write_tfds(tmp_path, "rte")
    (info,) = tmp_path.glob("super_glue/rte/*/dataset_info.json")
    info.write_text(json.dumps({"splits": [{"name": "train"}]}))
    with pytest.raises(UserError, match="dataset_info.json is none of TFDS"):
        _suite(tmp_path, tokenizer, "rte")


def test_tfds_fetches_into_the_data_directory_and_nowhere_else(tmp_path, monkeypatch):
    """Stood in for is the builder, which would download."""
    import tensorflow_datasets as tfds

    class Builder:
        def __init__(self, name, **where):
            assert where == {"data_dir": tmp_path, "try_gcs": False}
            self.name = name

        def download_and_prepare(self):
            asked.append(self.name)
            if len(asked) == 3:
                monkeypatch.undo()
                invented.write_tfds(tmp_path, "anli")

    asked = []
    monkeypatch.setattr(tfds, "builder", Builder)
    (state,) = preparing.prepare(tmp_path, ["anli"], reachable=set)
    assert asked == ["anli/r1", "anli/r2", "anli/r3"]
    assert state.ready and f"train {3 * invented.TRAIN}," in state.about


def test_reading_needs_no_network(tmp_path, tokenizer, monkeypatch):
    invented.write_tfds(tmp_path, "imdb")

    def refuse(*_):
        raise AssertionError("something was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    suite = _suite(tmp_path, tokenizer, "imdb")
    assert tasks.materialise(suite, "imdb", "validation", ROOM).tokens.shape[0] == 3


def test_an_example_that_is_trained_on_and_tested_on_is_found(tmp_path):
    rows = invented.parts("mrpc")
    again = {"sentence1": "On MONDAY, the mill shut!", "label": 0}
    rows["validation"][2] = again | {"sentence2": "The mill  closed on Monday"}
    rows["validation"][3]["sentence1"] = long = " ".join(f"w{i}" for i in range(20))
    invented.write_files(tmp_path, "mrpc", rows)
    others = invented.parts("xsum")
    others["train"][7]["document"] = long.upper()
    invented.write_files(tmp_path, "xsum", others)
    found = preparing.overlaps(tmp_path)
    entry = tables.entry("mrpc")
    located = sources.locate(entry, tmp_path)
    order = [c["sentence1"] for c in sources.records(entry, located, "test")]
    twin, passage = order.index(again["sentence1"]), order.index(long)
    assert found == [
        contamination.Overlap("mrpc (test)", "xsum", 0, 1, (passage,)),
        contamination.Overlap("mrpc (test)", "mrpc", 1, 0, (twin,)),
    ]


def test_every_wording_is_stored_and_drawn_by_its_share(t0, tmp_path):
    """What training reads from disk is what seqio's mixture holds."""
    stored = tasks.store(t0, "mrpc", "train", ROOM, tmp_path)
    expected = as_written(tasks.materialise)(t0, "mrpc", "train", ROOM)
    found = stored.take(np.arange(stored.count))

    def rows(arrays):
        width = stored.length
        both = np.stack([arrays.tokens[:, :width], arrays.loss_weights[:, :width]], 1)
        return sorted(row.tobytes() for row in both.astype(np.int32))

    assert len(list(tmp_path.glob("stored/*mrpc_*"))) == len(
        tables.entry("mrpc").prompts
    )
    assert rows(found) == rows(expected)
    drawn = stored.draw(0, 0, stored.count)
    assert sorted(drawn) == list(range(stored.count))
