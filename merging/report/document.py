"""A self-contained web page: what it holds, and how that becomes HTML.

Pages of sweeps, evaluations, searches and merges are made of this. The template, its
style and its scripts lie in templates/, where a designer can edit them; data reach the
scripts as JSON, and nothing in the page is loaded from anywhere. What would make a page
too large to be mailed lies in files beside it, which it names.
"""

import base64
import contextlib
import gzip
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from merging.report.judging import Verdict
from merging.runtime import storage
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder
from merging.runtime.text import Table, shown

# Compressed rows beyond this are left beside the page.
LARGEST_DOWNLOAD = 600_000
# Longer tables are left beside it, too.
LONGEST_TABLE = 400
# What a page of ours says of the files beside it, near its beginning.
_BEGIN = 2**18
_FILES = re.compile(r'<meta name="merging-files" content="([^"]*)">')
_BESIDE = re.compile(r"(figures|tables)/[\w-]+\.(png|svg|pdf|csv)")


class Panel(NamedTuple):
    """A figure of the page, drawn by its script.

    Attributes:
      name: its anchor; letters, digits and `_`.
      title, caption: in words.
      spec: what templates/plots.js draws, by its `kind`:
        `lines`: a table's rows as lines with intervals, chosen by the page's controls;
        `heat`: a table's rows as a heat map;
        `plot`: Plotly's own `traces` and `layout`; `look: [dimension, value]` in a
        trace gives it the colour, marker and dash of that value. Text is text there:
        a line break is "\\n", and markup is shown as it is.
    """

    name: str
    title: str
    caption: str
    spec: Mapping[str, Any]


class Section(NamedTuple):
    """A part of the page with a heading; one without panels and tables is left out.

    Attributes:
      intro: prose, below the figures.
      opened: whether its tables are unfolded.
    """

    name: str
    title: str
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    intro: str = ""
    opened: bool = False


class Control(NamedTuple):
    """A choice at the top of the page.

    Attributes:
      name: the dimension that it sets.
      label: beside it.
      options: (value, label, group) of each; a group is a heading in the list, or "".
      chosen: the first value.
    """

    name: str
    label: str
    options: Sequence[tuple[str | int, str, str]]
    chosen: str | int


class Download(NamedTuple):
    """A file inside the page: a name, what it is, and its bytes."""

    name: str
    words: str
    data: bytes


class Document(NamedTuple):
    """A page.

    Attributes:
      title, facts: what it is about; what was run, as (name, words).
      answer: its finding, in a few sentences.
      lead: panels of the first screen.
      controls: choices that the panels follow.
      notes: what a reader must mind.
      verdicts, rule, verdict_table: judged claims, if any.
      sections: the rest, in order.
      terms: words of the page, explained.
      provenance: (name, words): enough to get it again.
      tables: what `lines` and `heat` panels draw from.
      looks: dimension → value → what `looks.of` gives.
      labels: dimension → value → words.
      positions: dimension → value → its number on an axis.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    answer: Sequence[str]
    lead: Sequence[Panel] = ()
    controls: Sequence[Control] = ()
    notes: Sequence[str] = ()
    verdicts: Sequence[Verdict] = ()
    rule: str = ""
    verdict_table: Table | None = None
    sections: Sequence[Section] = ()
    terms: Sequence[tuple[str, str]] = ()
    provenance: Sequence[tuple[str, str]] = ()
    downloads: Sequence[Download] = ()
    tables: Sequence[Table] = ()
    looks: Mapping[str, Mapping[str, Any]] = {}
    labels: Mapping[str, Mapping[str, str]] = {}
    positions: Mapping[str, Mapping[str, float]] = {}


_SCRIPTS = ("data.js", "plots.js", "page.js")
_CLASSES = {"holds": "holds", "does not hold": "fails", "mixed": "mixed"}
_CLASSES["not tested"] = "untested"
_MARKS = {"holds": "✓", "does not hold": "✗", "mixed": "≈", "not tested": "–"}


def plot(
    traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `spec` of a panel of Plotly's own traces."""
    return {"kind": "plot", "traces": list(traces), "layout": layout}


def write(
    document: Document, folder: Folder, files: Mapping[str, bytes] | None = None
) -> Folder:
    """Write a page and what lies beside it; return the page's path.

    Of an earlier page there, the figures and tables that this one has not are removed.

    Args:
      document: the page.
      folder: where to; it may hold other things.
      files: figures and tables by name, which no section of the page names.

    Raises:
      UserError: the folder holds a page that we did not write; or can't be written.
    """
    page, written = folder / "index.html", {**(files or {}), **beside(document)}
    earlier = _files_of(page)
    for name, data in written.items():
        storage.write_bytes(folder / name, data)
    for name in earlier - written.keys():
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    # Last: a page that exists has all its files beside it.
    storage.write_bytes(page, render(document, sorted(written)).encode())
    return page


