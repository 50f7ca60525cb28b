"""One vocabulary for models of several: `tokenizer_source`, as mergekit 0.1.5 has it.

Of a token that a model has, its embedding is the model's own row. Else it is the row of
the only model that has the token, or the base's, or the mean of those that have it; and
zeros where none does. All models then have all tokens, in the output's order.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from merging import checkpoints
from merging.checkpoints import Rows, Source
from merging.merge.mergekit.document import Document, Tokenizer, cut
from merging.runtime import foreign_json, tree
from merging.runtime.errors import UserError, listed

_FILE = "tokenizer.json"
_MOST_VALUES = 2**23  # of it: four times those of the largest vocabulary and merges
# Leaves with a row for each token: embeddings, and the output's weights and biases.
_OF_TOKENS = re.compile(
    r"(?:^|[./])(?:(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|"
    r"lm_head|embed_out)\.(?:weight|bias))$"
)
_SOURCES = ("base", "union")
# How a tokenizer adds a token of another vocabulary.
_ADDED = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}


class Vocabulary(NamedTuple):
    """The output's tokens, and where each model has them.

    Attributes:
      size: rows of the output's embeddings.
      tokens: how many of them are tokens; the rest is padding.
      places: {model: the id that it has for each token, -1 where it has none}.
      donor: the model whose tokenizer's files go along.
      content: of its tokenizer.json, if that is another one now.
      files: {name: path} of all tokenizers that were read.
    """

    size: int
    tokens: int
    places: Mapping[str, np.ndarray]
    donor: str
    content: bytes | None
    files: Mapping[str, epath.Path]

    def rows(
        self,
        path: str,
        model: str,
        base: str | None,
        models: Mapping[str, Source],
    ) -> Rows | None:
        """Return the rows of a model's leaf; None of a leaf without a row for a token.

        Args:
          path: of the leaf, in all models.
          model: whose it is.
          base: the base of what is merged, if it has one.
          models: all that are merged into the leaf, in their order.
        """
        if not _OF_TOKENS.search(path):
            return None
        there = [n for n, of in models.items() if path in tree.flatten(of.abstract)]
        leaves = [(models[name], path) for name in there]
        counts = [tree.flatten(of.abstract)[p].shape[0] for of, p in leaves]
        places = np.stack([self.places[name] for name in there], axis=1)
        # Of a tokenizer with more tokens than the model has rows, those are not there.
        places = np.where(places < counts, places, -1)
        has = places >= 0
        chosen = has.copy()
        if base in there:
            of_base = has[:, there.index(base)]
            chosen[of_base] = np.eye(len(there), dtype=bool)[there.index(base)]
        own = there.index(model)
        chosen[has[:, own]] = np.eye(len(there), dtype=bool)[own]
        return Rows(leaves, places, chosen, self.size - self.tokens)


class _Tokens(NamedTuple):
    """A tokenizer: its tokens' ids, its added tokens, and all of its file."""

    ids: dict[str, int]
    added: list[dict[str, Any]]
    content: dict[str, Any]
    path: epath.Path


def vocabulary(document: Document, models: Iterable[str]) -> Vocabulary | None:
    """Return the vocabulary that a document asks for; None if it does not.

    Args:
      document: what the file says.
      models: that are merged, the base first.

    Raises:
      UserError: a tokenizer that is missing, or can't be read.
    """
    asked = document.tokenizer
    if asked is None:
        return None
    models = list(models)
    first = models[0]
    read = {name: tokens for name in models if (tokens := _tokens(name)) is not None}
    if first not in read:
        raise UserError(
            f"{first} holds no {_FILE}, and tokenizer_source merges by tokens; save "
            "the tokenizer beside the model."
        )
    if without := [name for name in models if name not in read]:
        text = f"no {_FILE} in {listed(without)}: taken to have that of {first}"
        warnings.warn(text, stacklevel=2)
    donor, ids, content = _output(asked, first, read)
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(
            f"the tokenizer of {donor} leaves ids out, so that they are no rows of an "
            "embedding; choose another tokenizer_source."
        )
    ordered = sorted(ids, key=ids.__getitem__)
    places = {
        name: np.array([read.get(name, read[first]).ids.get(t, -1) for t in ordered])
        for name in models
    }
    tokens, multiple = len(ordered), asked.pad_to_multiple_of
    files = {f"{_FILE}/{n}": of.path for n, of in enumerate(read.values())}
    size = -(-tokens // multiple) * multiple
    return Vocabulary(size, tokens, places, donor, content, files)


def _output(
    asked: Tokenizer, first: str, read: dict[str, _Tokens]
) -> tuple[str, dict[str, int], bytes | None]:
    """Return whose files to copy, {token: id}, and a tokenizer.json that is new."""
    if asked.source not in _SOURCES:
        if asked.source not in read:
            found = _tokens(asked.source)
            if found is None:
                raise UserError(f"tokenizer_source {asked.source} holds no {_FILE}.")
            read[asked.source] = found
        return asked.source, read[asked.source].ids, None
    base = read[first]
    if asked.source == "base":
        return first, base.ids, None
    ids, added = dict(base.ids), list(base.added)
    for name, of in read.items():
        named = {entry["content"]: entry for entry in of.added}
        for token in sorted(of.ids, key=lambda t: (t in named, of.ids[t])):
            if name == first or token in ids:
                continue
            ids[token] = len(ids)
            added.append(
                named.get(token, _ADDED) | {"content": token, "id": ids[token]}
            )
    content = base.content | {"added_tokens": added}
    return first, ids, json.dumps(content, ensure_ascii=False).encode()


def _tokens(model: str) -> _Tokens | None:
    """Return a model's tokenizer; None if it has no tokenizer.json.

    Raises:
      UserError: it is none.
    """
    path = checkpoints.auxiliary_files(model).get(_FILE)
    if path is None:
        return None
    try:
        content = foreign_json.loads(
            checkpoints.read_auxiliary_files(model)[_FILE], _MOST_VALUES
        )
        known = content["model"]["vocab"]
        if isinstance(known, dict):
            ids = dict(known)
        else:  # of Unigram: tokens with scores, by id
            ids = {entry[0]: number for number, entry in enumerate(known)}
        added = [dict(entry) for entry in content.get("added_tokens") or ()]
        ids |= {entry["content"]: entry["id"] for entry in added}
        if not all(type(n) is int and n >= 0 for n in ids.values()):
            raise ValueError("an id that is no number")
        if not all(isinstance(token, str) for token in ids):
            raise ValueError("a token that is no text")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is no tokenizer: {cut(repr(error))}.") from None
    return _Tokens(ids, added, content, path)
