"""The plan of a training: its real update compiled for chips that are not there, counted, and held against their peaks.

Nothing of it is measured. Memory is what the compiler asks for; that for GPUs chooses kernels without timing them.
Times are those of a roofline: operations at the peak of bfloat16 (products of float32 in as many passes as they take
longer), bytes at the bandwidth of the memory, and what chips send each other at that of the network, each as its maker
publishes it. A step takes at least the longest of the three (`step`), and that and no more time than `in_turn` if chips
compute first and send then, still at their peaks.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.errors import UserError
from experiments.files import make_folder, read_json, write_json
from experiments.planning import operations
from experiments.planning.collectives import Collective, collectives
from experiments.planning.hardware import Topology
from experiments.planning.hlo import parse
from experiments.planning.traffic import memory_traffic
from experiments.planning.trainings import Training, traced_update
from experiments.training.mesh import make_mesh
from lightnet.scan.dispatch import lowered_for

# The last is of a kernel for a recurrence whose batch or heads the mesh does not divide.
_MESSAGES = ("RESOURCE_EXHAUSTED", "Ran out of memory", "divisible", "divide", "cannot be automatically partitioned")
_COMPILERS = {"tpu": ("jax", "jaxlib", "libtpu"), "cuda": ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cuda-nvcc")}


@dataclass(frozen=True)
class Plan:
    """What one training would need.

    Attributes:
        id: of the result.
        preset: size of the run.
        training: what the result calls it.
        trainings: of the whole run, over all models and seeds.
        topology: kind and shape of a slice.
        slices: of them.
        chips: over all slices.
        devices: that the compiler knows, more than chips where a chip has two of its own.
        mesh: size by axis.
        batch_size: examples of an update, over all devices.
        steps: updates of this training.
        tokens: of an example, None if it has none.
        parameters: numbers that are learned.
        memory: bytes of a device by kind: arguments, outputs, aliased (outputs that lie in arguments), temporaries,
            program; `needed` is their sum, the aliased ones once; `there` is what the device has.
        flops: operations in products of matrices of an update, over all devices.
        passes: the same as many times as they take longer than in bfloat16, see `Operations`.
        repeated: those of `flops` that rematerialisation does again.
        endless: loops whose turns are not known, which count once.
        traffic: bytes that a device reads from its memory and writes to it in an update.
        collectives: what devices send each other in an update.
        seconds: of an update: compute, memory, network; step and in_turn, see the module.
        versions: of JAX and the compiler.
        compile_seconds: that compiling took here.
    """

    id: str
    preset: str
    training: str
    trainings: int
    topology: str
    slices: int
    chips: int
    devices: int
    mesh: Mapping[str, int]
    batch_size: int
    steps: int
    tokens: int | None
    parameters: int
    memory: Mapping[str, int]
    flops: float
    passes: float
    repeated: float
    endless: int
    traffic: float
    collectives: Sequence[Collective]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    compile_seconds: float

    @property
    def examples_per_second(self) -> float:
        """At most."""
        return self.batch_size / self.seconds["step"]

    @property
    def hours(self) -> float:
        """Of this training, at least; without evaluation, saving and data."""
        return self.steps * self.seconds["step"] / 3600

    @property
    def compute_share(self) -> float:
        """Of the time, that is not spent sending if nothing is sent while chips compute."""
        return 1 - self.seconds["network"] / self.seconds["in_turn"]

    def utilisation(self, peak: float) -> float:
        """Bound of model FLOPs utilisation: operations over what all chips could do in the least time of a step.

        What rematerialisation does again is no operation of the model.

        Args:
            peak: operations per second of a chip.
        """
        return (self.flops - self.repeated) / (self.chips * peak * self.seconds["step"])


def plan(id: str, preset: str, training: Training, trainings: int, chips: Topology, folder: Path | None) -> Plan:
    """Plan a training.

    Args:
        id: of the result.
        preset: size of the run.
        training: which.
        trainings: of the whole run.
        chips: that it would run on.
        folder: of plans; one of the same program, chips and versions in it is taken over. None keeps none.

    Returns:
        The plan.

    Raises:
        UserError: the mesh does not fit the chips, the batch or the model, or the program does not fit into memory.
    """
    mesh = make_mesh(training.config.mesh, chips.devices)
    where = f"{training.label} on {chips.told}, {' '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"
    with _told_in_one_line(where), lowered_for(chips.platform):
        traced = traced_update(training, mesh)
        lowered = traced.lower()
    about = {"id": id, "preset": preset, "trainings": trainings, **_about(training, chips, mesh)}
    digest = hashlib.sha256(repr([lowered.as_text(), about, _counting()]).encode()).hexdigest()[:12]
    path = folder / id / f"{preset}-{chips.name.replace(':', '-')}-{digest}.json" if folder else None
    if path and path.exists():
        kept = read_json(path)
        return Plan(**{**kept, "collectives": [Collective(**row) for row in kept["collectives"]]})
    began = time.monotonic()
    with _told_in_one_line(where):
        compiled = lowered.compile(compiler_options=dict(chips.options) or None)
    seconds = round(time.monotonic() - began, 1)
    found = Plan(**about, **_counted(traced.jaxpr, compiled, chips, mesh), compile_seconds=seconds)
    needed, there = (found.memory[name] / 2**30 for name in ("needed", "there"))
    if needed > there:  # the compiler for GPUs does not mind
        raise UserError(f"{where}: needs {needed:.1f} GiB of a device, which has {there:.1f} GiB")
    if path:
        make_folder(path.parent)
        write_json(path, asdict(found) | {"collectives": [row._asdict() for row in found.collectives]})
    return found


def _about(training: Training, chips: Topology, mesh: Mesh) -> dict[str, Any]:
    """What is known before anything is compiled."""
    return {
        "training": training.label,
        "topology": chips.name,
        "slices": chips.slices,
        "chips": len(chips.devices) // chips.cores,
        "devices": len(chips.devices),
        "mesh": dict(mesh.shape),
        "batch_size": training.config.batch_size,
        "steps": training.config.steps,
        "tokens": training.tokens,
        "parameters": training.parameters,
        "versions": {name: _version(name) for name in _COMPILERS[chips.platform]},
    }


def _counted(jaxpr: Any, compiled: Any, chips: Topology, mesh: Mesh) -> dict[str, Any]:
    """What is counted in the program."""
    counted, program = operations.count(jaxpr, chips.platform), parse(compiled.as_text())
    sent = collectives(program, [chips.slice_of(device) for device in mesh.devices.flat])
    traffic = memory_traffic(program)
    return {
        "memory": _memory(compiled.memory_analysis(), chips),
        "flops": counted.products,
        "passes": counted.passes,
        "repeated": counted.repeated,
        "endless": counted.endless,
        "traffic": traffic,
        "collectives": sent,
        "seconds": roofline(counted.passes / len(chips.devices), traffic, sent, chips),
    }


def roofline(passes: float, traffic: float, sent: Sequence[Collective], chips: Topology) -> dict[str, float]:
    """Least times of an update.

    Args:
        passes: operations of a device.
        traffic: bytes between a device and its memory.
        sent: between devices.
        chips: whose peaks count; devices of a chip share them.

    Returns:
        Seconds: compute, memory and network, the longest as `step`, and as `in_turn` the last after the others.
    """
    chip, cores = chips.chip, chips.cores
    network = sum(row.bytes / chip.ring + row.outside / chip.outside for row in sent) * cores
    compute, memory = passes * cores / chip.flops, traffic * cores / chip.bandwidth
    alone = max(compute, memory)
    return {
        "compute": compute,
        "memory": memory,
        "network": network,
        "step": max(alone, network),
        "in_turn": alone + network,
    }


def _memory(analysis: Any, chips: Topology) -> dict[str, int]:
    kinds = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    needed = sum(kinds.values()) - 2 * kinds["aliased"]
    return {**kinds, "needed": needed, "there": int(chips.chip.memory / chips.cores)}


@contextmanager
def _told_in_one_line(where: str) -> Iterator[None]:
    """What JAX or the compiler says of memory and of shapes becomes one line; other errors stay what they are."""
    try:
        yield
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        if told := next((line for line in lines if any(message in line for message in _MESSAGES)), None):
            raise UserError(f"{where}: {told[:300]}") from error
        raise


@cache
def _counting() -> str:
    """Of the files that count: what counts in another way, or holds other things, makes another plan."""
    folder, names = Path(__file__).parent, ("collectives", "hardware", "hlo", "operations", "traffic")
    digest = hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in names))
    return f"{digest.hexdigest()} {[field.name for field in fields(Plan)]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
