"""Tokenizers: text to ids and back, in plain Python.

`Words` is a closed list of words; `open_tokenizer` reads the file of a real model, as
Hugging Face or SentencePiece write it. Nothing of such a file is executed but the chat
template, in a sandbox (``chat``).
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from merging.runtime import foreign_json, hub, storage
from merging.runtime.errors import UserError
from merging.tasks.chat import ChatTemplate

_SETTINGS = "tokenizer_config.json"
_OF_MODEL = ("generation_config.json", "config.json")  # where end marks may stand
_MARKS = ("bos_token", "eos_token")
_SPECIAL = (*_MARKS, "unk_token", "sep_token", "pad_token")
_TEMPLATE = "chat_template.jinja"
_LARGEST = 1 << 28  # bytes of a file; those of the largest vocabularies take a tenth


class Tokenizer(Protocol):
    """What suites and evaluation need of a tokenizer.

    Attributes:
      digest: hash of all that its ids depend on.
      bos_id: the id that opens every text; None if texts open with nothing.
      prefix_id: the id that stands before a text without a prompt: BOS, where the
        vocabulary has one, else the end mark.
      eos_id: the id that ends a text.
      end_ids: the ids of which any ends a generated text, `eos_id` first.
      unk_id: the id of text that has no other; None where there is no such text.
      files: {name: content}, what to lay beside a model that was trained with it;
        nothing if the suite knows its words.
    """

    digest: str
    bos_id: int | None
    prefix_id: int
    eos_id: int
    end_ids: tuple[int, ...]
    unk_id: int | None
    files: Mapping[str, bytes]

    def __len__(self) -> int:
        """Return the number of ids: they run from 0 to one less."""

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, with neither opening nor end mark."""

    def encode_pairs(
        self, inputs: Sequence[str], targets: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return prompts' ids, and those of the text that follows each."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first that ends a text."""

    def spelled(self, ids: Iterable[int]) -> str:
        """Return the text of all ids, special ones as they are spelled."""


class FileTokenizer:
    """A model's own tokenizer, from its file.

    A prompt and its answer are encoded together, with a space in between, and parted
    where the prompt alone would end: a word may be another token at the begin of a
    text. This is also what lm-evaluation-harness does, so that log-likelihoods agree;
    but where a prompt ends in white space of its own, that stands in place of the
    space, and the harness adds one to it.

    Attributes:
      digest, bos_id, prefix_id, eos_id, end_ids, unk_id, files: as `Tokenizer` says.
      chat: whether prompts are wrapped in the model's chat template.
      template: that template's source; "" if they are not.
    """

    unk_id = None

    def __init__(self, path: Path, chat: bool):
        folder = path if path.is_dir() else path.parent
        self.chat = chat
        settings = _json(folder / _SETTINGS)
        content = _bytes(path := _file(path))
        name = "tokenizer.model" if path.suffix == ".model" else "tokenizer.json"
        beside = {n: folder / n for n in (_SETTINGS, _TEMPLATE)}
        self.files = {n: _bytes(p) for n, p in beside.items() if p.exists()}
        self.files[name] = content
        self._codec = (_SentencePiece if path.suffix == ".model" else _HuggingFace)(
            path, content, settings
        )
        self.bos_id = self._codec.opens_with
        self.end_ids = _ends(self._codec, folder)
        self.eos_id = self.end_ids[0]
        known = (self.bos_id, self._codec.bos, self.eos_id)
        self.prefix_id = next(i for i in known if i is not None)
        said = {name: _spelling(settings.get(name)) for name in _SPECIAL}
        said = {name: text for name, text in said.items() if text}
        self.template = _template(folder, settings) if chat else ""
        self._template = ChatTemplate(self.template, said) if chat else None
        marks = (self.bos_id, self.prefix_id, self.end_ids)
        self.digest = storage.digest(
            content, self.template, said if chat else {}, *marks
        )

    def __len__(self) -> int:
        return len(self._codec)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, with neither opening nor end mark."""
        return self._codec.encode([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode`."""
        return self._codec.encode(list(texts))

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], answering: bool = True
    ) -> str:
        """Return messages in the chat template, up to where an answer begins.

        Args:
          messages: each has a `role` and `content`.
          answering: False: up to where the last message, which is begun, goes on.

        Raises:
          UserError: the tokenizer was opened without a template, or that fails.
        """
        if self._template is None:
            raise UserError("this tokenizer was opened without its chat template")
        return self._template.render(messages, answering)

    def encode_pairs(
        self, inputs: Sequence[str], targets: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return prompts' ids, and those of the text that follows each.

        A prompt's trailing spaces are moved to the answer: most vocabularies have
        words with a space before them, and none after. A prompt that repeats, as those
        of choices do, is rendered once and encoded alone once.
        """
        starts = {prompt: self._start(prompt) for prompt in dict.fromkeys(inputs)}
        texts = list(dict.fromkeys(text for text, _ in starts.values()))
        begun = dict(zip(texts, self._codec.encode(texts), strict=True))
        both = self._codec.encode(
            ["".join((*starts[i], t)) for i, t in zip(inputs, targets, strict=True)]
        )
        prompts, answers = [], []
        for prompt, whole in zip(inputs, both, strict=True):
            first = begun[starts[prompt][0]]
            answers.append(whole[len(first) :])
            # Templates spell the opening out, and the model opens its texts itself.
            opened = self.chat and first[:1] == [self.bos_id]
            prompts.append(first[1:] if opened else first)
        return prompts, answers

    def _start(self, prompt: str) -> tuple[str, str]:
        """Return a prompt as it is encoded, and what stands before the answer."""
        if self.chat:
            return self._template.wrap(prompt), ""
        text = prompt.rstrip()
        return text, (prompt[len(text) :] or " ") if text else ""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first that ends a text, without special
        tokens."""
        kept = itertools.takewhile(lambda i: i not in self.end_ids, map(int, ids))
        return self._codec.decode([i for i in kept if i < len(self)])

    def spelled(self, ids: Iterable[int]) -> str:
        """Return the text of all ids, special ones as they are spelled."""
        return self._codec.decode(list(map(int, ids)), special=True)


@functools.lru_cache(maxsize=8)
def open_tokenizer(path: str, chat: bool = False) -> FileTokenizer:
    """Open a model's tokenizer.

    Args:
      path: ``tokenizer.json`` or a SentencePiece ``*.model``, or a folder with one; or
        a repository of the Hugging Face Hub (see `merging.runtime.hub`).
      chat: wrap prompts in the chat template that lies beside it.

    Raises:
      UserError: no such file, one that can't be read, no end mark, no chat template.
    """
    return FileTokenizer(Path(hub.fetched(path, weights=False)), chat)


def holds_tokenizer(names: Iterable[str]) -> bool:
    """Return whether a tokenizer is among the files of a folder, by their names."""
    return any(name == "tokenizer.json" or name.endswith(".model") for name in names)


class _HuggingFace:
    """``tokenizer.json``."""

    def __init__(self, path: Path, content: bytes, settings: Mapping[str, Any]):
        import tokenizers

        try:
            self._of = tokenizers.Tokenizer.from_str(content.decode())
            self._of.no_truncation()
            self._of.no_padding()
            # Ids may have gaps: the largest one counts. The library makes a dictionary
            # of all of them whenever it is asked.
            known = self._of.get_vocab(with_added_tokens=True).values()
            self._size = 1 + max(known, default=-1)
            (plain,) = self.encode(["a"])
            opened = self._of.encode("a").ids
        except (
            BaseException
        ) as error:  # the library raises nothing narrower, and panics
            if not isinstance(error, Exception) and "Panic" not in type(error).__name__:
                raise
            raise UserError(
                f"{path} is no tokenizer that can be read: {error}"
            ) from None
        opens = len(opened) > len(plain) and opened[:1] != plain[:1]
        self.bos, self.eos = (
            self._of.token_to_id(_spelling(settings.get(name))) for name in _MARKS
        )
        self.opens_with = opened[0] if opens else None
        if settings.get("add_bos_token") and not opens:
            self.opens_with = self.bos

    def __len__(self) -> int:
        return self._size

    def encode(self, texts: list[str]) -> list[list[int]]:
        found = self._of.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in found]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return self._of.decode(list(ids), skip_special_tokens=not special)


