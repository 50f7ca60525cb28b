"""The layers of the design, read from every file's imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "merging"

# Imports go down, or sideways to a public name. Every room is here, and no other.
LAYERS = {
    0: "runtime",
    1: "methods checkpoints models",
    2: "merge tasks",
    3: "evaluation training",
    4: "sweep analysis planning report",
    5: "cli __main__",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}
# `merging/__init__.py` offers names of the rooms, and only when asked for them.
LAYER_OF["__init__"] = 5

# Rooms that may use less of ours than their layer allows: {room: modules}.
ONLY = {
    "methods": {f"merging.runtime.{name}" for name in ("errors", "numerics", "tree")}
}
NEVER = {"merge": {"tasks", "models"}}
# The evaluator knows a predictor and no model; here the two meet.
KNOWS_NO_MODEL = {"evaluation": "evaluation/job.py"}
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "t5"}
MAY_USE_TENSORFLOW = {"tasks", "evaluation"}


PRIVATE = re.compile(r"_(?!_)")  # and not __all__, __file__


class Import(NamedTuple):
    """One imported dotted name, e.g. `merging.merge.rules`, and where."""

    owner: str
    name: str
    where: str


def package_of(dotted):
    """Return `merge` of `merging.merge.rules`; `__init__` of names of merging's own."""
    part = (dotted.split(".") + ["__init__"])[1]
    is_module = part in LAYER_OF or (PACKAGE / f"{part}.py").exists()
    return part if is_module else "__init__"


def imports_of(path, root=PACKAGE):
    """Yield what a file imports, and the privates it takes of what it imported."""
    inside = path.relative_to(root)
    owner = inside.parts[0].removesuffix(".py")
    package = ["merging", *inside.parts[:-1]]
    nodes = list(ast.walk(ast.parse(path.read_text())))
    bound = {}  # name in this file -> what it was imported as
    for node in nodes:
        where = f"{inside}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            names = {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            names = {a.asname or a.name: f"{base}.{a.name}" for a in node.names}
        else:
            continue
        bound |= names
        yield from (Import(owner, name, where) for name in names.values())
    for node in nodes:
        if not isinstance(node, ast.Attribute) or not PRIVATE.match(node.attr):
            continue
        first, _, rest = ast.unparse(node).partition(".")
        name = f"{bound.get(first, first)}.{rest}"
        if name.startswith("merging."):
            yield Import(owner, name, f"{inside}:{node.lineno}")


def all_imports(root=PACKAGE):
    files = sorted(root.rglob("*.py"))
    return [found for path in files for found in imports_of(path, root)]


def violations(imports):
    """Return a line for every import that the design forbids."""
    found = []
    for owner, name, where in imports:
        top = name.split(".")[0]
        if top in TENSORFLOW and owner not in MAY_USE_TENSORFLOW:
            found.append(f"{where}: {owner} imports {top}")
        if top != "merging":
            continue
        target = package_of(name)
        if target == owner:
            continue
        if LAYER_OF.get(target, 0) > LAYER_OF.get(owner, 4) and owner != "__init__":
            found.append(f"{where}: {owner} imports {target}, a layer above")
        allowed = ONLY.get(owner, ("merging",))
        if not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed):
            found.append(f"{where}: {owner} may import only {sorted(allowed)}")
        if target in NEVER.get(owner, ()):
            found.append(f"{where}: {owner} must never import {target}")
        meeting = KNOWS_NO_MODEL.get(owner, where.split(":")[0])
        if target in ("models", "checkpoints") and where.split(":")[0] != meeting:
            found.append(f"{where}: only {meeting} may import {target}")
        if any(part.startswith("_") for part in name.split(".")[1:]):
            found.append(f"{where}: {name} is private to {target}")
    return found


def cycle(imports):
    """Return the packages of one import cycle, or nothing."""
    edges = [(i.owner, package_of(i.name)) for i in imports if "merging." in i.name]
    edges = [edge for edge in edges if edge[0] != "__init__"]
    uses = {name: set() for edge in edges for name in edge}
    for owner, target in edges:
        uses[owner].add(target)
    while leaves := [name for name in uses if not uses[name] - {name}]:
        for leaf in leaves:
            del uses[leaf]
            for others in uses.values():
                others.discard(leaf)
    return sorted(uses)


