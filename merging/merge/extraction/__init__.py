"""An adapter out of two checkpoints: what a model adds to its base, of a low rank."""

from merging.merge.extraction.job import extract, run

__all__ = ["extract", "run"]