def require_free(folder: Folder) -> None:
    """Refuse a folder where `write` would, before anything is drawn for it.

    Raises:
      UserError: it holds a page that we did not write.
    """
    _files_of(folder / "index.html")


def _files_of(page: Folder) -> set[str]:
    """Return the figures and tables that came with a page; none if there is none.

    Raises:
      UserError: something else has its name.
    """
    if isinstance(page, ObjectPath):
        begin = page.read_range(0, _BEGIN) if page.is_file() else None
    elif page.is_file() and not page.is_symlink():
        with open(page, "rb") as file:
            begin = file.read(_BEGIN)
    else:
        begin = b"" if os.path.lexists(page) else None
    found = _FILES.search("" if begin is None else begin.decode(errors="replace"))
    if begin is not None and found is None:
        raise UserError(
            f"{page} is no page that was written here, and would be written over: "
            "choose another folder, or move it away."
        )
    return {n for n in found[1].split() if _BESIDE.fullmatch(n)} if found else set()


def beside(document: Document) -> dict[str, bytes]:
    """Return the files that a page names as lying beside it, by their names there."""
    found = {d.name: d.data for d in document.downloads if not _fits(d)}
    for section in document.sections:
        for table in section.tables:
            if len(table.rows) > LONGEST_TABLE:
                found[f"tables/{table.name}.csv"] = table.csv()
    return found


def render(document: Document, files: Sequence[str] = ()) -> str:
    """Return the page's HTML; whatever stands in the document is escaped.

    Args:
      document: the page.
      files: names of what lies beside it, by which `write` knows its own.
    """
    # Imported late: the command line must start quickly.
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda value: shown(value, "–", 3)
    environment.filters["download"] = _zipped
    sections = [s for s in document.sections if s.panels or s.tables]
    panels = [*document.lead, *(p for s in sections for p in s.panels)]
    data = {
        "tables": {table.name: columnar(table) for table in document.tables},
        "panels": {panel.name: {**panel.spec, "title": panel.title}
                   for panel in panels},
        "controls": {c.name: c.chosen for c in document.controls},
        "looks": document.looks,
        "labels": document.labels,
        "positions": document.positions,
    }  # fmt: skip
    fits = [download for download in document.downloads if _fits(download)]
    left_out = [download for download in document.downloads if not _fits(download)]
    return environment.from_string(_template("page.html.j2")).render(
        document=document._replace(sections=sections, downloads=fits),
        left_out=left_out,
        files=files,
        longest=LONGEST_TABLE,
        outcomes=_outcomes(document.verdicts),
        classes=_CLASSES,
        marks=_MARKS,
        style=_template("page.css"),
        plotly=_plotly() if panels else "",
        scripts=[_template(name) for name in _SCRIPTS],
        data=_json(data),
    )


def columnar(table: Table) -> dict[str, Any]:
    """A table as small JSON: text as numbers of its levels, floats rounded."""
    columns: dict[str, Any] = {}
    for name, values in zip(table.columns, zip(*table.rows, strict=True), strict=True):
        if any(isinstance(value, str) for value in values):
            levels = list(dict.fromkeys(values))
            at = {level: number for number, level in enumerate(levels)}
            columns[name] = {"levels": levels, "at": [at[v] for v in values]}
        else:
            columns[name] = {"values": [_rounded(value) for value in values]}
    return columns


def versions() -> str:
    """The versions of what draws a page and its figures."""
    found = []
    for name in ("merging", "plotly", "matplotlib", "scipy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def of_run(config: Any, versions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the values and the versions of a run, for `Document.provenance`.

    Args:
      config: its values; None if unknown.
      versions: of what it ran with; empty if unknown.
    """
    values = config and json.dumps(config, indent=1, sort_keys=True, default=str)
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [("Config", values or "unknown"), ("Run with", told or "unknown")]


def _fits(download: Download) -> bool:
    return len(gzip.compress(download.data, mtime=0)) <= LARGEST_DOWNLOAD


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


def _json(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _outcomes(verdicts: Sequence[Verdict]) -> str:
    """How many claims hold, in words."""
    counts = {name: sum(v.outcome == name for v in verdicts) for name in _MARKS}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _zipped(data: bytes) -> str:
    # A gzip header holds a clock reading unless told otherwise.
    return base64.b64encode(gzip.compress(data, mtime=0)).decode("ascii")


def _template(name: str) -> str:
    path = resources.files("merging.report") / "templates" / name
    return path.read_text("utf-8")


def _plotly() -> str:
    """Plotly's script, as its Python package ships it."""
    path = resources.files("plotly") / "package_data" / "plotly.min.js"
    return path.read_text("utf-8")
