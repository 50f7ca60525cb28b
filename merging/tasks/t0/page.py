"""The tables as text: a list for the terminal, and the page docs/t0.md."""

from collections.abc import Iterator

from merging.tasks.t0 import rendering, tables
from merging.tasks.t0.entries import Entry, Field, Prompt

_HEAD = """\
# Suite t0

Written by `merging tasks list --markdown > docs/t0.md` from the tables in
`merging/tasks/t0/datasets`; a test holds the two equal.

Every dataset has {least} or more prompts of our own wording. Results are means over
prompts, with their spread. An example whose answer is one of several choices is scored
by rank classification; the others are generated.

Parts. What is tested on is a dataset's own test part where its answers are public, or
else its validation part; of held-out datasets always the validation part. Where that
leaves no validation part to choose by, the last 5 % of the training part are held back.
A mixture draws a dataset under one prompt in proportion to its training examples, or to
500,000 divided by its prompts if that is less.

Records come from the dataset's TFDS builder, or from files `DIR/NAME/PART.jsonl` with
the fields below, which go first where both are there. Long texts are cut to the number
of words that stands at the field. The examples are invented.
"""


def listed() -> str:
    """Return a line per dataset, in columns."""
    rows = [("dataset", "split", "category", "metric", "prompts", "source")]
    for entry in tables.every().values():
        prompts = str(len(entry.prompts))
        rows.append(
            (
                *(entry.name, entry.split, entry.category, entry.metric, prompts),
                source(entry),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def source(entry: Entry) -> str:
    """Return where a dataset comes from, in a few words."""
    if entry.source.tfds:
        return f"TFDS {', '.join(entry.source.tfds)}"
    return f"files, or Hugging Face {' '.join(entry.source.huggingface)}"


def shown(entry: Entry, prompt: Prompt, columns: list) -> str:
    """Return an example in one wording, for a person: prompt, choices and answer."""
    made = rendering.render(entry, prompt, columns)
    lines = [f"--- {entry.name}, prompt {prompt.name} ---", made.inputs]
    for number, choice in enumerate(made.choices):
        mark = "right" if number == made.label else "choice"
        lines.append(f"[{mark}] {choice}")
    if not made.choices:
        lines.append(f"[target] {made.targets}")
    return "\n".join(lines)


def markdown() -> str:
    """Return docs/t0.md."""
    entries = tables.every().values()
    lines = [_HEAD.format(least=tables.MINIMUM_PROMPTS)]
    lines += [
        "| dataset | split | category | metric | chance | prompts | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        chance = f"{e.chance:g}" if e.ranked else ""
        split = e.split.replace("_", "-")
        category = e.category.replace("_", " ")
        lines.append(
            f"| [{e.name}](#{e.name}) | {split} | {category} | {e.metric} | {chance} | "
            f"{len(e.prompts)} | {source(e)} |"
        )
    return "\n".join(lines) + "\n" + "".join(map(_section, entries))


def _field(field: Field) -> str:
    places = ", ".join(f"`{place}`" for place in field.at)
    return f"{places} ({field.first_words} words)" if field.first_words else places


def _section(entry: Entry) -> str:
    return "\n".join(_section_lines(entry))


def _section_lines(entry: Entry) -> Iterator[str]:
    yield f"\n## {entry.name}\n\n{entry.about}\n"
    parts = ", ".join(f"{split} = `{part}`" for split, part in entry.parts.items())
    counts = ", ".join(f"{p} {n:,}" for p, n in entry.source.examples.items())
    yield f"- Source: {source(entry)}; {counts}"
    yield f"- Parts: {parts}"
    yield f"- Fields: {', '.join(map(_field, entry.fields.values()))}"
    yield f"- Prompts: {', '.join(entry.prompts)}\n"
    first = next(iter(entry.prompts.values()))
    columns = rendering.raw(entry, entry.example)
    yield f"```\n{shown(entry, first, columns)}\n```\n"
