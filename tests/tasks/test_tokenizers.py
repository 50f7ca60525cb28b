"""Tokenizers trained here, in the files and with the settings that models come with."""

import io
import json
import os

import numpy as np
import pytest
import sentencepiece
import tokenizers

from merging import tasks
from merging.runtime.errors import UserError
from merging.tasks import open_tokenizer

TEXTS = [
    "the red fox sees the blue cat",
    "is the cat red? no, the fox is.",
    "question: who sees? answer: fox",
] * 20
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def byte_level(folder, opens=False, **settings):
    """Write a byte-level BPE, as SmolLM2, Llama 3 and Qwen have it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|turn|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    if opens:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": "<|end|>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def sentence_piece(folder, **settings):
    """Write a SentencePiece model, as Llama 2 and Gemma have it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize("prompt", ["is the cat red?", "", "question: who sees? "])
def test_a_pair_is_the_joint_text_parted_at_the_prompts_end(tmp_path, make, prompt):
    tokenizer = open_tokenizer(make(tmp_path / "m"))
    (inputs,), (targets,) = tokenizer.encode_pairs([prompt], ["the fox"])
    joint = f"{prompt.rstrip()} the fox".lstrip() if prompt else "the fox"
    assert inputs + targets == tokenizer.encode(joint)
    assert inputs == tokenizer.encode(prompt.rstrip())
    assert tokenizer.decode(targets).strip() == "the fox"


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_many_rows_have_the_ids_that_each_has_alone(tmp_path, make):
    import tensorflow as tf

    from merging.tasks import vocabulary

    tokenizer = open_tokenizer(make(tmp_path / "m"))
    words = "".join(TEXTS[:3]).split()
    prompts = [" ".join(words[: 1 + i // 4 % 11]) for i in range(600)]
    answers = [words[i % 13] for i in range(600)]
    texts = {"inputs": prompts, "targets": answers, "number": list(range(600))}
    rows = vocabulary.tokenize(tokenizer)(tf.data.Dataset.from_tensor_slices(texts))
    found = list(rows.as_numpy_iterator())
    assert [row["number"] for row in found] == texts["number"]
    for row, prompt, answer in zip(found, prompts, answers, strict=True):
        alone = tokenizer.encode_pairs([prompt], [answer])
        assert ([row["inputs"].tolist()], [row["targets"].tolist()]) == alone
        assert row["inputs"].dtype == row["targets"].dtype == np.int32
        assert row["inputs_pretokenized"].decode() == prompt


def test_what_opens_and_ends_a_text_is_read_from_the_files(tmp_path):
    plain = open_tokenizer(byte_level(tmp_path / "plain"))
    opened = open_tokenizer(byte_level(tmp_path / "opened", opens=True))
    told = open_tokenizer(byte_level(tmp_path / "told", add_bos_token=True))
    assert (plain.bos_id, opened.bos_id, told.bos_id) == (None, 0, 0)
    assert plain.eos_id == opened.eos_id == 1
    # BOS stands before a text without a prompt even where it opens no other.
    unnamed = open_tokenizer(byte_level(tmp_path / "unnamed", bos_token=None))
    found = (plain.prefix_id, opened.prefix_id, told.prefix_id, unnamed.prefix_id)
    assert found == (0, 0, 0, 1)
    piece = open_tokenizer(sentence_piece(tmp_path / "piece"))
    closed = sentence_piece(tmp_path / "closed", add_bos_token=False)
    assert (piece.bos_id, piece.eos_id) == (1, 2)
    assert open_tokenizer(closed).bos_id is None
    assert open_tokenizer(closed).prefix_id == piece.prefix_id == 1


def test_the_models_own_end_mark_serves_where_the_tokenizer_names_none(tmp_path):
    folder = byte_level(tmp_path / "m", eos_token=None)
    with pytest.raises(UserError, match="no end mark is known.*name it as eos_token"):
        open_tokenizer(folder)
    (tmp_path / "m" / "config.json").write_text('{"eos_token_id": [2, 1]}')
    assert open_tokenizer(folder).end_ids == (2, 1)
    assert open_tokenizer(folder).eos_id == 2


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_text_ends_with_any_mark_of_the_tokenizer_or_the_model(tmp_path, make):
    folder = make(tmp_path / "m")
    own = open_tokenizer(folder)
    assert own.end_ids == (own.eos_id,)
    told = {"eos_token_id": [0, own.eos_id, 10_000, True, "2"]}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(told))
    (tmp_path / "m" / "config.json").write_text('{"eos_token_id": 5}')
    open_tokenizer.cache_clear()
    tokenizer = open_tokenizer(folder)
    assert tokenizer.end_ids == (own.eos_id, 0)
    ids = tokenizer.encode("the fox")
    for end in tokenizer.end_ids:
        assert tokenizer.decode([*ids, end, *ids]) == "the fox"
    assert tokenizer.digest != own.digest


def test_decoding_stops_at_the_end_mark_and_knows_no_padding(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path / "m"))
    ids = tokenizer.encode("the fox")
    assert tokenizer.decode([*ids, 1, *ids]) == "the fox"
    assert tokenizer.decode([*ids, 10_000]) == "the fox"


def test_a_chat_prompt_goes_through_the_template_and_is_opened_once(tmp_path):
    folder = byte_level(tmp_path / "m", opens=True, chat_template=TEMPLATE)
    plain, chat = open_tokenizer(folder), open_tokenizer(folder, chat=True)
    (inputs,), (targets,) = chat.encode_pairs(["who sees?"], ["fox"])
    wrapped = "<|turn|>user\nwho sees?\n<|turn|>assistant\n"
    assert inputs == plain.encode(wrapped)
    assert inputs[0] == 2 and 0 not in inputs
    assert targets == plain.encode("fox")
    assert chat.digest != plain.digest


def test_a_template_that_reaches_for_python_is_stopped(tmp_path):
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    folder = byte_level(tmp_path / "m", chat_template=template)
    with pytest.raises(UserError, match="the chat template fails.*unsafe"):
        open_tokenizer(folder, chat=True).encode_pairs(["a"], ["b"])


def rendered(folder, template, prompt="who sees?"):
    """Return a prompt in a template, as text."""
    chat = open_tokenizer(byte_level(folder, chat_template=template), chat=True)
    (inputs,), _ = chat.encode_pairs([prompt], [""])
    return chat._codec._of.decode(inputs, skip_special_tokens=False)


# What transformers 5.24 makes of them, but for the date.
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}"
            "{% endgeneration %}{{ x }}{% endfor %}!",
            "who sees?!",
        ),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "012"),
        ("{% for i in range(4) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}"
         "{% endfor %}", "023"),
        ("{{ {'b': '<é>', 'a': [1, 2]} | tojson }}", '{"b": "<é>", "a": [1, 2]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
         '{"a":2,"b":1}'),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% if tools is none and documents is none %}plain{% endif %}", "plain"),
        ("{{ eos_token }}{{ pad_token is defined }}", "<|end|>False"),
    ],
)  # fmt: skip
def test_a_template_has_what_transformers_offers(tmp_path, template, text):
    assert rendered(tmp_path / "m", template) == text


