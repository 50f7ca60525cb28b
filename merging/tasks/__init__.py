"""Suites of tasks: what to train on and what to measure, as NumPy arrays.

``suite(name)`` gives the facts of a suite (datasets, categories, chance) at once;
``store`` gives a training mixture that is read from disk by number, ``materialise`` the
same in memory, and ``load`` / ``load_suite`` the evaluation sets. Underneath, every
dataset is a seqio Task and every mixture a seqio Mixture; TensorFlow is imported when
one is read for the first time, and not when it comes from disk.
"""

from merging.tasks.evalsets import EvalSet, load, load_suite
from merging.tasks.examples import Stored, TokenArrays, materialise, store
from merging.tasks.generated import Generated
from merging.tasks.registry import datasets, names, suite
from merging.tasks.rows import kept_for_user
from merging.tasks.suites import Suite
from merging.tasks.tokenizers import Tokenizer, holds_tokenizer, open_tokenizer

__all__ = [
    "EvalSet",
    "Generated",
    "Stored",
    "Suite",
    "TokenArrays",
    "Tokenizer",
    "datasets",
    "holds_tokenizer",
    "kept_for_user",
    "load",
    "load_suite",
    "materialise",
    "names",
    "open_tokenizer",
    "store",
    "suite",
]
