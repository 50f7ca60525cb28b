"""The pages' commands run, one after the other, on models and data of a test's size.

Each is run as it is written, and with the settings of `SMALL` behind it, which make it
short. `test_docs.py` runs those of the merge pages; the others' are parsed there.
"""

import json

import one_device
import pytest
import scored_models
from pages import DOCS, blocks, commands, write_named

from merging.cli.main import main
from merging.models.hf.convert import convert

SWEEP = """
    sizes=1x bases=pt methods=average experts_merged=2 runner=inline
    data.categories=sentiment,paraphrase,word_sense_disambiguation
    data.documents=64 data.train_examples=64 data.validation_examples=8
    data.test_examples=8 pretraining.steps=2 expert.steps=2 multitask.steps=2
"""
TRAIN = """
    size=1x data.documents=64 data.train_examples=64 data.validation_examples=8
    hyperparameters.steps=2 hyperparameters.warmup_steps=1
"""
# Whole commands that others run: .ci/run this one, as it stands.
ELSEWHERE = ["sweep --config scaling_curves/smoke --workdir smoke"]
# By the beginning of a config's name; the first that fits.
SMALL = {
    "scaling_curves/": SWEEP,
    "train/": TRAIN,
    "evaluate/miniworld": "datasets=imdb count=2 bootstrap.resamples=9",
    "evaluate/jsonl": "bootstrap.resamples=9",
    "search/": "trials=2 scales=0.5 bootstrap.resamples=9",
    "agree.py": "trials=2",
    "adamerge/": "steps=2 batch_size=2",
    "analyze/saturation:": "draws=256 orders=2 count=2 densities=0.5",
    "analyze/saturation": "draws=256 orders=2",
}
WRITES = {
    "quickstart": ("curves/report/index.html", "again/figures/F2.pdf"),
    "evaluate": ("own_scores/report/index.html", "compared/index.html"),
    "searching": ("found/best.py", "found_agree/search.png", "adamerged/merged"),
    "analyse": ("geometry/analysis.json", "saturation/analysis.json"),
}
MODELS = ("BASE", "EXPERT1", "EXPERT2", "MODEL", "MERGED")


def small(words):
    """Return a command with the settings that make it short."""
    name = words[words.index("--config") + 1] if "--config" in words else ""
    found = next((text for start, text in SMALL.items() if name.startswith(start)), "")
    return [*words, *(f"--config.{setting}" for setting in found.split())]


def examples():
    """Yield the page's own example, and as many as a search and a test want."""
    (text,) = [b.text for b in blocks(DOCS / "evaluate.md") if b.language == "json"]
    example = json.loads(text)
    yield example
    for number in range(6):
        yield {
            **example,
            "dataset": "depths",
            "split": "held_in",
            "part": ("train", "validation", "test")[number % 3],
            "inputs": f"How deep is the bay of number {number}?",
            "label": number % 2,
        }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with a Llama under each name of the pages, and `mine.jsonl`."""
    folder = tmp_path_factory.mktemp("models")
    lines = list(examples())
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "mine.jsonl").write_text(text)
    tokenizer = scored_models.byte_level([line["inputs"] for line in lines], 270)
    for seed, name in enumerate(MODELS):
        made = folder / f"{name}.orbax"
        scored_models.write(made, tokenizer, seed=seed, width=16, layers=1)
        convert(str(made), str(folder / name), format="safetensors")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", WRITES)
def test_the_commands_of_a_page_run_as_written(
    name, models, tmp_path, monkeypatch, capsys
):
    one_device.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    page = DOCS / f"{name}.md"
    for block in blocks(page):
        write_named(block, tmp_path)
        if block.language != "bash":
            continue
        for program, *words in commands(block.text):
            if program == "pip" or " ".join(words) in ELSEWHERE:
                continue
            assert program == "merging", block.id
            status = main(small(words))
            assert status == 0, f"{block.id}: {words}: {capsys.readouterr().err}"
    for path in WRITES[name]:
        assert (tmp_path / path).exists(), path
