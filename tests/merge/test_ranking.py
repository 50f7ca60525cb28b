"""A whole leaf's threshold by a sample: that of a look at all magnitudes, or none."""

import contextlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from safetensors.numpy import load_file

from merging import methods
from merging.merge import memory, on_host, pipeline, ranking, search
from merging.merge import streamed as stream
from merging.methods import Threshold, combiners
from merging.methods.transforms import cutoff_of
from merging.runtime import numerics

SHAPE = {"model.layers.0.mlp.up_proj.weight": (513, 130)}


def changes(kind):
    """Task vectors whose magnitudes are all different, in heaps, or both."""
    rng = np.random.default_rng(7)
    size = SHAPE["model.layers.0.mlp.up_proj.weight"]
    whole = rng.standard_normal(size).astype(np.float32)
    heaps = (np.ceil(np.abs(whole) * 3) / 3 * np.sign(whole)).astype(np.float32)
    return {
        "different": whole,
        "heaps": heaps,
        "both": np.where(rng.random(size) < 0.5, whole, heaps),
        "equal": np.full(size, 0.25, np.float32),
        "zero": np.zeros(size, np.float32),
        # Where a sample of every so many sees other magnitudes than there are.
        "misleading": np.where(np.arange(whole.size).reshape(size) % 65, whole, 9e9),
    }[kind]


@contextlib.contextmanager
def every_thread_wide(wide):
    """As JAX_ENABLE_X64=1, which `jax.enable_x64` is for one thread only."""
    jax.config.update("jax_enable_x64", wide)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.fixture
def seen(monkeypatch):
    """What `selected` returned, beside what a look at all magnitudes finds."""
    found = []
    monkeypatch.setattr(ranking, "SAMPLED", 1024)
    monkeypatch.setattr(ranking, "LEAST", 1000)
    monkeypatch.setattr(ranking, "HEAP", 8)
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(pipeline.jax, "local_devices", lambda: one_device)
    select = ranking.selected

    def selected(one, wanted):
        cut = select(one, wanted)
        layout = one.stage.group.layout
        (size,) = layout.sizes
        keys = one.keys().reshape(-1)[:size]
        found.append((cut, search.selected(layout, wanted, [[keys]])))
        return cut

    monkeypatch.setattr(ranking, "selected", selected)
    return found


