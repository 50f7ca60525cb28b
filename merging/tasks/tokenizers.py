"""Tokenizers: text to ids and back, in plain Python.

`Words` is a closed list of words; `open_tokenizer` reads the file of a real model, as
Hugging Face or SentencePiece write it. Nothing of such a file is executed: the chat
template runs in Jinja's sandbox.
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from merging.runtime import storage
from merging.runtime.errors import UserError

_SETTINGS = "tokenizer_config.json"
_ELSEWHERE = ("generation_config.json", "config.json")  # where the end mark may stand
_TEMPLATE = "chat_template.jinja"
_LARGEST = 1 << 28  # bytes of a file; those of the largest vocabularies take a tenth


class Tokenizer(Protocol):
    """What suites and evaluation need of a tokenizer.

    Attributes:
      digest: hash of all that its ids depend on.
      bos_id: the id that opens every text; None if texts open with nothing.
      eos_id: the id that ends a text.
      unk_id: the id of text that has no other; None where there is no such text.
      files: {name: content}, what to lay beside a model that was trained with it;
        nothing if the suite knows its words.
    """

    digest: str
    bos_id: int | None
    eos_id: int
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
        """Return the text of ids up to the first end mark."""


class FileTokenizer:
    """A model's own tokenizer, from its file.

    A prompt and its answer are encoded together, with a space in between, and parted
    where the prompt alone would end: a word may be another token at the begin of a
    text. This is also what lm-evaluation-harness does, so that log-likelihoods agree.

    Attributes:
      digest, bos_id, eos_id, unk_id, files: as `Tokenizer` says.
      chat: whether prompts are wrapped in the model's chat template.
    """

    unk_id = None

    def __init__(self, path: Path, chat: bool):
        folder = path if path.is_dir() else path.parent
        self.chat = chat
        self._settings = _json(folder / _SETTINGS)
        content = _bytes(path := _file(path))
        name = "tokenizer.model" if path.suffix == ".model" else "tokenizer.json"
        beside = {n: folder / n for n in (_SETTINGS, _TEMPLATE)}
        self.files = {n: _bytes(p) for n, p in beside.items() if p.is_file()}
        self.files[name] = content
        self._codec = (_SentencePiece if path.suffix == ".model" else _HuggingFace)(
            path, content, self._settings
        )
        self.bos_id = self._codec.bos_id
        self.eos_id = _end(self._codec, self._settings, folder)
        template = _template(folder, self._settings) if chat else ""
        self._template = _compiled(template) if chat else None
        self.digest = storage.digest(content, template, self.bos_id, self.eos_id)

    def __len__(self) -> int:
        return len(self._codec)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, with neither opening nor end mark."""
        return self._codec.encode([text])[0]

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
            return self._wrapped(prompt), ""
        text = prompt.rstrip()
        return text, (prompt[len(text) :] or " ") if text else ""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first end mark, special tokens left out."""
        ids = [int(i) for i in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self._codec.decode([i for i in ids if i < len(self)]).strip()

    def _wrapped(self, inputs: str) -> str:
        import jinja2

        try:
            return self._template.render(
                messages=[{"role": "user", "content": inputs}],
                add_generation_prompt=True,
                bos_token=_spelling(self._settings.get("bos_token")),
                eos_token=_spelling(self._settings.get("eos_token")),
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template fails: {error}") from error


@functools.lru_cache(maxsize=8)
def open_tokenizer(path: str, chat: bool = False) -> FileTokenizer:
    """Open a model's tokenizer.

    Args:
      path: ``tokenizer.json`` or a SentencePiece ``*.model``, or a folder with one.
      chat: wrap prompts in the chat template that lies beside it.

    Raises:
      UserError: no such file, one that can't be read, no end mark, no chat template.
    """
    return FileTokenizer(Path(path), chat)


class _HuggingFace:
    """``tokenizer.json``."""

    def __init__(self, path: Path, content: bytes, settings: Mapping[str, Any]):
        import tokenizers

        try:
            self._of = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"{path} is no tokenizer that can be read: {error}"
            ) from None
        self._of.no_truncation()
        self._of.no_padding()
        (plain,) = self.encode(["a"])
        opened = self._of.encode("a").ids
        opens = len(opened) > len(plain) and opened[0] != plain[0]
        self.bos_id = opened[0] if opens else None
        if settings.get("add_bos_token") and not opens:
            self.bos_id = self.id_of(_spelling(settings.get("bos_token")))

    def __len__(self) -> int:
        # Ids may have gaps: the largest one counts.
        return 1 + max(self._of.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[list[int]]:
        found = self._of.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._of.decode(list(ids), skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self._of.token_to_id(token) if token else None


class _SentencePiece:
    """``*.model`` of SentencePiece."""

    def __init__(self, path: Path, content: bytes, settings: Mapping[str, Any]):
        import sentencepiece

        try:
            self._of = sentencepiece.SentencePieceProcessor(model_proto=content)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path} is no SentencePiece model: {error}") from None
        opens = settings.get("add_bos_token", True) and self._of.bos_id() >= 0
        self.bos_id = self._of.bos_id() if opens else None

    def __len__(self) -> int:
        return self._of.vocab_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._of.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._of.decode(list(ids))

    def id_of(self, token: str) -> int | None:
        if not token:
            return self._of.eos_id() if self._of.eos_id() >= 0 else None
        found = self._of.piece_to_id(token)
        return None if found == self._of.unk_id() else found


def _end(codec: Any, settings: Mapping[str, Any], folder: Path) -> int:
    """Return the id that ends a text: the tokenizer's, else the model's."""
    found = codec.id_of(_spelling(settings.get("eos_token")))
    for name in _ELSEWHERE:
        if found is None:
            told = _json(folder / name).get("eos_token_id")
            told = told[0] if isinstance(told, list) and told else told
            found = told if isinstance(told, int) else None
    if found is None or not 0 <= found < len(codec):
        raise UserError(
            f"no end mark is known for the tokenizer in {folder}: name it as eos_token "
            f"in {_SETTINGS}."
        )
    return found


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [path / "tokenizer.json", path / "tokenizer.model"]
    found += sorted(path.glob("*.model"))
    for candidate in found:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{path} holds no tokenizer: neither tokenizer.json nor a SentencePiece "
        "*.model. Copy it there from the model it was made from, or name its place."
    )


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise UserError(f"{path} has more than {_LARGEST} bytes: no tokenizer.")
    return path.read_bytes()


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(_bytes(path))
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
    if (folder / _TEMPLATE).is_file():
        return _bytes(folder / _TEMPLATE).decode("utf-8", errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise UserError(
            f"{folder} holds no chat template (chat_template in {_SETTINGS}, or "
            f"{_TEMPLATE}): leave chat off, for a model that was not tuned to chat."
        )
    return found


def _compiled(template: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    # As transformers sets it up, since templates are written for that.
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    sandbox.globals["raise_exception"] = refuse
    try:
        return sandbox.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template can't be read: {error}") from None
