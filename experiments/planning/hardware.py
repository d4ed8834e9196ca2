"""Chips that can be compiled for without having one, and what their makers say of them.

Numbers are published peaks: dense bfloat16 operations, memory and its bandwidth. Of the network, `ring` is what a chip
can send along one axis of the torus in both directions at once (of GPUs: through NVLink in one direction), and
`outside` what it can send to other slices or machines, as its share of the host's network. Several machines of GPUs are
slices, too: NVLink ends at the machine. What the compiler for GPUs has to know of one lies beside this file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9),  # SXM5, one port of 400 Gbit/s for each
}
_GPUS = ("h100",)
_MACHINE = 8  # GPUs that NVLink joins
_HOST = (2, 2, 1)  # TPUs of a host, unless the slice is smaller
_FOR_GPUS = {"xla_gpu_autotune_level": "0"}  # it would time programs
# Read by the compilers when they are loaded: that there is no TPU to ask what it is, and that there is no GPU.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
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
        platform: "tpu" or "cuda".
        options: of the compiler.
    """

    name: str
    chip: Chip
    devices: list[Any]
    cores: int
    slices: int = 1
    platform: str = "tpu"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """Its name with the number of slices."""
        return f"{self.name} x {self.slices} slices" if self.slices > 1 else self.name

    def slice_of(self, device: Any) -> int:
        """Number of the slice that a device is on; of GPUs, of the machine."""
        return device.process_index if self.platform == "cuda" else getattr(device, "slice_index", 0)


def topology(name: str, slices: int = 1) -> Topology:
    """The chips of a slice, or of several; their compiler (`libtpu`, or JAX's CUDA plugin) has to be installed.

    Args:
        name: kind and shape, such as "v5p:8x8x4", "v5e:1x1" for one chip, or "h100:8" for a machine with eight GPUs.
        slices: how many of them.

    Returns:
        The topology.

    Raises:
        UserError: there is no such kind or shape, or no compiler for it.
    """
    kind, _, shape = name.partition(":")
    if kind in _GPUS:
        return _machines(name, kind, shape or "1", slices)
    if kind not in CHIPS or not all(size.isdecimal() for size in shape.split("x")):
        expected = f"one of {', '.join(CHIPS)} and a shape, such as v5p:2x2x1 or h100:8"
        raise UserError(f"topology: got {name!r}, expected {expected}")
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    sizes = [int(size) for size in shape.split("x")]
    if 2 <= len(sizes) <= len(_HOST) and all(1 <= size <= most for size, most in zip(sizes, _HOST, strict=False)):
        more["chips_per_host_bounds"] = [*sizes, 1][: len(_HOST)]
    found = _devices(name, "tpu", name, more)
    chips = len({(getattr(device, "slice_index", 0), *device.coords) for device in found})
    return Topology(name, CHIPS[kind], found, len(found) // chips, slices)


def _machines(name: str, kind: str, shape: str, slices: int) -> Topology:
    """GPUs: slices of one machine each."""
    if not shape.isdecimal() or not 1 <= int(shape) <= _MACHINE:
        raise UserError(f"topology: got {name!r}, expected {kind}:1 to {kind}:{_MACHINE}, and --slices of several")
    target = (Path(__file__).parent / f"{kind}.pbtxt").read_text(encoding="utf-8")
    found = _devices(name, "cuda", "", {"target_config": target, "topology": f"1x{slices}x{shape}"})
    return Topology(f"{kind}:{shape}", CHIPS[kind], found, 1, slices, "cuda", _FOR_GPUS)


def _devices(name: str, platform: str, asked: str, more: Mapping[str, Any]) -> list[Any]:
    """Of the compiler for a platform, which need not see one."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(asked, platform=platform, **more).devices)
    except Exception as error:  # whatever the plugin raises, from an absent library to a shape that is not made
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        if platform == "tpu" and reason.startswith("INVALID_ARGUMENT"):  # the compiler is there, and knows better
            raise UserError(f"topology: got {name!r}, which is no shape of a slice ({reason})") from error
        extra = "tpu" if platform == "tpu" else "gpu"
        raise UserError(
            f"topology {name!r} cannot be compiled for here ({reason}); make install EXTRA={extra}"
        ) from error