def test_what_a_template_is_told_is_part_of_the_digest(tmp_path):
    one, other = (
        open_tokenizer(
            byte_level(tmp_path / name, chat_template=TEMPLATE, pad_token=name),
            chat=True,
        )
        for name in "ab"
    )
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails: Range too big"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ messages | length + 'a' }}", "fails: unsupported operand"),
        ("{{ raise_exception('no user may speak') }}", "fails: no user may speak"),
        ("{% generation %}", "can't be read: Unexpected end"),
        ("{% include 'x' %}", "fails: no loader"),
        ("{{ '\\ud800' }}", "fails: .*surrogates not allowed"),
    ],
)
def test_a_template_that_fails_is_refused_before_anything_is_read(
    tmp_path, template, said
):
    folder = byte_level(tmp_path / "m", chat_template=template)
    with pytest.raises(UserError, match=said):
        open_tokenizer(folder, chat=True)


ROUNDS = "{% for a in range(99999) %}{% for b in range(99999) %}"
TWICE = "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ROUNDS + "{% endfor %}{% endfor %}", "takes longer than 0.1 seconds"),
        (
            "{% macro f(n) %}" + TWICE + "{% endmacro %}{{ f(60) }}",
            "takes longer than 0.1 seconds",
        ),
        ("{{ 'a'|center(3000000000) }}", "a number is too large"),
        ("{{ 'a'.ljust(3000000000) }}", "a number is too large"),
        ("{{ '%3000000000d' % 1 }}", "a number is too large"),
        ("{{ '%3000000000d'|format(1) }}", "a number is too large"),
        ("{{ '{:3000000000}'.format(1) }}", "a number is too large"),
        ("{{ '{:\u0665" + 6 * "\u0660" + "}'.format(1) }}", "a number is too large"),
        ("{{ '{a:{w}}'.format_map({'a': 1, 'w': 5000000}) }}", "a number is too large"),
        ("{{ '%*d' % (5000000, 1) }}", "a number is too large"),
        ("{{ [1]|tojson(indent=5000000) }}", "a number is too large"),
        ("{{ 9 ** (9 ** 9) }}", r"what \*\* makes is too large"),
        ("{{ ('ab' * 10 ** 9) | length }}", r"what \* makes is too large"),
        ("{{ (10 ** 9 * [1]) | length }}", r"what \* makes is too large"),
        ("{{ raise_exception('a\\n\x1b' * 999) }}", "'a \\\\x1ba"),
    ],
)
def test_a_template_that_goes_on_and_on_is_stopped(
    tmp_path, monkeypatch, template, said
):
    monkeypatch.setattr("merging.tasks.chat.SECONDS", 0.1)
    folder = byte_level(tmp_path / "m", chat_template=template)
    with pytest.raises(UserError, match=f"the chat template fails: .*{said}") as caught:
        open_tokenizer(folder, chat=True)
    assert len(str(caught.value)) < 700


