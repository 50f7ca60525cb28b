"""Digests taken while leaves are written, whatever the order of their parts."""

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from merging.merge.digests import Digests

SIZE, PART = 1000, 30


class Leaf:
    """A leaf that can be written and read, and what of it was read back."""

    def __init__(self):
        self.values = np.zeros(SIZE, np.float32)
        self.new = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
        self.read = []
        leaves = {"w": jax.ShapeDtypeStruct((SIZE,), np.float32)}
        self.digests = Digests(leaves, self._read_into)

    def write(self, start):
        part = self.new[start : start + PART]
        self.values[start : start + PART] = part
        self.digests.add("w", start, part)

    def expected(self):
        return {"w": hashlib.sha256(self.values.tobytes()).hexdigest()}

    def _read_into(self, path, start, out):
        self.read.append((start, out.size))
        out[:] = self.values[start : start + out.size]


@pytest.fixture
def leaf():
    return Leaf()


STARTS = range(0, SIZE, PART)


def test_parts_in_order_are_not_read_back(leaf):
    for start in STARTS:
        leaf.write(start)
    assert leaf.digests.finish() == leaf.expected()
    assert leaf.read == []


def test_a_part_that_comes_too_early_is_read_back_in_its_turn(leaf):
    early = 4 * PART
    leaf.write(early)
    for start in STARTS:
        if start != early:
            leaf.write(start)
    assert leaf.digests.finish() == leaf.expected()
    assert leaf.read == [(early, PART)]


@pytest.mark.parametrize("seed", range(5))
def test_parts_in_any_order_from_several_threads(leaf, seed):
    order = list(STARTS)
    random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(leaf.write, order))
    assert leaf.digests.finish() == leaf.expected()


def test_what_an_earlier_run_wrote_is_read(leaf):
    leaf.values[:] = leaf.new  # and then killed
    for start in STARTS[5:]:
        leaf.write(start)
    assert leaf.digests.finish() == leaf.expected()
    assert leaf.read[0][0] == 0


@pytest.mark.parametrize("again", [0, 7 * PART])
def test_a_part_that_is_written_over_counts_as_it_is_then(leaf, again):
    for start in STARTS:
        leaf.write(start)
    leaf.new = leaf.new + 1
    leaf.write(again)
    assert (leaf.values[again] == leaf.new[again]) and leaf.values[-1] != leaf.new[-1]
    assert leaf.digests.finish() == leaf.expected()


def test_a_part_that_is_written_over_while_it_is_read_counts_as_it_is_then(leaf):
    """As when a majority is applied to what an earlier run and this one have merged."""
    second = STARTS[1]
    leaf.write(second)
    leaf.new, read_into = leaf.new + 1, leaf.digests._read_into

    def written_over(path, start, out):
        read_into(path, start, out)
        if start == second and leaf.values[second] != leaf.new[second]:
            leaf.write(second)  # by another thread

    leaf.digests._read_into = written_over
    leaf.write(0)
    for start in STARTS[2:]:
        leaf.write(start)
    assert leaf.digests.finish() == leaf.expected()


def test_leaves_of_others_are_theirs_to_digest(leaf):
    leaf.digests.add("other", 0, leaf.new)
    assert leaf.digests.finish() == leaf.expected()
