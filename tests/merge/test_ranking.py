"""A whole leaf's threshold by a sample: that of a look at all magnitudes, or none."""

import contextlib

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from safetensors.numpy import load_file

from merging import methods
from merging.merge import memory, pipeline, ranking, search
from merging.merge import streamed as stream

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
            combiner = methods.combiners.sum()
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