def test_a_template_may_multiply_and_loop(tmp_path):
    template = (
        "{% macro f(n) %}{% for i in range(n) %}{{ i * 2 }}{% endfor %}{% endmacro %}"
        "{{ f(3) }}{{ '-' * 3 }}{{ 2 ** 10 }}{{ 1.5 * 2 }}{{ 2 ** -1 }}"
        "{% for m in messages %}{{ m.content }}{% else %}none{% endfor %}"
    )
    assert rendered(tmp_path / "m", template, "a") == "024---10243.00.5a"


def test_a_prompt_may_hold_numbers_and_percents(tmp_path):
    template = (
        "{% set ns = namespace(context='', called=false) %}{% macro f(context) %}"
        "{{ context }}{% endmacro %}{{ messages[0].content|trim|indent(2) }}"
        "{{ 'id 15551234567 of %s' % 'a' }}{{ f(context=1700000000) }}"
        "{{ '%(text)s'|format(text='b') }}{{ '{:>3}'.format(1) }}"
    )
    told = "12345678 grew by 5 %, {99999999} too"
    expected = f"{told}id 15551234567 of a1700000000b  1"
    assert rendered(tmp_path / "m", template, told) == expected


def test_files_that_are_links_to_outside_are_not_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a key")
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        folder = tmp_path / f"with {name}"
        byte_level(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        with pytest.raises(UserError, match=f"{name} is a link to outside its folder"):
            open_tokenizer(str(folder))


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer_config.json", "tokenizer.json"]
)
def test_a_pipe_among_the_files_is_named(tmp_path, name):
    folder = byte_level(tmp_path / "m")
    (tmp_path / "m" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "m" / name)
    with pytest.raises(UserError, match=f"{name} is a FIFO, not a file"):
        open_tokenizer(folder)


