"""Questions about words, out of WordNet: definitions, relations, sentences, senses."""

import collections
import random
import re
from collections.abc import Callable, Iterator, Sequence

from merging.tasks.english.records import (
    Example,
    common_part,
    part_of,
    rank,
    shuffled,
)
from merging.tasks.english.wordnet import Synset, WordNet

CHOICES = 4
_PLAIN = re.compile(r"[a-z]{3,15}")
_POS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
_TRIES = 60  # draws for the other choices, after which a question is left out


class _Words:
    """WordNet's synsets with a familiar word, and words to choose others from.

    Familiar is a plain word that was met in texts of the part of speech.
    """

    def __init__(self, wordnet: WordNet):
        self.synsets = wordnet.synsets
        self.familiar = {key for key in wordnet.used if _PLAIN.fullmatch(key[2:])}
        # {word of a part of speech: its synsets}, {(pos, topic): words}
        self.senses: dict[str, list[Synset]] = collections.defaultdict(list)
        self.topics: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        for synset in wordnet.synsets.values():
            for word in synset.words:
                self.senses[f"{synset.pos} {word}"].append(synset)
            self.topics[synset.pos, synset.topic] += self.known(synset)

    def known(self, synset: Synset) -> list[str]:
        """Return a synset's familiar words."""
        return [w for w in synset.words if f"{synset.pos} {w}" in self.familiar]

    def others(
        self, synset: Synset, right: str, key: str, excluded: Callable[[str], bool]
    ) -> tuple[str, ...]:
        """Return choices: the right one, and others of its topic; () for too few."""
        pool = self.topics[synset.pos, synset.topic]
        return _drawn(pool, right, key, excluded)


def examples(wordnet: WordNet) -> Iterator[Example]:
    """Yield the examples of all datasets of words."""
    words = _Words(wordnet)
    for synset in wordnet.synsets.values():
        if words.known(synset):
            yield from _definitions(words, synset)
            yield from _kinds(words, synset)
            yield from _opposites(words, synset)
            yield from _gaps(words, synset)
            yield from _synonyms(words, synset)
            yield from _parts(words, synset)
            yield from _senses(words, synset)
    yield from _contexts(words)


