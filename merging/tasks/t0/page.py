"""The tables as text: a list for the terminal, and the page docs/t0.md."""

from importlib import resources

from merging.runtime import text
from merging.tasks import listing
from merging.tasks.t0 import rendering, tables
from merging.tasks.t0.entries import Entry, Prompt


def listed() -> str:
    """Return a line per dataset, in columns."""
    rows = [("dataset", "split", "category", "metric", "prompts", "source")]
    rows += [
        (e.name, e.split, e.category, e.metric, len(e.prompts), source(e))
        for e in tables.every().values()
    ]
    return text.table(rows)


def source(entry: Entry) -> str:
    """Return where a dataset comes from, in a few words."""
    if entry.source.tfds:
        return f"TFDS {', '.join(entry.source.tfds)}"
    return f"files, or Hugging Face {' '.join(entry.source.huggingface)}"


def shown(entry: Entry, prompt: Prompt, record: rendering.Record) -> str:
    """Return an example under a prompt template, for a person: with its answers."""
    made = rendering.render(entry, prompt, record)
    title = f"{entry.name}, prompt {prompt.name}"
    return listing.shown(title, made.inputs, made.choices, made.label, made.targets)


def markdown() -> str:
    """Return docs/t0.md."""
    import jinja2

    template = resources.files("merging.tasks.t0").joinpath("page.md.j2")
    return jinja2.Template(template.read_text("utf-8")).render(
        entries=list(tables.every().values()),
        least=tables.MINIMUM_PROMPTS,
        source=source,
        example=_example,
    )


def _example(entry: Entry) -> str:
    first = next(iter(entry.prompts.values()))
    return shown(entry, first, rendering.checked(entry, entry.example))
