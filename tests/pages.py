"""The pages of the documentation, as their fenced blocks and the commands in them.

A fenced block of a page is run or checked unless a line says what the rest needs that a
test has not, such as `# needs: a network`. A block whose first line is a file's name,
`# mine.py`, is also written under that name, for the commands below it.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES += sorted((DOCS / "results").glob("*/README.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS, NAMED = re.compile(r"# needs: \S"), re.compile(r"# (\w+\.(?:py|yml|jsonl))")


class Block(NamedTuple):
    """A fenced block: its page, its language, its text, and the line it starts at."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def id(self):
        return f"{self.page.name}:{self.line}"

    @property
    def needs(self):
        return NEEDS.match(self.text) is not None


def blocks(page):
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, found[1], found[2], line)


def commands(text):
    """Return a block's commands, as lists of words, up to a line that needs more."""
    lines = text.replace("\\\n", " ").splitlines()
    ready: list[str] = []
    for line in lines:
        if NEEDS.match(line):
            break
        ready += [part.strip() for part in line.split("&&")]
    return [words for words in (shlex.split(x, comments=True) for x in ready) if words]


def write_named(block, folder):
    """Write a block under the name that its first line gives, if it gives one."""
    if name := NAMED.match(block.text):
        (folder / name[1]).write_text(block.text)
