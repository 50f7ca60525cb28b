"""What the suite promises by construction, for worlds that no one has looked at."""

import pytest

from merging.runtime.errors import UserError
from merging.tasks import miniworld
from merging.tasks.miniworld.world import ANIMALS, PROPERTIES, make_world

SEED = 7
COUNT = 300
NAMES = [d.name for d in miniworld.DATASETS]


def words(example: dict) -> list[str]:
    return " ".join([example["inputs"], example["targets"]]).split()


@pytest.fixture(scope="module")
def drawn():
    return {
        (name, split): miniworld.examples(name, split, SEED, COUNT)
        for name in NAMES
        for split in miniworld.SPLITS
    }


def test_shape_is_that_of_the_paper():
    held_in = [d for d in miniworld.DATASETS if d.split == "held_in"]
    held_out = [d for d in miniworld.DATASETS if d.split == "held_out"]
    assert len(held_in) == 16 and len({d.category for d in held_in}) == 8
    assert len(held_out) == 7 and len({d.category for d in held_out}) == 4


def test_vocabulary_is_closed_small_and_without_repeats(drawn):
    vocabulary = set(miniworld.VOCABULARY)
    assert len(vocabulary) == len(miniworld.VOCABULARY) <= 1024
    texts = [e["inputs"] for es in drawn.values() for e in es]
    texts += [e["targets"] for es in drawn.values() for e in es]
    texts += [c for es in drawn.values() for e in es for c in e["choices"]]
    texts += miniworld.documents(SEED, 500)
    for example in miniworld.instructions(SEED, 500):
        texts += [example["inputs"], example["targets"]]
    assert {word for text in texts for word in text.split()} <= vocabulary


def test_every_sequence_fits(drawn):
    longest = max(len(words(e)) for es in drawn.values() for e in es)
    longest = max(longest, *(len(d.split()) for d in miniworld.documents(SEED, 500)))
    instructions = miniworld.instructions(SEED, 500)
    longest = max(longest, *(len(words(e)) for e in instructions))
    assert longest + 1 <= miniworld.MAX_LENGTH <= 96  # + 1: the end mark


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_is_in_two_splits(drawn, name):
    prompts = [{e["inputs"] for e in drawn[name, split]} for split in miniworld.SPLITS]
    for i, one in enumerate(prompts):
        assert one and not any(one & other for other in prompts[i + 1 :])


@pytest.mark.parametrize("name", ["hotpot_qa", "wiki_qa"])
def test_no_closed_book_fact_is_in_two_splits(drawn, name):
    def fact(example):
        said = example["inputs"].split()
        return tuple(w for w in said if w in ANIMALS or w in PROPERTIES)

    facts = [{fact(e) for e in drawn[name, split]} for split in miniworld.SPLITS]
    assert all(len(f) == 2 for split in facts for f in split)
    assert not facts[0] & facts[1] and not facts[0] & facts[2]
    assert not facts[1] & facts[2]


def test_the_two_closed_book_datasets_split_the_facts_alike():
    """An expert trains on both, so what one tests the other must not train on."""
    sides = [
        {
            split: {
                tuple(w for w in e["inputs"].split() if w in ANIMALS or w in PROPERTIES)
                for e in miniworld.examples(name, split, SEED, COUNT)
            }
            for split in miniworld.SPLITS
        }
        for name in ("hotpot_qa", "wiki_qa")
    ]
    assert not sides[0]["train"] & sides[1]["test"]
    assert not sides[1]["train"] & sides[0]["test"]


def test_closed_book_facts_stand_in_the_pretraining_text():
    world = make_world(SEED)
    told = " ".join(miniworld.documents(SEED, 5000))
    for (animal, name), value in world.animals.items():
        assert f"{animal} {name} {value} ." in told


@pytest.mark.parametrize("dataset", miniworld.DATASETS, ids=NAMES)
def test_targets_choices_and_chance_agree(drawn, dataset):
    for example in drawn[dataset.name, "test"]:
        choices = example["choices"]
        if dataset.metric == "accuracy":
            assert len(set(choices)) == len(choices) >= 2
            assert choices[example["label"]] == example["targets"]
            assert dataset.chance == pytest.approx(1 / len(choices), abs=1e-3)
        else:
            assert not choices and example["label"] == -1 and dataset.chance == 0


@pytest.mark.parametrize("dataset", miniworld.DATASETS, ids=NAMES)
def test_the_place_of_the_right_choice_says_nothing(drawn, dataset):
    if dataset.metric != "accuracy":
        pytest.skip("generation has no choices")
    labels = [
        e["label"] for split in miniworld.SPLITS for e in drawn[dataset.name, split]
    ]
    expected = len(labels) * dataset.chance
    for label in range(round(1 / dataset.chance)):
        deviation = abs(labels.count(label) - expected)
        assert deviation < 5 * (expected * (1 - dataset.chance)) ** 0.5


def test_held_out_prompts_use_no_word_that_a_base_never_saw(drawn):
    known = {w for d in miniworld.documents(SEED, 5000) for w in d.split()}
    known |= {w for e in miniworld.instructions(SEED, 5000) for w in words(e)}
    for dataset in miniworld.DATASETS:
        if dataset.split == "held_out":
            for example in drawn[dataset.name, "test"]:
                assert set(words(example)) <= known


def test_no_held_in_or_held_out_prompt_is_in_the_instruction_mixture(drawn):
    instructions = {e["inputs"] for e in miniworld.instructions(SEED, 20_000)}
    for examples in drawn.values():
        assert not instructions & {e["inputs"] for e in examples}


def test_a_seed_decides_everything_and_another_seed_differs():
    for make in (
        lambda seed: miniworld.examples("dream", "test", seed, 20),
        lambda seed: miniworld.documents(seed, 20),
        lambda seed: miniworld.instructions(seed, 20),
    ):
        assert make(1) == make(1)
        assert make(1) != make(2)


def test_fewer_examples_are_a_prefix_of_more():
    assert miniworld.examples("imdb", "test", 3, 40)[:10] == miniworld.examples(
        "imdb", "test", 3, 10
    )


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="hellaswag"):
        miniworld.examples("helaswag", "test", 0, 1)
    with pytest.raises(UserError, match="validation"):
        miniworld.examples("imdb", "valid", 0, 1)
