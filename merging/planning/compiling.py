"""Programs compiled for devices that are not there, and what they say of themselves."""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractMesh, Mesh

from merging.planning import collectives
from merging.planning.collectives import Collective
from merging.planning.topologies import Topology
from merging.runtime import sharding
from merging.runtime.errors import UserError

# libtpu would ask a metadata server what machine this is, and wait for the answer.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_USED = re.compile(
    r"RESOURCE_EXHAUSTED.*?(?:Used |required[^(]*\()([\d.]+)([KMGT])", re.DOTALL
)
_UNITS = {unit: 2 ** (10 * i) for i, unit in enumerate("KMGT", 1)}


class Target(NamedTuple):
    """Where programs are to run.

    Attributes:
      topology: the devices.
      mesh: of them; an AbstractMesh where nothing can be compiled.
      compiler: its name and version, empty where there is none.
      missing: why there is none.
    """

    topology: Topology
    mesh: Mesh | AbstractMesh
    compiler: str
    missing: str


class Compiled(NamedTuple):
    """What a compiler says of a program, all for one device.

    Attributes:
      arguments: bytes.
      outputs: bytes that are not written over arguments.
      scratch: bytes in between.
      collectives: what it exchanges.
    """

    arguments: int
    outputs: int
    scratch: int
    collectives: tuple[Collective, ...]


class TooLarge(Exception):
    """The compiler found that a program needs more memory than a device has."""

    def __init__(self, needed: float):
        super().__init__(needed)
        self.needed = needed


def use_no_accelerator() -> None:
    """Keep this process from taking hold of an accelerator; before JAX wakes up."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")


def target(topology: Topology, axes: Mapping[str, int], *, compile: bool) -> Target:
    """Return a mesh over a topology, with the compiler for it where there is one.

    Args:
      topology: the devices.
      axes: {name: size} of the mesh; one size may be -1.
      compile: False looks for no compiler.

    Raises:
      UserError: a mesh that does not fit the topology.
    """
    sizes = sharding.axis_sizes(axes, topology.devices)
    if sizes.get("data", 1) % topology.slices:
        raise UserError(
            f"{topology.label}: give the mesh a data axis that is a multiple of "
            f"{topology.slices}; weights are not to be split over the network."
        )
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    if not compile:
        return Target(topology, abstract, "", "compiling was not asked for")
    try:
        devices, compiler = _FINDERS[topology.chip.platform](topology)
    except _Missing as error:
        return Target(topology, abstract, "", str(error))
    return Target(topology, sharding.make_mesh(sizes, devices), compiler, "")


def compiled(target: Target, lower: Callable[[], Any]) -> Compiled:
    """Compile what `lower` returns (a `jax.stages.Lowered`) for the target.

    Raises:
      TooLarge: a device's memory does not hold it.
    """
    with (
        sharding.on(target.mesh),
        tempfile.TemporaryDirectory() as folder,
        _no_compilation_cache(),
    ):
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            done = lower().compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if found := _USED.search(str(error)):
                raise TooLarge(float(found[1]) * _UNITS[found[2]]) from error
            raise
        text = _text(Path(folder))
    memory = done.memory_analysis()
    return Compiled(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        collectives.read(text, target.topology.devices, target.topology.domain),
    )


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Compile without JAX's cache: without a TPU it loads no programs for one.

    It would try, warn of it for every program, and compile that all the same.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once, and remembers
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _text(folder: Path) -> str:
    """Return the text that XLA left of the finished program.

    `as_text()` of jaxlib 0.10 fails on programs for TPUs with exchanges that overlap
    computation; the compiler's own printer does not.
    """
    (file,) = folder.glob("*after_optimizations.txt")
    return file.read_text()


def has_libtpu() -> bool:
    """Return whether there is a compiler for TPUs."""
    try:
        return bool(metadata.version("libtpu"))
    except metadata.PackageNotFoundError:
        return False


class _Missing(Exception):
    """No compiler for a topology; says why."""


def _tpus(topology: Topology) -> tuple[list[Any], str]:
    try:
        version = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise _Missing("libtpu is not installed (the extra tpu)") from None
    try:
        devices = _described(topology.name, topology.slices)
    except Exception as error:  # whatever libtpu makes of a name or of this machine
        line = str(error).splitlines()[0]
        raise _Missing(f"libtpu {version} has no such topology ({line})") from error
    if len(devices) != topology.devices:
        raise _Missing(
            f"libtpu {version} has {len(devices)} devices for {topology.devices} chips"
        )
    return devices, f"libtpu {version}"


@functools.lru_cache(maxsize=16)
def _described(name: str, slices: int) -> list[Any]:
    from jax.experimental import topologies

    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    settings: dict[str, Any] = {}
    shape = [int(n) for n in name.partition(":")[2].split("x")]
    if name.startswith("v4:"):  # two cores that work as one, as v5p's do by default
        settings["chip_config_name"] = "megacore"
    if any(n % 2 for n in shape[:2]):  # parts of a host
        settings["chips_per_host_bounds"] = tuple((*shape, 1)[:3])
    if slices > 1:
        settings["num_slices"] = slices
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings)
    return found.devices


def _cpus(topology: Topology) -> tuple[list[Any], str]:
    wanted = topology.devices
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        pass  # JAX is awake already: take what it has
    devices = jax.devices("cpu")
    if len(devices) < wanted:
        raise _Missing(f"this process has only {len(devices)} virtual devices")
    return devices[:wanted], f"jaxlib {metadata.version('jaxlib')} for this CPU"


def _gpus(topology: Topology) -> tuple[list[Any], str]:
    raise _Missing("JAX compiles for a GPU only where there is one")


_FINDERS = {"tpu": _tpus, "cpu": _cpus, "gpu": _gpus}
