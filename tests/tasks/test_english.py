"""Suite english: from two packages to a file of JSON lines that nothing leaks in."""

import io
import json
import re
import tarfile
import zipfile

import pytest

from merging import tasks
from merging.cli.main import main
from merging.runtime.errors import UserError
from merging.tasks import english
from merging.tasks.english import opinions, records, wordnet, words


def name(i):
    """Return a plain word for a number."""
    return "".join(chr(ord("a") + int(digit)) for digit in f"{i:04d}")


def sentence(i):
    """Return one with a thing, and if its meaning is there twice with both words."""
    other = f" with a {name(2000 + i)}" if i < TWICE else ""
    return f"he saw a {name(i)}{other} in the year {i}"


# Things with the definition and a sentence of another.
TWICE = 60
# What the invented things are, 600 of them.
KINDS = [name(9000 + number) for number in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small WordNet: kinds, and below each things with synonyms and sentences."""
    folder = tmp_path_factory.mktemp("english")
    (folder / "wordnet").mkdir()
    nouns, used = ["  1 This is the licence."], []

    def synset(offset, own, pointers, gloss, pos="n"):
        listed = " ".join(f"{word} 0" for word in own)
        related = " ".join(f"{s} {o:08d} {pos} {e}" for s, o, e in pointers)
        count = f"{len(pointers):03d}"
        fields = f"{offset:08d} 06 {pos} {len(own):02x} {listed} {count} {related}"
        used.extend(f"{word}%{'nvar'.index(pos) + 1}:06:00:: 1 3" for word in own)
        return f"{' '.join(fields.split())} | {gloss}"

    for k, kind in enumerate(KINDS):
        nouns.append(synset(k, [kind], [], f"all of kind {k} that is there"))
    for i in range(600):
        own = [name(i), name(i + 5000)][: 1 + (i % 3 == 0)]
        gloss = f'a thing with the number {i}; "{sentence(i)}"; "my {own[0]} too, {i}"'
        pointers = [("@", i % 40, "0000"), ("%p", 1000 + (i + 6) % 600, "0000")]
        nouns.append(synset(1000 + i, own, pointers, gloss))
    for i in range(300):  # a second meaning of some words
        gloss = f'quite another thing, namely {i}; "she has no {name(i)} left"'
        nouns.append(synset(3000 + i, [name(i)], [("@", i % 40, "0000")], gloss))
    for i in range(300, 320):  # or two of one definition
        gloss = f'a thing with the number {i}; "the {name(i)} is there"'
        nouns.append(synset(3000 + i, [name(i)], [], gloss))
    for i in range(TWICE):  # a definition, a sentence and a gap of another word, too
        gloss = (
            f'A thing with the number {i}; "{sentence(i)}"; "my {name(2000 + i)} too"'
        )
        nouns.append(synset(4000 + i, [name(2000 + i)], [], gloss))
    good = [
        synset(i, [f"{name(i)}ish"], [("!", i ^ 1, "0101")], f"{i} by its look", "a")
        for i in range(200)
    ]
    files = {"data.noun": nouns, "data.adj": good, "data.verb": [], "data.adv": []}
    for file, lines in (files | {"cntlist.rev": used}).items():
        (folder / "wordnet" / file).write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return list(english._chosen(list(words.examples(wordnet.read(folder)))))


def test_questions_of_every_kind_are_made_and_their_answer_is_a_choice(found):
    kinds = {example.dataset for example in found}
    opinion = {"film_reviews", "product_reviews", "tweets", "editorials"}
    assert kinds | opinion == {*records._CATEGORIES, *records._HELD_OUT}
    for example in found:
        if example.choices:
            assert example.target in example.choices
            assert len(set(example.choices)) == len(example.choices) >= 2
    example = next(e for e in found if e.dataset == "kind_of")
    word = example.inputs.partition("“")[2].partition("”")[0]
    numbers = {name(i): i for i in range(600)}
    assert example.target == KINDS[numbers[word] % 40]
    gap = next(e for e in found if e.dataset == "gaps")
    assert "____" in gap.inputs and gap.target not in gap.inputs


def test_no_definition_sentence_or_prompt_that_is_tested_is_trained_on(found):
    told = {part: set() for part in records.MOST}
    for example in found:
        text = f"{example.inputs}\n{example.target}"
        for what in ("the number", "the year"):
            numbers = re.findall(rf"{what} (\d+)", text)
            told[example.part].update((what, number) for number in numbers)
        told[example.part].add(example.inputs)
    assert all(
        ("the number", str(i)) in set.union(*told.values()) for i in range(TWICE)
    )
    assert ("the year", "1") in set.union(*told.values())
    assert not told["test"] & (told["train"] | told["validation"])
    assert told["validation"] and not told["validation"] & told["train"]


def test_no_relation_that_is_tested_is_trained_on(found):
    for example in found:
        if example.dataset in ("kind_of", "opposites", "same_meaning"):
            word = example.inputs.partition("“")[2].partition("”")[0]
            assert {records.part_of(word), records.part_of(example.target)} == {
                example.part
            }
    held_out = {e.part for e in found if e.dataset in ("same_meaning", "parts_of")}
    assert held_out == {"test"}


def archive(**texts):
    inner, outer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for dataset, file in opinions._FILES.items():
            data = texts.get(dataset, "").encode()
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{file}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(outer, "w") as zipped:
        zipped.writestr(opinions._INNER, inner.getvalue())
    return outer.getvalue()


def test_opinions_are_clear_balanced_and_kept_together():
    lines = [f"{i // 4}_{i % 4}\t{2 - i % 5}\tthe film no. {i}" for i in range(400)]
    given = archive(product_reviews="\n".join(lines), tweets="1\t3.1\twell\n2\t-3\tno")
    made = list(opinions.examples(given))
    reviews = [e for e in made if e.dataset == "product_reviews"]
    parts = {}
    for example in reviews:
        number = int(example.inputs.partition("no. ")[2].split()[0])
        mean = 2 - number % 5
        assert mean != 0 and (example.target == "approval") == (mean > 0)
        parts.setdefault(number // 4, set()).add(example.part)
    assert all(len(of) == 1 for of in parts.values())
    for part in ("train", "test"):
        targets = [e.target for e in reviews if e.part == part]
        assert targets.count("approval") * 2 == len(targets) > 0
    assert [e.part for e in made if e.dataset == "tweets"] == ["test", "test"]


def test_the_file_is_a_suite(folder, monkeypatch, capsys):
    texts = {
        dataset: "\n".join(f"{i}\t{(-1) ** i}\tof {dataset}: {i}" for i in range(200))
        for dataset in opinions._FILES
    }
    monkeypatch.setattr(opinions, "archive", lambda _: archive(**texts))
    command = ["tasks", "prepare", "--suite", "english", "--data_dir", str(folder)]
    assert main(command) == 0
    said, path = capsys.readouterr().out, folder / english.FILE
    assert "kind_of" in said and f"--config.data.files={path}" in said
    first = path.read_bytes()
    datasets = {d.name: d for d in tasks.datasets("jsonl", files=(path,))}
    assert len(datasets) == 13 and datasets["definitions"].metric == "rouge_l"
    assert {d.category for d in datasets.values() if d.split == "held_in"} == {
        *records._CATEGORIES.values()
    }
    assert json.loads(first.splitlines()[0])["part"] in records.MOST
    assert main(command) == 0
    assert path.read_bytes() == first


def test_a_package_that_is_missing_or_another_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(wordnet, "_INSTALLED", tmp_path / "gone")
    with pytest.raises(UserError, match="pip download vaderSentiment==0.5"):
        opinions.archive(tmp_path)
    (tmp_path / opinions.ARCHIVE).write_bytes(b"PK")
    with pytest.raises(UserError, match="is not vaderSentiment 0.5's"):
        opinions.archive(tmp_path)
    with pytest.raises(UserError, match="apt install wordnet-base"):
        wordnet.read(tmp_path)
    (tmp_path / "wordnet").mkdir()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv", "cntlist.rev"):
        (tmp_path / "wordnet" / name).write_text("00000001 03 n zz\n")
    with pytest.raises(UserError, match="data.noun: line 1 is none of WordNet's"):
        wordnet.read(tmp_path)
