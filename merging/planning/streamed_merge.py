"""A merge of checkpoints, block by block: what each host reads, writes and computes."""

from merging.merge.cutting import WORKERS
from merging.planning.estimates import COUNTED, CostEstimate, Work
from merging.planning.topologies import Topology
from merging.planning.workloads import Workload

# Processor seconds for an element of one expert. Measured: whole commands, four experts
# of 334M on two cores of an Intel Xeon (docs/mergekit.md), starting up included.
_SECONDS = {"average": 2.6, "task_arithmetic": 2.0, "ties": 5.0, "dare_ties": 3.7}
_SECONDS["rht"] = 14.3
_MEASURED_ON = 4 * 334e6 / 2


def estimate(workload: Workload, topology: Topology) -> CostEstimate:
    """Return the streamed merge, its blocks dealt out to the topology's hosts."""
    plan, hosts = workload.plan, topology.hosts
    shares = plan.shares(hosts)
    read = [sum(plan.read_for(plan.blocks[i]) for i in share) for share in shares]
    written = [sum(plan.written_for(plan.blocks[i]) for i in share) for share in shares]
    passes = max(map(plan.passes_over, plan.blocks), default=1)
    text = f"{workload.models} models, {len(plan.blocks):,} blocks, passes: {passes}"
    work = Work(
        read=max(read), written=max(written), host_seconds=_seconds(workload, hosts)
    )
    return CostEstimate("streamed merge", text, None, COUNTED, (), work)


def _seconds(workload: Workload, hosts: int) -> float | None:
    """Return how long a host's workers compute; None for what was never measured."""
    plan = workload.plan
    total = 0.0
    for number, kind in enumerate(plan.kinds):
        if kind.method is None:
            continue
        if kind.method.name not in _SECONDS:
            return None
        each = _SECONDS[kind.method.name] / _MEASURED_ON
        experts = len(kind.read) - kind.method.needs_base
        blocks = [b for b in plan.blocks if b.kind == number]
        total += each * experts * sum(block.elements for block in blocks)
    return total / (hosts * WORKERS)