@pytest.mark.parametrize("inside", ["", "original"])
def test_links_of_the_hugging_face_cache_are_followed(tmp_path, inside):
    snapshot = tmp_path / "snapshots" / "abc" / inside
    snapshot.parent.mkdir(parents=True)
    plain = open_tokenizer(byte_level(snapshot, chat_template=TEMPLATE), chat=True)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(os.path.relpath(tmp_path / "blobs" / str(number), snapshot))
    open_tokenizer.cache_clear()
    linked = open_tokenizer(str(snapshot), chat=True)
    assert (linked.digest, linked.files) == (plain.digest, plain.files)


def test_of_several_templates_the_default_one_is_taken(tmp_path):
    several = [{"name": []}, 3, {"name": "default", "template": "hello"}]
    assert rendered(tmp_path / "m", several) == "hello"


def _with_an_unknown_opening(folder):
    # The library panics on it, which is no Exception.
    byte_level(folder, opens=True)
    made = json.loads((folder / "tokenizer.json").read_text())
    made["post_processor"]["single"][0]["SpecialToken"]["id"] = ""
    (folder / "tokenizer.json").write_text(json.dumps(made))


def _with_half_a_surrogate(folder):
    text = json.dumps({"eos_token": "<|end|>", "bos_token": "\ud800"})
    (folder / "tokenizer_config.json").write_text(text)


def _without_words(folder):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer that can be"),
        (lambda f: (f / "tokenizer_config.json").write_text("[]"), "it is no object"),
        (_without_words, "no end mark is known"),
        (_with_an_unknown_opening, "no tokenizer that can be read"),
        (_with_half_a_surrogate, "can't be read: .*surrogates not allowed"),
    ],
)
def test_a_bad_file_is_named(tmp_path, spoil, said):
    folder = byte_level(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=said):
        open_tokenizer(folder)


def test_chat_without_a_template_is_refused(tmp_path):
    with pytest.raises(UserError, match="no chat template.*leave chat off"):
        open_tokenizer(byte_level(tmp_path / "m"), chat=True)


def test_a_suite_is_read_in_a_models_own_tokens(tmp_path):
    folder = byte_level(tmp_path / "m")
    tokenizer = open_tokenizer(folder)
    suite = tasks.suite(
        "miniworld", tokenizer=folder, train_examples=3, test_examples=3
    )
    words = tasks.suite("miniworld", train_examples=3, test_examples=3)
    (ours,) = tasks.load_suite(suite, "test", datasets=["imdb"])
    (theirs,) = tasks.load_suite(words, "test", datasets=["imdb"])
    assert ours.bos_id is None and theirs.bos_id == 0
    said = [tokenizer.decode(row[:n]) for row, n in zip(*_prompts(ours), strict=True)]
    assert said == [words.tokenizer.decode(row) for row in theirs.prompts]
    tokens, weights = tasks.materialise(suite, "imdb", "train", suite.max_length)
    last = suite.max_length - 1 - np.argmax(weights[:, ::-1], axis=1)
    assert tokens[np.arange(3), last].tolist() == [tokenizer.eos_id] * 3
    assert suite.digest != words.digest


def _prompts(eval_set):
    return eval_set.prompts, eval_set.prompt_lengths


def test_decoding_does_not_list_the_vocabulary(tmp_path, monkeypatch):
    opened = tasks.open_tokenizer(byte_level(tmp_path / "m"))
    ids = opened.encode("the tide is high")

    class Watched:
        def __getattr__(self, name):
            assert name != "get_vocab", "a dictionary of all tokens, for each id"
            return getattr(of, name)

    of = opened._codec._of
    monkeypatch.setattr(opened._codec, "_of", Watched())
    assert opened.decode([*ids, len(opened) + 1]) == "the tide is high"
