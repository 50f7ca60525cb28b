"""How large each room is, and how much of the package a merge or a sweep loads.

  python tests/benchmarks/structure.py [REPOSITORY]

Prints Markdown: lines and lines of code by room (blank lines, comments and docstrings
left out of the second), and how many of our files a fresh process has loaded after it
imported what a job needs. Works on older checkouts, whose modules have other names.
"""

import ast
import collections
import io
import subprocess
import sys
import tokenize
from pathlib import Path

from merge_speed import table

JOBS = {
    "merge": ("merging.merge", "merging.stream", "merging.resident"),
    "evaluate": ("merging.evaluation.job", "merging.scoring"),
    "sweep": ("merging.sweep.driver", "merging.sweep.work"),
}
_COUNT = """
import contextlib, importlib, sys
for name in sys.argv[1:]:
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
ours = [m for n, m in sys.modules.items() if n.split(".")[0] == "merging"]
print(len({getattr(m, "__file__", None) for m in ours} - {None}))
"""
_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
_SILENT += (tokenize.INDENT, tokenize.DEDENT)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> int:
    """Print both tables."""
    default = Path(__file__).parents[2]
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default
    print(table(rooms(root / "merging")))
    print(table([{"job": job, "files": files(root, job)} for job in JOBS]))
    return 0


def rooms(package: Path) -> list[dict[str, object]]:
    """Return a row for each folder of the package, and one of all together."""
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for path in package.rglob("*.py"):
        inside = path.relative_to(package).parts
        text = path.read_text()
        for room in (inside[0] if len(inside) > 1 else "(top)", "all"):
            found[room] += collections.Counter(
                files=1, lines=len(text.splitlines()), code=code_lines(text)
            )
    return [{"room": room} | dict(found[room]) for room in sorted(found)]


def code_lines(text: str) -> int:
    """Return how many lines hold something else than a comment or a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SILENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def files(root: Path, job: str) -> int:
    """Return how many files of the package a fresh process loads for a job."""
    command = [sys.executable, "-c", _COUNT, *JOBS[job]]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(ran.stdout.split()[-1])


if __name__ == "__main__":
    sys.exit(main())
