"""Miniworld: a procedural suite in T0's shape, learnable on two CPU cores.

Plain Python: strings in, strings out. Every text is a pure function of the world's
seed, the dataset, the split and the example's number.
"""

import random
import zlib

from merging.runtime.errors import nearest
from merging.tasks.miniworld import held_in, held_out
from merging.tasks.miniworld.documents import document
from merging.tasks.miniworld.instructions import instruction
from merging.tasks.miniworld.world import (
    ANIMALS,
    PROPERTIES,
    VOCABULARY,
    make_world,
)
from merging.tasks.suites import Dataset

__all__ = [
    "DATASETS",
    "MAX_LENGTH",
    "SPLITS",
    "VOCABULARY",
    "documents",
    "examples",
    "instructions",
]

MAX_LENGTH = 64  # tokens of prompt, target and end mark together
SPLITS = {"train": (0, 70), "validation": (70, 85), "test": (85, 100)}


def _datasets(split: str, rows: str) -> tuple[Dataset, ...]:
    parsed = (row.split() for row in rows.strip().splitlines())
    return tuple(Dataset(n, c, split, m, float(p)) for n, c, m, p in parsed)


DATASETS = _datasets(
    "held_in",
    """
    dream           multiple_choice_qa    accuracy    0.3333
    cosmos_qa       multiple_choice_qa    accuracy    0.3333
    adversarial_qa  extractive_qa         f1          0
    ropes           extractive_qa         exact_match 0
    hotpot_qa       closed_book_qa        f1          0
    wiki_qa         closed_book_qa        accuracy    0.25
    app_reviews     sentiment             accuracy    0.5
    imdb            sentiment             accuracy    0.5
    ag_news         topic_classification  accuracy    0.25
    dbpedia         topic_classification  accuracy    0.25
    common_gen      structure_to_text     rouge_l     0
    wiki_bio        structure_to_text     rouge_l     0
    cnn_dailymail   summarization         rouge_l     0
    xsum            summarization         rouge_l     0
    mrpc            paraphrase            accuracy    0.5
    qqp             paraphrase            accuracy    0.5
    """,
) + _datasets(
    "held_out",
    """
    copa            sentence_completion        accuracy 0.5
    hellaswag       sentence_completion        accuracy 0.25
    rte             natural_language_inference accuracy 0.5
    anli            natural_language_inference accuracy 0.5
    wsc             coreference                accuracy 0.5
    winogrande      coreference                accuracy 0.5
    wic             word_sense_disambiguation  accuracy 0.5
    """,
)
# Recalling a fact is asked in two prompts; were the split by prompt, a fact could be
# trained on in one and tested in the other.
_FACT_AT = {"hotpot_qa", "wiki_qa"}


def _bucket(dataset: str, prompt: str) -> int:
    """Return 0-99: the side of the split that this prompt is on, for ever."""
    if dataset in _FACT_AT:
        words = prompt.split()
        prompt = " ".join(w for w in words if w in PROPERTIES or w in ANIMALS)
    return zlib.crc32(prompt.encode()) % 100


def examples(dataset: str, split: str, world_seed: int, count: int) -> list[dict]:
    """Return `count` examples: inputs, targets, choices (empty: generation), label.

    No prompt is in two splits; for closed-book datasets no fact is.
    """
    draw = getattr(held_in, dataset, None) or getattr(held_out, dataset, None)
    names = [d.name for d in DATASETS]
    if dataset not in names:
        raise nearest("dataset", dataset, names)
    if split not in SPLITS:
        raise nearest("split", split, SPLITS)
    low, high = SPLITS[split]
    world = make_world(world_seed)
    rng = random.Random(f"{world_seed}/{dataset}/{split}")
    drawn = []
    while len(drawn) < count:
        prompt, target, choices = draw(world, rng)
        if low <= _bucket(dataset, prompt) < high:
            label = choices.index(target) if choices else -1
            drawn.append(
                dict(inputs=prompt, targets=target, choices=list(choices), label=label)
            )
    return drawn


def documents(world_seed: int, count: int) -> list[str]:
    """Return `count` pretraining documents."""
    world, rng = make_world(world_seed), random.Random(f"{world_seed}/documents")
    return [document(world, rng) for _ in range(count)]


def instructions(world_seed: int, count: int) -> list[dict]:
    """Return `count` examples (inputs, targets) of the instruction mixture."""
    world, rng = make_world(world_seed), random.Random(f"{world_seed}/instructions")
    pairs = (instruction(world, rng) for _ in range(count))
    return [dict(inputs=prompt, targets=target) for prompt, target in pairs]