class _SentencePiece:
    """``*.model`` of SentencePiece."""

    def __init__(self, path: Path, content: bytes, settings: Mapping[str, Any]):
        import sentencepiece

        try:
            self._of = sentencepiece.SentencePieceProcessor(model_proto=content)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path} is no SentencePiece model: {error}") from None
        own = {"bos_token": self._of.bos_id(), "eos_token": self._of.eos_id()}
        self.bos, self.eos = (self._id_of(settings.get(n), own[n]) for n in _MARKS)
        opens = settings.get("add_bos_token", True) and own["bos_token"] >= 0
        self.opens_with = own["bos_token"] if opens else None

    def __len__(self) -> int:
        return self._of.vocab_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._of.encode(texts)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        del special  # SentencePiece spells no control symbol out
        return self._of.decode(list(ids))

    def _id_of(self, token: Any, own: int) -> int | None:
        """Return a special token's id; where settings name none, the model's own."""
        text = _spelling(token)
        found = self._of.piece_to_id(text) if text else own
        unknown = bool(text) and found == self._of.unk_id()
        return None if unknown or found < 0 else found


def _ends(codec: Any, folder: Path) -> tuple[int, ...]:
    """Return the ids that end a text: the tokenizer's, then the model's.

    Models that chat end a turn with one token and a text with another, and say both in
    generation_config.json, which goes before config.json.
    """
    found = [codec.eos]
    told = (_json(folder / name).get("eos_token_id") for name in _OF_MODEL)
    told = next((ids for ids in told if ids is not None), [])
    found += told if isinstance(told, list) else [told]
    known = [i for i in found if type(i) is int and 0 <= i < len(codec)]
    if not known:
        raise UserError(
            f"no end mark is known for the tokenizer in {folder}: name it as eos_token "
            f"in {_SETTINGS}."
        )
    return tuple(dict.fromkeys(known))


