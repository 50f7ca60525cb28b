"""A plan for eight virtual devices against the same work really done on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from merging import merge, methods, models, planning
from merging.checkpoints.safetensors import SafetensorsSource
from merging.merge import kernels, magnitudes
from merging.merge import streamed as stream
from merging.planning import decoding
from merging.planning.settings import Scoring
from merging.runtime import config as configs
from merging.runtime import sharding
from merging.training import steps
from merging.training.batches import Batches
from merging.training.hyperparameters import Hyperparameters

pytestmark = pytest.mark.long
DECODER = models.size("tiny", "64x", vocab_size=400)
EXPERTS = ("expert0", "expert1")


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2}, jax.devices()[:8])


@pytest.fixture(scope="module")
def real_models(mesh):
    """A base, and experts whose task vectors are normal, sharded as planned."""
    base = models.init(DECODER, 0)
    placed = sharding.shardings(base, models.partition_rules(DECODER), mesh)
    found = {"base": jax.device_put(base, placed)}
    for number, name in enumerate(EXPERTS):
        keys = iter(jax.random.split(jax.random.key(number + 1), 99))
        moved = jax.tree.map(
            lambda x, keys=keys: x + 1e-3 * jax.random.normal(next(keys), x.shape),
            base,
        )
        found[name] = jax.device_put(moved, placed)
    return found


@pytest.fixture(scope="module")
def planned(make_config, estimate_of):
    found = planning.plan(make_config(), planning.topology("cpu:8"))
    assert found["compiler"].startswith("jaxlib")
    return lambda name: estimate_of(found, name)


def held(tree):
    """Return the bytes that the first device really holds of a tree of arrays."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )


def recorded(monkeypatch, module, name, into):
    """Have a jitted function keep what its compiled program says of its memory."""
    jitted = getattr(module, name)

    def run(*args, **static):
        into.append((name, jitted.lower(*args, **static).compile().memory_analysis()))
        return jitted(*args, **static)

    monkeypatch.setattr(module, name, run)


def test_an_in_memory_merge_needs_what_was_planned(planned, real_models, monkeypatch):
    estimate, ran = planned("in-memory merge"), []
    for name in ("count", "reduced", "merge_over"):
        recorded(monkeypatch, kernels, name, ran)
    experts = {name: real_models[name] for name in EXPERTS}
    memory = estimate["bytes_per_device"]
    assert memory["arguments"] == pytest.approx(held(real_models), rel=0.05)
    base = jax.tree.map(jnp.copy, real_models["base"])
    merge(base, experts, methods.ties(), donate=True)
    most = max(of.temp_size_in_bytes for _, of in ran)
    assert memory["scratch"] == pytest.approx(most, rel=0.05)
    assert memory["outputs"] == 0  # written over the base
    over = [of for name, of in ran if name == "merge_over"]
    merged = sum(of.output_size_in_bytes for of in over)
    assert merged == sum(of.alias_size_in_bytes for of in over)
    assert merged == held(real_models["base"])


def test_the_counts_of_a_real_search_are_as_many_as_planned(
    planned, real_models, monkeypatch
):
    ran = []
    recorded(monkeypatch, kernels, "count", ran)
    experts = {name: real_models[name] for name in EXPERTS}
    merge(real_models["base"], experts, methods.ties(), donate=False)
    leaves = len(jax.tree.leaves(real_models["base"]))
    (asked,) = [n for n in planned("in-memory merge")["what"].split() if n.isdigit()][
        1:
    ]
    assert len(ran) / leaves / len(EXPERTS) == pytest.approx(int(asked), abs=3)


def test_scoring_needs_what_was_planned(planned, mesh, real_models):
    memory = planned("scoring")["bytes_per_device"]
    shapes = decoding.questions(Scoring(batch=8, length=32))
    rows = [sharding.place_batch(mesh, jnp.ones(s, jnp.int32)) for s in shapes]
    inputs = (real_models["base"], *rows)
    assert memory["arguments"] == pytest.approx(held(inputs), rel=0.05)
    score = models.predictor(DECODER).score
    with sharding.on(mesh):
        found = score.lower(*inputs).compile().memory_analysis()
        out = score(*inputs)
    assert memory["scratch"] == pytest.approx(found.temp_size_in_bytes, rel=0.05)
    assert memory["outputs"] == pytest.approx(held(out), abs=32)


