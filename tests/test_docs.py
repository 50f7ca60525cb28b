"""The pages are true: their code runs, their commands parse, their messages exist.

What is run of their commands is run in `test_docs_run.py`.
"""

import ast
import doctest
import inspect
import json
import os
import pkgutil
import re
import runpy

import jax
import jax.numpy as jnp
import lora
import numpy as np
import pytest
from pages import DOCS, NAMED, PAGES, ROOT, blocks, commands, write_named
from safetensors.numpy import load_file, save_file

import merging
from merging import checkpoints, methods, models
from merging.cli import main as command_line
from merging.merge import costs
from merging.methods import registry
from merging.models import hf
from merging.runtime import config

MARK = r"<!-- generated: (\w+) -->"
# The pages whose every command is run, from top to bottom, on tiny checkpoints.
RUN = [DOCS / "merge.md", DOCS / "mergekit.md"]
RUN_BY_TEST_PUBLIC_API = {"evaluate", "merge", "plan", "report", "sweep", "train"}
PROGRAMS = {"pip", "export", "pytest", "sbatch", "hf"}

EVERY = [block for page in PAGES for block in blocks(page)]
PYTHON = [b for b in EVERY if b.language == "python" and not b.needs]
README = [b for b in blocks(PAGES[0]) if not b.language]
SHELL = [b for b in EVERY if b.language == "bash" or b in README]


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
    names |= {"embed_tokens.weight": (8, 24), "norm.weight": (24,)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in names.items()}


LEAVES = {"self_attn.q_proj.weight": (24, 24), "mlp.up_proj.weight": (32, 24)}
ADAPTED = ("layers.0.mlp.up_proj", "layers.1.self_attn.q_proj")


def write_checkpoints(folder):
    """Write the models that the pages name, in both formats, and adapters."""
    for seed, name in enumerate(("BASE", "EXPERT1", "EXPERT2", "MODEL")):
        (folder / name).mkdir()
        save_file(tiny_arrays(seed), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    shapes = {n: leaf.shape for n, leaf in tiny_arrays(0).items()}
    for seed, name in enumerate(("ADAPTER1", "ADAPTER2")):
        lora.save(folder / name, lora.factors(seed, ADAPTED, shapes=shapes))
    runs = ("BASE_RUN/100", "SFT_RUN/300", "CODE_RUN/200", "LONG_RUN/1", "LONG_RUN/2")
    decoder = models.size("tiny", "1x", vocab_size=40)
    for seed, run in enumerate(runs):
        params = jax.tree.map(
            lambda leaf, value=seed: np.full(leaf.shape, value, np.float32),
            models.abstract(decoder),
        )
        checkpoints.save(folder / run, {"params": params, "step": np.ones(1, np.int32)})
    (folder / runs[0] / "config.json").write_text(hf.describe(decoder, eos_id=1))


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
    assert (place / "ADAPTER" / "adapter_model.safetensors").exists()
    assert (place / "EXTRACTED" / "adapter_model.safetensors").exists()
    for leaf in load_file(place / "MERGED_HF" / "model.safetensors").values():
        # 0 + 0.4 (1 + 2)
        np.testing.assert_allclose(leaf, np.full(leaf.shape, 1.2), rtol=1e-6)


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


METHODS = dict.fromkeys(
    f"{entry.build.__module__}.{entry.build.__qualname__}"
    for entry in methods.catalogue()
)
API = re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
# Each of these compiles programs that no other test does.
LONG = {*METHODS, "merging.models.init", "merging.models.hf.load"}


def example(name):
    """Return the examples in what the page of the Python API shows under a name."""
    found = doctest.DocTestFinder(recurse=False).find(pkgutil.resolve_name(name), name)
    return [one for one in found if one.examples]


@pytest.mark.parametrize("name", [*API, *METHODS])
def test_every_function_that_the_python_api_lists_shows_an_example(name):
    value = pkgutil.resolve_name(name)
    assert value.__doc__
    assert example(name) or not inspect.isfunction(value)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in LONG else ())
        for name in [*API, *METHODS]
        if example(name) and name.rpartition(".")[2] not in RUN_BY_TEST_PUBLIC_API
    ],
)
def test_the_example_prints_what_it_says(name):
    for one in example(name):
        assert doctest.DocTestRunner().run(one).failed == 0


def test_the_generated_tables_hold_every_method_command_and_config():
    made = runpy.run_path(str(ROOT / "docs" / "generated.py"))["GENERATORS"]
    tables = f"{made['method_table']()}\n{made['preset_table']()}"
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