def test_every_module_has_a_layer():
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert found - {"__pycache__", "py.typed"} == set(LAYER_OF)


def test_every_folder_of_modules_is_installed_as_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [path for path in folders if not (path / "__init__.py").exists()]


def test_imports_go_down_and_never_into_privates():
    assert violations(all_imports()) == []


def test_packages_do_not_import_each_other_in_a_circle():
    assert cycle(all_imports()) == []


def test_the_miniworld_is_plain_python_and_numpy():
    files = sorted((PACKAGE / "tasks" / "miniworld").glob("*.py"))
    used = {i.name.split(".")[0] for path in files for i in imports_of(path)}
    assert files
    assert used - sys.stdlib_module_names <= {"merging", "numpy"}


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("runtime/tree.py", "from merging import merge", "a layer above"),
        (
            "methods/ties.py",
            "from merging.runtime.sharding import make_mesh",
            "may import only",
        ),
        (
            "methods/ties.py",
            "def f():\n    import merging.runtime.progress",
            "may import only",
        ),
        ("merge/job.py", "import merging.models.decoder", "must never import models"),
        (
            "evaluation/scores.py",
            "from merging import models",
            "only evaluation/job.py",
        ),
        ("evaluation/rows.py", "import merging.checkpoints", "may import checkpoints"),
        ("models/decoder.py", "from merging.runtime.sharding import _rule", "private"),
        ("models/decoder.py", "from ..methods._ties import x", "is private to"),
        (
            "sweep/work.py",
            "from merging.merge import memory as m\nm._prepare(1)",
            "merging.merge.memory._prepare is private to merge",
        ),
        (
            "sweep/work.py",
            "import merging.merge.memory\nmerging.merge.memory._prepare(1)",
            "merging.merge.memory._prepare is private to merge",
        ),
        ("sweep/work.py", "def f():\n    import seqio", "sweep imports seqio"),
        ("report/page.py", "from tensorflow import data", "report imports tensorflow"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, path, code, expected):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)
    assert expected in " ".join(violations(all_imports(tmp_path)))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("methods/ties.py", "from merging.runtime.numerics import threshold"),
        ("models/decoder.py", "from merging.models._attention import attend"),
        ("models/decoder.py", "from merging.runtime.sharding import make_mesh"),
        ("tasks/suite.py", "def f():\n    import seqio"),
        ("sweep/driver.py", "from merging import training"),
        ("sweep/driver.py", "from merging import sweep\nsweep._store, sweep.__all__"),
        ("sweep/driver.py", "from merging import merge\nmerge.__file__"),
        ("evaluation/job.py", "from merging import checkpoints, models"),
    ],
)
def test_an_allowed_import_is_not_found(tmp_path, path, code):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)
    assert violations(all_imports(tmp_path)) == []


def test_a_circle_is_found():
    one = Import("models", "merging.tasks.suite", "")
    other = Import("tasks", "merging.models.init", "")
    assert cycle([one]) == []
    assert cycle([one, other]) == ["models", "tasks"]


def loaded_by(statements):
    """Return the top-level modules in a fresh interpreter after the statements."""
    code = f"import sys\n{statements}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"jax", "flax", "orbax", "numpy", "ml_collections", "rich", *TENSORFLOW}
    assert loaded_by("import merging, merging.cli.main") & heavy == set()


def test_asking_for_a_name_of_the_package_imports_its_module():
    loaded = loaded_by("import merging\nassert callable(merging.methods.get)")
    assert "jax" in loaded and not loaded & TENSORFLOW


def test_nothing_but_tasks_and_evaluation_loads_tensorflow():
    names = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    names &= set(LAYER_OF) - MAY_USE_TENSORFLOW - {"__init__", "__main__"}
    assert {"merge", "training", "sweep"} <= names
    modules = ", ".join(f"merging.{name}" for name in sorted(names))
    assert loaded_by(f"import merging, {modules}") & TENSORFLOW == set()
