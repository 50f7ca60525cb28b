"""The memory of every method, streamed, of models that would not fit what is allowed.

  python tests/benchmarks/method_memory.py --workdir matrix
  python tests/benchmarks/method_memory.py --workdir matrix --only ties

One base and up to three experts of 166M parameters in bfloat16 (170M for methods that
see whole matrices, of which a budget holds few) are merged by a whole command under a
budget of 50 MB. No method may take more anonymous memory than its budget and 0.4 GB,
and a method of matrices the largest matrix of each model in float32. One model is 0.33
GB, and 0.66 in float32: a merge that holds one, beside Python and JAX, is above that.
Numbers and rows are as `method_matrix.py` has them; every method is a line of
DIR/large.jsonl. The models and their statistics take 9 GB of disk.
"""

import argparse
import math
import re
import sys
from pathlib import Path

import inputs
import merge_trials
import method_matrix as matrix
from method_matrix import ALLOWANCE, Size

from merging import methods
from merging.runtime import storage

# An embedding of many blocks; and many matrices, of which a few fit the budget.
LARGE = Size(
    inputs.Shape(1024, 6, 4096, 16, 32000),
    inputs.Shape(512, 40, 2048, 8, 2048),
    budget="50MB",
    matrix_budget="50MB",
)


def main() -> int:
    """Measure every method, print the table, return 0 if all hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--only", default="", help="methods whose name matches this")
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    chosen = [name for name in methods.names() if re.search(options.only, name)]
    return matrix.each(options.workdir / "large.jsonl", chosen, row, options)


def row(options: argparse.Namespace, name: str) -> dict:
    """Return the memory that a method takes."""
    if matrix.built(name).statistics:
        matrix.gather(options.workdir, name, LARGE)
    output = options.workdir / "out" / "large"
    command = matrix.command_of(options.workdir, name, LARGE, output)
    _, usage = matrix.streamed(options, command, output)
    merge_trials.fresh(output)
    shape, budget = matrix.size_of(name, LARGE)
    models = 1 + matrix.cases.experts_for(name)
    largest = max(math.prod(dims) for _, dims in inputs.tensors(shape))
    allowed = storage.parse_size(budget) + ALLOWANCE
    allowed += 4 * largest * models * matrix.sees_matrices(name)
    return {
        "method": name,
        "models": models,
        "parameters": shape.parameters,
        "budget": budget,
        "anonymous GB": round(usage.anonymous / 1e9, 3),
        "allowed": round(allowed / 1e9, 3),
        "holds": usage.anonymous <= allowed,
    }


if __name__ == "__main__":
    sys.exit(main())
