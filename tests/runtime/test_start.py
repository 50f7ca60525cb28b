import subprocess
import sys

import pytest

COUNTED = """
import importlib.metadata, sys
every, calls = importlib.metadata.distributions, []

def counted(**context):
    calls.append(context)
    return every(**context)

importlib.metadata.distributions = counted
sys.path.append(sys.argv[1])
{}
assert importlib.metadata.distributions is counted
print(len(calls), sys.modules["jax"].numpy.ones(2).sum())
"""
OURS = "from merging.runtime.start import import_jax; import_jax()"


def imported(by, path):
    """Return how often JAX looked through the metadata of packages, and a sum."""
    command = [sys.executable, "-c", COUNTED.format(by), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("plugin", [False, True])
def test_jax_reads_the_metadata_of_packages_only_for_a_plugin(tmp_path, plugin):
    folder = tmp_path / ("jax_rocm9_plugin-1.dist-info" if plugin else "a-1.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Name: jax-rocm9-plugin\n")
    expected = imported("import jax", tmp_path) if plugin else "0 2.0\n"
    assert imported(OURS, tmp_path) == expected
