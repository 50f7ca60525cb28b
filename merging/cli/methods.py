"""`merging methods`: every merge method."""

import argparse
import json
import textwrap

from merging.cli.command import Command, print_for_a_pipe

# Its λ come from a job of its own; what merges is task arithmetic by layer.
_ADAMERGE = """\
AdaMerging is a job of its own (merging adamerge)
    θ = θ₀ + Σ λ[layer, expert] Δ, λ by the entropy of predictions on unlabelled prompts
    Yang et al. 2024, arXiv 2310.02575
    for each of 500 steps a forward and a backward pass; all models in memory
    start 0.3, Adam's learning rate 0.001, λ within 0 and 1"""


def _run(arguments: argparse.Namespace) -> int:
    from merging import methods
    from merging.merge.costs import cost

    if arguments.file:
        methods.load_file(arguments.file)
    records = []
    for entry in methods.catalogue():
        method = entry.build()
        costs = cost(method)
        records.append(
            {
                "name": entry.name,
                "parameters": dict(entry.parameters),
                "definition": entry.definition,
                "paper": entry.paper,
                "experts": method.takes,
                "needs_base": method.needs_base,
                "cost": str(costs),
                **costs._asdict(),
                "evidence": entry.evidence,
            }
        )
    if arguments.json:
        text = json.dumps(records, indent=2)
    else:
        text = "\n\n".join([*map(_method_text, records), _ADAMERGE, _spaces_text()])
    print_for_a_pipe(text)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--file", metavar="MINE.py", help="list the methods that it registers, too"
    )


def _method_text(record: dict) -> str:
    settings = ", ".join(f"{k}={v!r}" for k, v in record["parameters"].items())
    many = {None: "", 1: ", of one expert", 2: ", of two experts"}[record["experts"]]
    lines = [
        record["definition"],
        record["paper"],
        f"{record['cost']}{many}{'' if record['needs_base'] else ', without a base'}",
        record["evidence"],
    ]
    body = "\n".join(filter(None, lines))
    return f"{record['name']}({settings})\n{textwrap.indent(body, '    ')}"


def _spaces_text() -> str:
    """Say what LoRA adapters can be merged in, by any of the methods."""
    from merging.merge.spaces import SPACES

    lines = ["LoRA adapters into an adapter, by any of these (--config.space):"]
    for name, space in SPACES.items():
        lines.append(f"    {name}: {(space.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


COMMAND = Command(
    "list every merge method with its parameters, paper, cost and evidence",
    """\
    List every merge method: its parameters with defaults, its definition in a
    line, its paper, the passes that it takes over the inputs (and memory beyond
    the budget), how many experts it merges if not any number, and what is known
    of its worth.

    examples:
      merging methods
      merging methods --json
      merging methods --file mine.py
    """,
    _options,
    _run,
)
