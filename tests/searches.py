"""A suite of one's own with a base and three experts of it, and searches of them."""

import json
import random
import shutil
from pathlib import Path

import jax
import scored_models

from merging import checkpoints, models
from merging.models import hf
from merging.runtime import config as configs

WORDS = "red blue green black ant bee cat dog is the of".split()
BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json")
TRIALS = 12


def lines():
    rng = random.Random(0)
    for number in range(180):
        dataset, among = ("hue", WORDS[:4]) if number % 2 else ("beast", WORDS[4:8])
        text = f"the {' '.join(rng.choice(WORDS) for _ in range(4))} is"
        yield {
            "dataset": dataset,
            "category": f"{dataset}s",
            "split": "held_in",
            "inputs": text,
            "choices": rng.sample(among, 2),
            "label": rng.randrange(2),
            "part": ("train", "validation", "test")[number // 2 % 3],
        }


def write(folder: Path) -> Path:
    """Write mine.jsonl, base/, e1/, e2/ and e3/ into a folder."""
    made = list(lines())
    suite = "".join(json.dumps(line) + "\n" for line in made)
    (folder / "mine.jsonl").write_text(suite)
    tokenizer = scored_models.byte_level([line["inputs"] for line in made], 280)
    scored_models.write(folder / "base", tokenizer, width=16)
    config, start = hf.load(folder / "base")
    for number in (1, 2, 3):
        other = models.init(config, number)
        moved = jax.tree.map(lambda a, b: a + b, start, other)
        checkpoints.save(folder / f"e{number}", moved)
        for name in BESIDE:
            shutil.copy(folder / "base" / name, folder / f"e{number}" / name)
    return folder


def arguments(place, workdir, **values):
    given = {
        "base": place / "base",
        "experts": ",".join(str(place / f"e{n}") for n in (1, 2, 3)),
        "trials": TRIALS,
        "scales": "0.2,0.6",
        "bootstrap.resamples": 20,
    } | values
    config = place / "mine.py"
    if not config.exists():
        folder = configs.shipped()["search/weights"].parent
        config.write_text(
            f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport weights\n"
            "sys.path.pop(0)\n"
            "def get_config():\n    config = weights.get_config()\n"
            "    config.suite = type(config)({'name': 'jsonl', 'files':"
            f" ({str(place / 'mine.jsonl')!r},)}})\n    return config\n"
        )
    return ["search", "--config", str(config), "--workdir", str(workdir)] + [
        f"--config.{key}={value}" for key, value in given.items()
    ]


def records(workdir, name="trials"):
    text = (workdir / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def found(workdir):
    return [(r["number"], r["point"], r["value"]) for r in records(workdir)]
