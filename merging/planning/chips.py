"""What the makers say that a chip can do: the figures that times are bounded with."""

from typing import NamedTuple

GB, TB, GIB = 10**9, 10**12, 2**30


class Chip(NamedTuple):
    """One accelerator chip, which JAX sees as one device.

    Attributes:
      platform: `tpu`, `gpu` or `cpu`.
      memory: bytes of high-bandwidth memory; None where the figure says nothing.
      bandwidth: of that memory, bytes a second.
      flops: dense bfloat16 operations a second.
      interconnect: bytes a second that a chip can send to its neighbours, all links
        of one direction together.
      network: its share of its host's network, bytes a second one way.
      per_host: chips of one host, in slices of several hosts.
      dimensions: of the grid of chips that may be rented; 0 for hosts x chips.
      limit: chips in the largest slice.
    """

    platform: str
    memory: float | None
    bandwidth: float | None
    flops: float | None
    interconnect: float | None
    network: float | None
    per_host: int
    dimensions: tuple[int, ...]
    limit: int


# Google states the interconnect of both directions together, and here is the half of
# it. 50 Gb/s of network a chip is what the v5p page has (200 Gb/s of a host of four).
_DCN = 50 / 8 * GB

CHIPS = {
    # https://docs.cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB at 1,200 GB/s;
    # arXiv 2304.01433, table 4: six links of 50 GB/s, 4,096 chips.
    "v4": Chip("tpu", 32 * GIB, 1.2 * TB, 275 * TB, 300 * GB, _DCN, 4, (2, 3), 4096),
    # https://docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB at 819 GB/s, links
    # 400 GB/s; 6.4 Tb/s of network for a pod of 256 chips, two dimensions.
    "v5e": Chip(
        "tpu", 16 * GB, 819 * GB, 197 * TB, 200 * GB, 25 / 8 * GB, 4, (2,), 256
    ),
    # https://docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB at 2,765 GB/s,
    # links 1,200 GB/s, network 50 Gb/s, slices of up to 6,144 chips.
    "v5p": Chip("tpu", 95 * GIB, 2.765 * TB, 459 * TB, 600 * GB, _DCN, 4, (2, 3), 6144),
    # https://docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB at 1,638 GB/s,
    # links 800 GB/s, 256 chips, two dimensions; TPU7x's page: network 100 Gb/s.
    "v6e": Chip("tpu", 32 * GB, 1.638 * TB, 918 * TB, 400 * GB, 2 * _DCN, 4, (2,), 256),
    # https://docs.cloud.google.com/tpu/docs/tpu7x: 2,307 TFLOP/s, 192 GiB at 7,380
    # GB/s, links 1,200 GB/s, network 100 Gb/s, 9,216 chips, three dimensions. JAX sees
    # two devices of half a chip each: counted as chips, and not compiled for.
    "tpu7x": Chip(
        "tpu", 192 * GIB, 7.38 * TB, 2307 * TB, 600 * GB, 2 * _DCN, 4, (3,), 9216
    ),
    # https://www.nvidia.com/en-us/data-center/a100 (SXM, 80 GB): 312 TFLOP/s dense, 80
    # GB at 2,039 GB/s; NVLink 600 GB/s both ways. DGX A100 guide: 200 Gb/s adapters.
    "a100": Chip(
        "gpu", 80 * GB, 2.039 * TB, 312 * TB, 300 * GB, 25 * GB, 8, (0,), 2**15
    ),
    # https://www.nvidia.com/en-us/data-center/h100 (SXM): 1,979 TFLOP/s with sparsity,
    # half of it dense; 80 GB at 3.35 TB/s; NVLink 900 GB/s both ways. DGX H100 user
    # guide: one 400 Gb/s adapter for each GPU.
    "h100": Chip(
        "gpu", 80 * GB, 3.35 * TB, 989 * TB, 450 * GB, 50 * GB, 8, (0,), 2**15
    ),
    # https://www.nvidia.com/en-us/data-center/h200 (SXM): as H100, 141 GB at 4.8 TB/s.
    "h200": Chip(
        "gpu", 141 * GB, 4.8 * TB, 989 * TB, 450 * GB, 50 * GB, 8, (0,), 2**15
    ),
    # https://www.nvidia.com/en-us/data-center/dgx-b200 and hgx: of eight, 1,440 GB at
    # 64 TB/s; 4.5 PFLOP/s a GPU with sparsity, half of it dense; NVLink 1.8 TB/s both
    # ways; one 400 Gb/s adapter for each GPU.
    "b200": Chip("gpu", 180 * GB, 8 * TB, 2250 * TB, 900 * GB, 50 * GB, 8, (0,), 2**15),
    # Virtual devices of this machine's processor: bytes are counted, nothing is timed.
    "cpu": Chip("cpu", None, None, None, None, None, 2**10, (1,), 2**10),
}