def _definitions(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield which word is defined; and to define a word that has one meaning."""
    part, word = _part(synset), words.known(synset)[0]
    gloss = synset.gloss
    if part is None or len(gloss.split()) < 3 or _stands_in(word, gloss):
        return
    choices = words.others(synset, word, gloss, lambda w: w in synset.words)
    if choices:
        asked = f"Which word means “{gloss}”?"
        yield Example("word_of_definition", part, asked, word, choices, (gloss,))
    if len(words.senses[f"{synset.pos} {word}"]) == 1:
        asked = f"Define the {_POS[synset.pos]} “{word}”."
        yield Example("definitions", part, asked, gloss, told=(gloss,))


def _kinds(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield what a thing is a kind of; no other choice is above it."""
    related = _related(words, synset, "@")
    if synset.pos != "n" or not related or not words.known(related[0]):
        return
    part = common_part((*synset.words, *related[0].words))
    word, right = words.known(synset)[0], words.known(related[0])[0]
    if part is None:
        return
    taken = _above(words, synset) | {word}
    key = f"{word} {right}"
    choices = words.others(related[0], right, key, taken.__contains__)
    if choices:
        asked = f"What is the thing called “{word}” a kind of?"
        yield Example("kind_of", part, asked, right, choices)


def _opposites(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield the opposites of single words."""
    for pointer in synset.pointers:
        if pointer.symbol != "!" or not pointer.source:
            continue
        other = words.synsets[pointer.other]
        word, right = synset.words[pointer.source - 1], other.words[pointer.target - 1]
        known = word in words.known(synset) and right in words.known(other)
        part = common_part((word, right))
        if not known or part is None:
            continue
        taken = {*synset.words, *other.words}
        choices = words.others(other, right, f"{word} {right}", taken.__contains__)
        if choices:
            asked = f"What is the opposite of “{word}”?"
            yield Example("opposites", part, asked, right, choices)


def _gaps(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield sentences with a gap for a word that stands in them as it is."""
    part = _part(synset)
    for sentence in synset.examples if part else ():
        there = [w for w in words.known(synset) if _stands_in(w, sentence)]
        if not there:
            continue
        gap = re.sub(rf"\b{there[0]}\b", "____", sentence, count=1)
        choices = words.others(synset, there[0], sentence, lambda w: w in synset.words)
        if choices:
            asked = f"Which word fits the gap?\n{gap}"
            yield Example("gaps", part, asked, there[0], choices, (sentence,))


def _synonyms(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield another word for a word; of words that are not trained on."""
    known = words.known(synset)
    if len(known) < 2 or common_part(synset.words) != "test":
        return
    word, right = known[:2]
    meant = {w for s in words.senses[f"{synset.pos} {word}"] for w in s.words}
    choices = words.others(synset, right, f"{word} {right}", lambda w: w in meant)
    if choices:
        asked = f"Which word can mean the same as “{word}”?"
        yield Example("same_meaning", "test", asked, right, choices)


def _parts(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield what is a part of a thing; of words that are not trained on."""
    parts = _related(words, synset, "%p")
    for other in parts:
        word = words.known(synset)[0]
        if not words.known(other) or part_of(word) != "test":
            continue
        right = words.known(other)[0]
        taken = {w for part in parts for w in part.words} | {*synset.words}
        choices = words.others(other, right, f"{word} {right}", taken.__contains__)
        if choices:
            asked = f"Which of these is a part of the thing called “{word}”?"
            yield Example("parts_of", "test", asked, right, choices)


def _senses(words: _Words, synset: Synset) -> Iterator[Example]:
    """Yield which of a word's definitions a sentence goes by."""
    part = _part(synset)
    for sentence in synset.examples if part else ():
        for word in words.known(synset):
            senses = words.senses[f"{synset.pos} {word}"]
            if len(senses) < 2 or not _stands_in(word, sentence):
                continue
            pool = sorted({sense.gloss for sense in senses})
            few = min(len(pool), CHOICES)
            choices = _drawn(pool, synset.gloss, sentence, lambda _: False, few)
            if choices:
                asked = f"What does “{word}” mean here?\n{sentence}"
                told = (synset.gloss, sentence)
                yield Example("which_sense", part, asked, synset.gloss, choices, told)
            break


def _contexts(words: _Words) -> Iterator[Example]:
    """Yield pairs of sentences with a word in one sense, or in two: as many of each.

    After Pilehvar and Camacho-Collados 2019, "WiC".
    """
    pairs: dict[tuple[str, str], list[Example]] = collections.defaultdict(list)
    for key in sorted(words.familiar):
        word, senses = key[2:], words.senses.get(key, ())
        found = [
            (sentence, sense.key)
            for sense in senses
            for sentence in sense.examples
            if _stands_in(word, sentence) and common_part(sense.words)
        ]
        for first, second in zip(found, found[1:], strict=False):
            part = part_of(word)
            target = "yes" if first[1] == second[1] else "no"
            asked = (
                f"1. {first[0]}\n2. {second[0]}\n"
                f"Does “{word}” have the same meaning in both?"
            )
            told = (first[0], second[0])
            example = Example("same_sense", part, asked, target, ("yes", "no"), told)
            pairs[part, target].append(example)
    for part in ("train", "validation", "test"):
        both = [pairs[part, target] for target in ("yes", "no")]
        for pile in both:
            pile.sort(key=lambda example: rank(example.inputs))
            yield from pile[: min(map(len, both))]


def _part(synset: Synset) -> str | None:
    """Return the part that all words of a meaning are for."""
    return common_part(synset.words)


def _related(words: _Words, synset: Synset, symbol: str) -> list[Synset]:
    return [
        words.synsets[pointer.other]
        for pointer in synset.pointers
        if pointer.symbol == symbol
    ]


def _above(words: _Words, synset: Synset) -> set[str]:
    """Return the words of all that a thing is a kind of, whichever way up."""
    found: set[str] = set()
    front, seen = [synset], set()
    while front:
        for other in _related(words, front.pop(), "@"):
            if other.key not in seen:
                seen.add(other.key)
                found.update(other.words)
                front.append(other)
    return found


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def _drawn(
    pool: Sequence[str],
    right: str,
    key: str,
    excluded: Callable[[str], bool],
    size: int = CHOICES,
) -> tuple[str, ...]:
    """Return `size` different choices, the right one among them; () for too few."""
    if size < 2:
        return ()
    drawing = random.Random(rank(key))
    chosen = {right}
    for _ in range(_TRIES):
        if len(chosen) == size:
            return shuffled(chosen, key)
        other = drawing.choice(pool)
        if not excluded(other):
            chosen.add(other)
    return ()
