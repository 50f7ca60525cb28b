"""One thing to be done on a topology: its bytes, its work, and the time they allow."""

from typing import NamedTuple

from merging.planning.collectives import Collective
from merging.planning.settings import Storage
from merging.planning.topologies import Topology


class Memory(NamedTuple):
    """Bytes on each device: what is given, what is returned beside it, what is between.

    Outputs that are written over arguments take nothing more.
    """

    arguments: float
    outputs: float
    scratch: float

    @property
    def peak(self) -> float:
        """All that is there at once."""
        return self.arguments + self.outputs + self.scratch


class Work(NamedTuple):
    """What has to happen, besides exchanges.

    Attributes:
      flops: of one device.
      traffic: bytes between a device and its memory.
      read: bytes that a host reads from storage.
      written: bytes that a host writes.
      host_seconds: of a host's processors; None where they do nothing that counts.
    """

    flops: float = 0.0
    traffic: float = 0.0
    read: float = 0.0
    written: float = 0.0
    host_seconds: float | None = None


class CostEstimate(NamedTuple):
    """A merge, a batch that is scored, or a training step.

    Attributes:
      name: which.
      what: how much of it, for a person.
      memory: None where no device takes part.
      source: who says so: a compiler's name, or "counted".
      collectives: what one device sends to others.
      work: the rest, counted from shapes.
    """

    name: str
    what: str
    memory: Memory | None
    source: str
    collectives: tuple[Collective, ...]
    work: Work


COUNTED = "counted"


def fits(estimate: CostEstimate, topology: Topology) -> bool | None:
    """Return whether a device's memory holds it; None where that is not known."""
    if estimate.memory is None or topology.chip.memory is None:
        return None
    return estimate.memory.peak <= topology.chip.memory


def times(
    estimate: CostEstimate, topology: Topology, storage: Storage
) -> dict[str, float]:
    """Return the seconds that each limit alone would allow: {limit: seconds}.

    Terms that are nothing, or of which nothing is known, are left out.
    """
    chip, work = topology.chip, estimate.work
    inside = sum(c.sent for c in estimate.collectives if not c.network)
    outside = sum(c.sent for c in estimate.collectives if c.network)
    terms = {
        "hbm": _over(work.traffic, chip.bandwidth),
        "compute": _over(work.flops, chip.flops),
        "interconnect": _over(inside, chip.interconnect),
        "network": _over(outside, chip.network),
        "storage": max(
            work.read / (storage.read * 1e9), work.written / (storage.write * 1e9)
        ),
        "host": work.host_seconds,
    }
    return {name: value for name, value in terms.items() if value}


def bottleneck(terms: dict[str, float]) -> str:
    """Return the limit that allows the least, or nothing if none is known."""
    return max(terms, key=terms.__getitem__, default="")


def total(parts: list[tuple[Collective, ...]]) -> tuple[Collective, ...]:
    """Return the collectives of several programs, run one after the other."""
    found: dict[tuple[str, bool], Collective] = {}
    for one in (c for part in parts for c in part):
        key = one.kind, one.network
        old = found.get(key, Collective(*key, 0, 0, 0))
        found[key] = old._replace(
            times=old.times + one.times,
            sent=old.sent + one.sent,
            largest=max(old.largest, one.largest),
        )
    return tuple(sorted(found.values()))


def repeated(part: tuple[Collective, ...], times: int) -> tuple[Collective, ...]:
    """Return the collectives of a program that runs several times."""
    return tuple(c._replace(times=c.times * times, sent=c.sent * times) for c in part)


def _over(amount: float, rate: float | None) -> float:
    return amount / rate if rate else 0.0


# What a host does is given or measured; chips are timed by what their makers say.
_OF_CHIPS = ("hbm", "compute", "interconnect", "network")


def bound(terms: dict[str, float]) -> float | None:
    """Return the seconds that are needed at least, all terms side by side."""
    return max(terms.values(), default=None)


def expected(terms: dict[str, float], efficiency: float) -> float | None:
    """Return the seconds if chips reach a share of what their makers say."""
    return bound({n: t / efficiency if n in _OF_CHIPS else t for n, t in terms.items()})