@pytest.mark.parametrize("ties", ["exact", "keep_all"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "kind", ["different", "heaps", "both", "equal", "zero", "misleading"]
)
def test_the_threshold_is_that_of_a_look_at_all(kind, dtype, ties, seen, tmp_path):
    start = {path: np.zeros(shape, dtype) for path, shape in SHAPE.items()}
    moved = {path: changes(kind).astype(dtype) for path in SHAPE}
    base, expert = (
        models.save(tmp_path / n, of) for n, of in (("base", start), ("expert", moved))
    )
    told = set()
    with every_thread_wide(dtype == jnp.float64):
        for density in (0.0005, 0.2, 0.7, 0.9999, 1):
            trim = methods.trim(density, "tensor", ties)
            combiner = combiners.sum()
            method = methods.compose("trimmed", trim, combiner=combiner, scale=1.0)
            output = tmp_path / f"merged{density}"
            stream.merge_checkpoints(base, [expert], method, output)
            merged = load_file(output / "model.safetensors")
            whole = memory.merge(start, {"expert": moved}, method)
            assert models.bits(merged) == models.bits(whole)
            ((cut, expected),) = seen
            seen.clear()
            if cut is not None:
                told.add(density)
                magnitudes = np.abs(moved[next(iter(SHAPE))]).reshape(-1)
                assert_same(cut, expected, magnitudes)
    assert told & {0.2, 0.7} == (set() if kind == "misleading" else {0.2, 0.7})


def assert_same(cut, expected, magnitudes):
    """Two rules keep the same elements."""
    wide = magnitudes.dtype == np.float64
    keys = magnitudes.astype(np.float64 if wide else np.float32)
    keys = keys.view(np.uint64 if wide else np.uint32).astype(np.int64)
    place = np.arange(len(keys))
    first, second = (
        (keys > t) | ((keys == t) & (place < c)) for (t,), (c,) in (cut, expected)
    )
    assert (first == second).all()


@jax.tree_util.register_static
@dataclass(frozen=True)
class Selected:
    """A user's selection: its score is not 0 where numbers are, or also elsewhere."""

    share: float
    scope: str
    ties: str
    inverse: bool
    granularity = "element"

    @property
    def thresholds(self):
        return (Threshold(self.rank, self.scope, self.ties),)

    def rank(self, elements):
        return int(self.share * elements)

    def score(self, values, weights, base):
        apart = jnp.abs(values[0] - values[1])
        return 1 / (1 + apart) if self.inverse else jnp.where(apart > 1, apart, 0)

    def state(self, layout, found):
        return cutoff_of(layout, found[0])

    def apply(self, values, weights, base, index, state):
        score = self.score(values, weights, base)
        keys = numerics.magnitude_keys(score, state.threshold.dtype)
        keep = numerics.kept(keys, index, state.threshold, state.cutoff)
        return [jnp.where(keep, value, 0) for value in values]


def first_two(values, weights, state):
    return values[0] + values[1]


# Of one block, with padding at its end; of blocks with padding between them.
@pytest.mark.parametrize("size", [262_044, 600_000])
@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_what_fills_up_a_block_is_not_ranked(size, inverse, scope, seen, tmp_path):
    rng = np.random.default_rng(0)
    start = {"w": np.zeros(size, np.float32)}
    experts = {f"e{i}": {"w": rng.standard_normal(size, np.float32)} for i in range(2)}
    saved = [models.save(tmp_path / name, of) for name, of in experts.items()]
    base = models.save(tmp_path / "base", start)
    for ties in ("exact", "keep_all"):
        selection = Selected(0.3 if inverse else 0.9, scope, ties, inverse)
        combiner = combiners.combiner(first_two, selections=(selection,))
        method = methods.compose("selected", combiner=combiner, scale=1.0)
        output = tmp_path / ties
        budget = "1GB" if size < 300_000 else "20MB"
        stream.merge_checkpoints(base, saved, method, output, memory_budget=budget)
        merged = load_file(output / "model.safetensors")
        assert models.bits(merged) == models.bits(memory.merge(start, experts, method))


@pytest.mark.parametrize("shape", [(513, 130), (2, 1024, 33), (40_000,)])
@pytest.mark.parametrize(
    "method",
    [
        methods.rht(density=0.4),
        methods.breadcrumbs(scope="tensor"),
        methods.ties(scope="tensor"),
    ],
    ids=lambda method: method.name,
)
def test_several_experts_and_thresholds(shape, method, seen, tmp_path):
    start = models.base(shapes={"w": shape})
    del start["positions"]
    experts = {f"e{i}": models.expert(start, i) for i in range(3)}
    saved = [models.save(tmp_path / name, of) for name, of in experts.items()]
    base = models.save(tmp_path / "base", start)
    stream.merge_checkpoints(base, saved, method, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    whole = memory.merge(start, experts, method)
    assert models.bits(merged) == models.bits(whole)
    assert sum(cut is not None for cut, _ in seen) >= 3


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (4, 512), "b": (9, 32), "c": (3,)},  # what fills up "b" has a's rank
        {"a": (4, 66), "b": (9, 65)},
        {"a": (32, 130), "b": (16, 1030), "c": (8, 130)},  # in parts of eight rows
    ],
)
@pytest.mark.parametrize(
    "method",
    [
        methods.breadcrumbs_ties(density=0.4, scope="row"),
        methods.ties(scope="row", ties="exact"),
        methods.breadcrumbs(density=0.4, scope="row"),
        methods.della(),
    ],
    ids=lambda method: method.name,
)
def test_rows_are_ranked_by_numpy_as_by_the_devices(
    shapes, method, tmp_path, monkeypatch
):
    """On one device by NumPy, some rows at a time; on several by XLA."""
    start = models.base(shapes=shapes)
    experts = {f"e{i}": models.expert(start, i) for i in range(2)}
    saved = [models.save(tmp_path / name, of) for name, of in experts.items()]
    base = models.save(tmp_path / "base", start)
    stream.merge_checkpoints(base, saved, method, tmp_path / "several")
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(pipeline.jax, "local_devices", lambda: one_device)
    monkeypatch.setattr(on_host, "PART", 512)
    stream.merge_checkpoints(base, saved, method, tmp_path / "one")
    several, one = (
        models.bits(load_file(tmp_path / name / "model.safetensors"))
        for name in ("several", "one")
    )
    assert one == several


@pytest.mark.parametrize("density", [0.75, 0.9, 1.0])
def test_ties_at_zero_are_told_apart_without_a_base(density, tmp_path):
    """Negative zeros, of which some are kept."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(600_000).astype(np.float32)
    values[rng.random(len(values)) < 0.5] = -0.0
    saved = models.save(tmp_path / "e", {"w": values})
    trim = methods.trim(density, "global", "exact")
    method = methods.compose("t", trim, combiner=combiners.sum(), scale=None)
    stream.merge_checkpoints(
        None, [saved], method, tmp_path / "out", memory_budget="10MB"
    )
    merged = load_file(tmp_path / "out" / "model.safetensors")["w"]
    zeros = int(density * len(values)) - np.count_nonzero(values)
    assert np.signbit(merged[merged == 0]).sum() == zeros
    whole = memory.merge(None, {"e": {"w": values}}, method)["w"]
    assert merged.tobytes() == np.asarray(whole).tobytes()
