"""Texts whose opinion people rated, of VADER: reviews, tweets and editorials.

Hutto and Gilbert, "VADER: A parsimonious rule-based model for sentiment analysis of
social media text", ICWSM 2014. Twenty people gave each text a number from -4 to 4.
"""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from merging.runtime.errors import UserError
from merging.tasks.english.records import Example, is_held_out, part_of, rank

ARCHIVE = "vaderSentiment-0.5.zip"
_DIGEST = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "film_reviews": "movieReviewSnippets_GroundTruth.txt",
    "product_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
_CLEAR = 0.5  # a mean further from 0 than this is an opinion
_PROMPT = "{text}\n\nIs this said with approval or disapproval?"
_CHOICES = ("approval", "disapproval")


def archive(data_dir: Path) -> bytes:
    """Return the source archive of vaderSentiment.

    Raises:
      UserError: it is not there, with how to get it, or has other bytes.
    """
    path = data_dir / ARCHIVE
    if not path.is_file():
        raise UserError(
            f"{path} is not there; fetch it: pip download vaderSentiment==0.5 --no-deps"
            f" --no-binary :all: --no-build-isolation --dest {data_dir}"
        )
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _DIGEST:
        raise UserError(f"{path} is not vaderSentiment 0.5's; fetch it anew.")
    return data


def examples(archive: bytes) -> Iterator[Example]:
    """Yield an example of every clear opinion, as many of either kind in each part."""
    inner = zipfile.ZipFile(io.BytesIO(archive)).read(_INNER)
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        for dataset, name in _FILES.items():
            file = tar.extractfile(f"hutto_ICWSM_2014/{name}")
            yield from _balanced(dataset, file.read().decode("utf-8", "replace"))


def _balanced(dataset: str, text: str) -> Iterator[Example]:
    piles: dict[tuple[str, str], list[Example]] = {}
    seen = set()
    for line in text.splitlines():
        name, _, rest = line.partition("\t")
        mean, _, said = rest.partition("\t")
        said = " ".join(said.split())
        if abs(float(mean)) <= _CLEAR or not said or said in seen:
            continue
        seen.add(said)
        # Sentences of one review or article, "12_3", stay together.
        source, of_many, _ = name.partition("_")
        part = part_of(f"{dataset} {source}" if of_many else said)
        if is_held_out(dataset):
            part = "test"
        target = _CHOICES[float(mean) < 0]
        found = Example(dataset, part, _PROMPT.format(text=said), target, _CHOICES)
        piles.setdefault((part, target), []).append(found)
    for part in sorted({part for part, _ in piles}):
        both = [piles.get((part, target), []) for target in _CHOICES]
        for pile in both:
            pile.sort(key=lambda example: rank(example.inputs))
            yield from pile[: min(map(len, both))]
