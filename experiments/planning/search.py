"""Meshes and rematerialisation policies of one training, all planned."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from experiments.planning.trainings import Training
from experiments.training.config import MeshConfig, TrainConfig


def meshes(devices: int, config: TrainConfig, tensor_sizes: Sequence[int] = ()) -> Iterator[MeshConfig]:
    """Sizes of data, fsdp and tensor that multiply to the devices, and divide the batch; sequence as set.

    Args:
        devices: how many.
        config: the batch, and the sequence axis; -1 tries every size of it.
        tensor_sizes: those of tensor to try; none takes all.

    Yields:
        Each once, those with the most copies of the model first.

    Example:
        >>> [(mesh.data, mesh.fsdp, mesh.tensor) for mesh in meshes(4, TrainConfig(batch_size=2))]
        [(2, 1, 2), (1, 1, 4), (1, 2, 2)]
        >>> [mesh.data for mesh in meshes(4, TrainConfig(), tensor_sizes=(2, 4))]
        [2, 1, 1]
        >>> split = TrainConfig(batch_size=1, mesh=MeshConfig(data=1, sequence=-1))
        >>> [(mesh.tensor, mesh.sequence) for mesh in meshes(4, split)]
        [(1, 4), (2, 2), (4, 1)]
    """
    for data in _divisors(devices):
        for fsdp in sorted(_divisors(devices // data)):
            rest = devices // data // fsdp
            sequences = _divisors(rest) if config.mesh.sequence == -1 else [config.mesh.sequence]
            for sequence in sequences:
                tensor, left = divmod(rest, sequence)
                if tensor_sizes and tensor not in tensor_sizes:
                    continue
                if not left and config.batch_size % (data * fsdp) == 0:
                    yield MeshConfig(data, fsdp, tensor, sequence)


def on_mesh(training: Training, mesh: MeshConfig) -> Training:
    """The same training on another mesh."""
    return dataclasses.replace(training, config=dataclasses.replace(training.config, mesh=mesh))


def _divisors(number: int) -> Sequence[int]:
    """The largest first."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)}, reverse=True)