def test_training_needs_what_was_planned(planned, mesh, real_models):
    memory = planned("training step")["bytes_per_device"]
    program = steps.train_functions(DECODER, "float32", mesh)
    numbers = steps.TracedHyperparameters.of(Hyperparameters(steps=1))
    tokens = np.ones((1, 8, 32), np.int32)
    weights = np.ones((1, 8, 32), np.float32)
    with sharding.on(mesh):
        state = program.start(real_models["base"], numbers)
        batch = [sharding.place_batch(mesh, x, leading=1) for x in (tokens, weights)]
        assert memory["arguments"] == pytest.approx(held((state, batch)), rel=0.05)
        inputs = (state, Batches(*batch), np.int32(1), numbers)
        found = program.run.lower(*inputs).compile().memory_analysis()
    assert memory["scratch"] == pytest.approx(found.temp_size_in_bytes, rel=0.05)


def test_counting_comes_near_to_what_the_compiler_says(
    planned, make_config, estimate_of
):
    where = planning.topology("cpu:8")
    # Large enough that weights and activations are most of it.
    config = make_config(scoring=dict(batch=64, length=128), mesh=dict(fsdp=-1))
    config.training.update(batch=64, length=128)
    compiled = planning.plan(config, where, parts=["scoring", "training"])
    counted = planning.plan(config, where, compile=False)
    merges = planning.plan(make_config(), where, compile=False, parts=["merge"])
    for name, share, one, other in (
        ("in-memory merge", 0.05, planned("in-memory merge"), merges),
        ("scoring", 0.5, estimate_of(compiled, "scoring"), counted),
        ("training step", 1, estimate_of(compiled, "training step"), counted),
    ):
        other = estimate_of(other, name)
        assert other["source"] == "counted"
        one, other = one["bytes_per_device"], other["bytes_per_device"]
        assert other["arguments"] == pytest.approx(one["arguments"], rel=0.05)
        assert other["peak"] == pytest.approx(one["peak"], rel=share), name


def test_a_streaming_merge_reads_and_writes_what_was_planned(
    tmp_path, monkeypatch, estimate_of
):
    rng, shapes = np.random.default_rng(0), {"a.w": (2048, 3000), "b.w": (3000, 1024)}
    for name in ("base", *EXPERTS):
        (tmp_path / name).mkdir()
        leaves = {
            path: rng.standard_normal(shape).astype(jnp.bfloat16)
            for path, shape in shapes.items()
        }
        save_file(leaves, tmp_path / name / "model.safetensors")
    config = configs.load(
        "configs/merge/ties.py",
        {
            "base": str(tmp_path / "base"),
            "experts": ",".join(str(tmp_path / name) for name in EXPERTS),
            "output": str(tmp_path / "merged"),
            "memory_budget": "200MB",
        },
    )
    found = planning.plan(config, planning.topology("cpu:8"))
    (estimate,) = found["estimates"]  # no config.json: of no known family
    assert "no known family" in found["notes"][0]

    read = [0]
    whole = SafetensorsSource.read_into

    def counting(self, path, start, out):
        read[0] += out.nbytes
        whole(self, path, start, out)

    monkeypatch.setattr(SafetensorsSource, "read_into", counting)
    stream.run(config)
    size = 2 * sum(np.prod(shape) for shape in shapes.values())
    assert estimate["bytes_per_host"]["read"] == 2 * 3 * size
    sample = 2 * 3 * magnitudes.RUN * magnitudes.RUNS
    assert read[0] == estimate["bytes_per_host"]["read"] + sample
    assert estimate["bytes_per_host"]["written"] == size
