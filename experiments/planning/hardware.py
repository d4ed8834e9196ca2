"""Chips that can be compiled for without having one, and what their makers say of them.

Numbers are published peaks: dense bfloat16 operations, memory and its bandwidth. Of the network, `ring` is what a chip
can send along one axis of the torus in both directions at once (of GPUs: through NVLink in one direction), and
`outside` what it can send to other slices or machines, as its share of the host's network.
"""

import os
from dataclasses import dataclass
from typing import Any

from experiments.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        flops: dense bfloat16 operations per second.
        memory: bytes.
        bandwidth: bytes per second of the memory.
        ring: bytes per second, to the other chips of a slice.
        outside: bytes per second, to other slices.
    """

    flops: float
    memory: float
    bandwidth: float
    ring: float
    outside: float


CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 90e9, 3.1e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 180e9, 6.2e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 180e9, 6.2e9),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7370e9, 200e9, 12.5e9),
}


@dataclass(frozen=True)
class Topology:
    """Chips as the compiler knows them.

    Attributes:
        name: of a slice, such as "v5p:2x2x1".
        chip: of what kind.
        devices: one per chip, or per core where a chip has two of its own.
        cores: devices of a chip.
        slices: how many.
    """

    name: str
    chip: Chip
    devices: list[Any]
    cores: int
    slices: int = 1

    @property
    def told(self) -> str:
        """Its name with the number of slices."""
        return f"{self.name} x {self.slices} slices" if self.slices > 1 else self.name


def topology(name: str, slices: int = 1) -> Topology:
    """The chips of a slice, or of several; the compiler for TPUs (`libtpu`) has to be installed.

    Args:
        name: kind and shape, such as "v5p:8x8x4" or "v5e:4x4".
        slices: how many of them.

    Returns:
        The topology.

    Raises:
        UserError: there is no such kind or shape, or no compiler for it.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not all(size.isdecimal() for size in shape.split("x")):
        raise UserError(f"topology: got {name!r}, expected one of {', '.join(CHIPS)} and a shape, such as v5p:2x2x1")
    # Read by the compiler when it is loaded: that it is not on a TPU, and need not ask what it is on.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        more = {"num_slices": slices} if slices > 1 else {}
        devices = topologies.get_topology_desc(name, platform="tpu", **more).devices
    except Exception as error:  # whatever the plugin raises, from an absent library to a shape that is not made
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"topology {name!r} cannot be compiled for here ({reason}); make install EXTRA=tpu") from error
    found: list[Any] = list(devices)
    chips = len({(getattr(device, "slice_index", 0), *device.coords) for device in found})
    return Topology(name, CHIPS[kind], found, len(found) // chips, slices)
