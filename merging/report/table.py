"""The columns of cells, and every cell in the figures' order."""

from merging.report.summaries import MULTITASK, Grid

SPREAD = ("mean", "sd", "min", "max", "models", "excluded")
CELL = ("size", "params", "base", "method", "K")


def every_cell(grid: Grid):
    """Each cell with models, baselines after the merges, in the figures' order."""
    for size in grid.sizes:
        for base in grid.bases:
            for method in grid.methods:
                for K in grid.counts:
                    if found := grid.models(size, base, method, K):
                        yield size, base, method, K, found
            for method in MULTITASK:
                if found := grid.models(size, base, method):
                    yield size, base, method, found[0].cell.K, found