def _file(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        return path
    found = [path / "tokenizer.json", path / "tokenizer.model"]
    found += sorted(path.glob("*.model"))
    for candidate in found:
        if candidate.exists():
            return candidate
    raise UserError(
        f"{path} holds no tokenizer: neither tokenizer.json nor a SentencePiece "
        "*.model. Copy it there from the model it was made from, or name its place."
    )


def _bytes(path: Path) -> bytes:
    """Return a file that lies in its folder, and not where a link leads."""
    from merging.checkpoints import files  # loads JAX, which suites of words need not

    if not files.lies_in(epath.Path(path.parent), path.name):
        raise UserError(
            f"{path} is a link to outside its folder, which is not read: copy the file "
            "there, or name its place."
        )
    return files.read_small(epath.Path(path), _LARGEST)


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, {} where there is no such file."""
    if not path.exists():
        return {}
    content = _bytes(path)
    try:
        values = foreign_json.loads(content)
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate is no text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} can't be read: it is no object.")
    return values


def _spelling(token: Any) -> str:
    """Return a special token's text; it stands as text or as an object with it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    if (folder / _TEMPLATE).exists():
        return _bytes(folder / _TEMPLATE).decode("utf-8", errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):
        templates = (t for t in found if isinstance(t, dict))
        named = (t.get("template") for t in templates if t.get("name") == "default")
        found = next(named, None)
    if not isinstance(found, str):
        raise UserError(
            f"{folder} holds no chat template (chat_template in {_SETTINGS}, or "
            f"{_TEMPLATE}): leave chat off, for a model that was not tuned to chat."
        )
    return found
