"""Suites of tasks: what to train on and what to measure, as NumPy arrays.

``suite(name)`` gives the facts of a suite (datasets, categories, chance) at once;
``materialise`` gives a training mixture, ``store`` one that is larger than memory,
and ``load`` / ``load_suite`` the evaluation sets. Underneath, every dataset is a seqio
Task and every mixture a seqio Mixture, so TensorFlow is imported when one is read for
the first time, and not when the arrays come out of the cache.
"""

from merging.tasks.arrays import TokenArrays, materialise
from merging.tasks.catalogue import names, suite
from merging.tasks.evalsets import EvalSet, load, load_suite
from merging.tasks.generated import Generated
from merging.tasks.stored import Stored, store
from merging.tasks.suites import Suite
from merging.tasks.tokenizers import Tokenizer, open_tokenizer

__all__ = [
    "EvalSet",
    "Generated",
    "Stored",
    "Suite",
    "TokenArrays",
    "Tokenizer",
    "load",
    "load_suite",
    "materialise",
    "names",
    "open_tokenizer",
    "store",
    "suite",
]
