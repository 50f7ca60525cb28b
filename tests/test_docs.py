"""The pages are true: their code runs, their commands parse, their messages exist.

A fenced block of a page is run or checked unless a line says what the rest needs that a
test has not, such as `# needs: a network`. A block whose first line is a file's name,
`# mine.py`, is also written under that name, for the commands below it.
"""

import ast
import doctest
import inspect
import json
import os
import pkgutil
import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import merging
from merging import checkpoints, methods
from merging.cli import main as command_line
from merging.merge import costs
from merging.methods import registry
from merging.runtime import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "results").glob("*/README.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS, NAMED = re.compile(r"# needs: \S"), re.compile(r"# (\w+\.(?:py|yml|jsonl))")
MARK = r"<!-- generated: (\w+) -->"
# The pages whose every command is run, from top to bottom, on tiny checkpoints.
RUN = [ROOT / "docs" / name for name in ("merge.md", "mergekit.md")]
RUN_BY_TEST_PUBLIC_API = {"evaluate", "merge", "plan", "report", "sweep", "train"}
PROGRAMS = {"pip", "export", "pytest", "sbatch", "hf"}


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


EVERY = [block for page in PAGES for block in blocks(page)]
PYTHON = [b for b in EVERY if b.language == "python" and not b.needs]
README = [b for b in blocks(PAGES[0]) if not b.language]
SHELL = [b for b in EVERY if b.language == "bash" or b in README]


def write_named(block, folder):
    """Write a block under the name that its first line gives, if it gives one."""
    if name := NAMED.match(block.text):
        (folder / name[1]).write_text(block.text)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Return an empty folder to work in; methods of a page's are forgotten after it."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def only_parsed(monkeypatch):
    """Have commands load their config and do nothing else; return what was asked."""
    asked = []

    def note(arguments):
        if getattr(arguments, "config", None):
            config.load(arguments.config, arguments.overrides)
        asked.append(arguments.command)
        return 0

    parsed = {n: c._replace(run=note) for n, c in command_line.COMMANDS.items()}
    monkeypatch.setattr(command_line, "COMMANDS", parsed)
    monkeypatch.setattr(command_line, "tell_processes", lambda arguments: None)
    monkeypatch.setattr(command_line.preemption, "watch", lambda: None)
    return asked


def slug(heading):
    """Return the anchor that a heading has, on GitHub and in the built pages."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_takes_two_minutes_and_its_links_lead_somewhere():
    text = PAGES[0].read_text()
    assert len(text.split()) <= 520
    assert [b.language for b in blocks(PAGES[0])] == ["", "", "", "python", "", ""]
    links = re.findall(r"\]\((?!https:)([^)#]+)#?([^)]*)\)", text)
    assert len(links) > 20
    for target, anchor in links:
        assert (ROOT / target).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / target).read_text(), re.M)
            assert anchor in map(slug, headings), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_there_is(page, place, only_parsed, capsys):
    (place / "configs").symlink_to(ROOT / "configs")
    wanted = 0
    for block in (b for b in EVERY if b.page == page):
        write_named(block, place)
        if block not in SHELL:
            continue
        for program, *words in commands(block.text):
            if program != "merging":
                known = program in PROGRAMS or (ROOT / program).exists()
                assert known, f"{block.id}: {program}"
                continue
            status = command_line.main(words)
            assert status == 0, f"{block.id}: {words}: {capsys.readouterr().err}"
            wanted += "--help" not in words
    assert len(only_parsed) == wanted


def tiny_arrays(seed):
    rng = np.random.default_rng(seed)
    names = {f"layers.{i}.{n}": s for i in (0, 1) for n, s in LEAVES.items()}
    names |= {"embed_tokens.weight": (8, 4), "norm.weight": (4,)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in names.items()}


LEAVES = {"self_attn.q_proj.weight": (4, 4), "mlp.up_proj.weight": (6, 4)}


def write_checkpoints(folder):
    """Write the models that the pages name, in both formats."""
    for seed, name in enumerate(("BASE", "EXPERT1", "EXPERT2")):
        (folder / name).mkdir()
        save_file(tiny_arrays(seed), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    runs = ("BASE_RUN/100", "SFT_RUN/300", "CODE_RUN/200", "LONG_RUN/1", "LONG_RUN/2")
    for seed, run in enumerate(runs):
        arrays = {"w": np.full((4, 4), seed, np.float32)}
        checkpoints.save(folder / run, {"params": arrays, "step": np.ones(1, np.int32)})


def test_the_commands_of_the_merge_pages_run_as_written(place, capsys):
    write_checkpoints(place)
    for block in (block for page in RUN for block in blocks(page)):
        write_named(block, place)
        if block.language == "yaml":
            (place / NAMED.match(block.text)[1]).write_text(block.text)
        if block.language != "bash":
            continue
        for _, *words in commands(block.text):
            status = command_line.main(words)
            assert status == 0, f"{block.id}: {words}: {capsys.readouterr().err}"
    assert (place / "AGAIN" / "manifest.json").exists()
    assert (place / "FROM_YAML" / "model.safetensors").exists()
    merged = checkpoints.restore(place / "MERGED_ORBAX")
    # 0 + 0.4 (1 + 2)
    np.testing.assert_allclose(merged["w"], np.full((4, 4), 1.2), rtol=1e-6)


def without_long_work(monkeypatch):
    """Have `evaluate` and `plan` look at their arguments only; merges are merged."""
    for name in ("evaluate", "plan"):
        signature = inspect.signature(getattr(merging, name))

        def look(*given, signature=signature, **named):
            signature.bind(*given, **named)
            return {"estimates": []} if "where" in signature.parameters else []

        monkeypatch.setattr(merging, name, look)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.id)
def test_the_python_of_the_pages_runs_and_prints_what_it_says(
    block, place, monkeypatch, capsys
):
    without_long_work(monkeypatch)
    for seed, name in enumerate(("base", "qa", "nli")):
        (place / name).mkdir()
        save_file(tiny_arrays(seed), place / name / "model.safetensors")
    models = {n: {"w": jnp.full(3, float(i))} for i, n in enumerate(("base", "qa"))}
    names = {**models, "nli": {"w": jnp.zeros(3)}, "__name__": "page"}
    exec(compile(block.text, block.id, "exec"), names)
    said = re.findall(r"^\s*print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert not said or capsys.readouterr().out.splitlines() == said
    if get_config := names.get("get_config"):
        assert get_config()


def test_the_python_api_has_what_its_page_lists_and_the_examples_run():
    page = (ROOT / "docs" / "api.md").read_text()
    names = re.findall(r"^\.\. auto\w+:: (\S+)$", page, re.MULTILINE)
    assert len(names) > 30
    for name in names:
        value = pkgutil.resolve_name(name)
        assert value.__doc__, name
        if name.rpartition(".")[2] in RUN_BY_TEST_PUBLIC_API:
            continue
        finder = doctest.DocTestFinder(recurse=False)
        for example in finder.find(value, name):
            assert doctest.DocTestRunner().run(example).failed == 0, name


def test_the_generated_tables_hold_every_method_command_and_config():
    made = runpy.run_path(str(ROOT / "docs" / "generated.py"))["GENERATORS"]
    tables = made["method_table"]() + made["preset_table"]()
    for entry in methods.catalogue():
        start = f"| **{entry.name}** `("
        (row,) = [line for line in tables.splitlines() if line.startswith(start)]
        name, formula, cost, known = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert all(f"{key}=" in name for key in entry.parameters)
        assert entry.definition.replace("|", r"\|") in formula
        assert cost == str(costs.cost(entry.build())) and "pass" in cost
        plain = re.sub(r"\[(arXiv [\d.]+)\]\(\S+?\)", r"\1", known)
        assert plain == (entry.evidence or "nothing measured here")
    assert sum(entry.evidence != "" for entry in methods.catalogue()) >= 8
    assert "autofunction:: merging.methods.presets.ties\n" in made["method_pages"]()
    listed = re.findall(r"^\| \[`merging (\w+)`\]", made["command_table"](), re.M)
    assert listed == list(command_line.COMMANDS)
    named = re.findall(r"^\| `(.+?)` \|", made["configs"](), re.MULTILINE)
    assert named == list(config.shipped())
    marks = [m for page in PAGES for m in re.findall(MARK, page.read_text())]
    assert marks and set(marks) == set(made)


def texts_of_the_program():
    """Return every text in the package's source, parts of f-strings apart."""
    found = []
    for path in (ROOT / "merging").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = [n.value for n in nodes if isinstance(n, ast.Constant)]
        found += [text for text in texts if isinstance(text, str)]
    return "\n".join(found)


def test_every_message_that_is_explained_is_one_that_the_program_gives():
    program = texts_of_the_program()
    page = (ROOT / "docs" / "messages.md").read_text().partition("## Ends that")[0]
    rows = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(rows) > 40
    parts = [part.strip() for row in rows for part in row.split("…")]
    unknown = [part for part in parts if part and part not in program]
    assert not unknown


def test_the_notebooks_are_stored_with_the_outputs_of_one_run():
    paths = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert paths
    for path in paths:
        text = path.read_text()
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        assert [c["execution_count"] for c in cells] == [*range(1, len(cells) + 1)]
        kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
        assert "display_data" in kinds and "error" not in kinds, path
        assert os.path.sep + "tmp" not in text and len(text) < 2_000_000
