"""A view reads other checkpoints' leaves under its own names and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from merging.checkpoints import Origin, View, open_checkpoint

VALUES = np.linspace(-3, 3, 700_000, dtype=np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    leaves = {"x.weight": VALUES.reshape(700, 1000), "n": np.arange(5, dtype=np.int32)}
    save_file(leaves, folder / "model.safetensors")
    return open_checkpoint(str(folder))


def view(source, dtype=None):
    names = {"first": "x.weight", "second": "x.weight", "n": "n"}
    return View("v", {to: Origin(source, of) for to, of in names.items()}, dtype)


def test_leaves_are_renamed_and_may_be_repeated(source):
    found = view(source)
    assert list(found.abstract) == ["first", "second", "n"]
    out = np.empty(10, np.float32)
    found.read_into("second", 5, out)
    assert np.array_equal(out, VALUES[5:15])
    (file,), (own,) = found.files(), source.files()
    assert file == own._replace(name=f"0/{own.name}")
    assert found.paths() == {file.name: source.paths()[own.name]}
    assert found.format == "safetensors"


def test_floats_are_cast_in_parts_and_integers_are_not(source):
    found = view(source, jnp.dtype(jnp.bfloat16))
    dtypes = {path: leaf.dtype for path, leaf in found.abstract.items()}
    assert dtypes == {"first": jnp.bfloat16, "second": jnp.bfloat16, "n": np.int32}
    # More than is cast at a time.
    out = np.empty(600_000, jnp.bfloat16)
    found.read_into("first", 50_000, out)
    assert np.array_equal(out, VALUES[50_000:650_000].astype(jnp.bfloat16))
    numbers = np.empty(5, np.int32)
    found.read_into("n", 0, numbers)
    assert numbers.tolist() == [0, 1, 2, 3, 4]


def test_leaves_are_read_to_a_sharding(source):
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
    found = view(source, jnp.dtype(jnp.float16)).read(["second"], {"second": sharding})
    assert found["second"].sharding == sharding
    expected = VALUES.reshape(700, 1000).astype(np.float16)
    assert np.array_equal(np.asarray(found["second"]), expected)
