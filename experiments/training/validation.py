"""Means over a fixed set of examples, exact whatever the batch size and the number of devices and processes."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from experiments.training.data import Rows, local_rows, put_rows
from experiments.training.mesh import batch_sharding

ExampleMetrics = Callable[[Any, Any], Mapping[str, jax.Array]]


def validation(
    metrics: ExampleMetrics, data: Mapping[str, np.ndarray] | grain.MapDataset, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """A function that averages metrics over a fixed set, for `Task.evaluate`.

    .. math:: m(\\theta) = \\frac{1}{n} \\sum_{i=1}^{n} m_i(\\theta)

    The set is read once, in order, at the first call, and kept in the host's memory; each process reads the rows of its
    devices. The last batch is padded, and what the metrics are on the padding does not matter, not even NaN.

    Args:
        metrics: (variables, batch) -> dictionary of arrays (batch_size,), one value per example.
        data: the n examples, columns by name or a finite dataset of single examples.
        batch_size: examples per call of `metrics`, rounded up to a multiple of the devices it is split over.

    Returns:
        variables -> dictionary of means. It runs on the mesh that `jax.set_mesh` has set.

    Raises:
        ValueError: no examples, an endless dataset, a batch size below 1, or, when called, a metric that is not one
            value per example.

    Example:
        >>> squares = validation(lambda w, batch: {"square": (w * batch["x"]) ** 2}, {"x": np.arange(5.0)}, 2)
        >>> squares(jnp.array(1.0))
        {'square': 6.0}
    """
    source = Rows(data) if isinstance(data, Mapping) else data
    if not 0 < len(source) < sys.maxsize:
        raise ValueError(f"data: got {'an endless dataset' if len(source) else 'no examples'}, expected a finite set")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    prepared: dict[Sharding, _FixedSet] = {}

    def evaluate(variables: Any) -> dict[str, float]:
        sharding = _sharding()
        if sharding not in prepared:
            prepared[sharding] = _FixedSet(metrics, source, batch_size, sharding)
        return prepared[sharding].means(variables)

    return evaluate


class _FixedSet:
    """The rows of this process, in padded batches, and the compiled sums over a batch."""

    def __init__(self, metrics: ExampleMetrics, source: Any, batch_size: int, sharding: Sharding) -> None:
        ways = _ways(sharding)
        self._batch_size = -(-batch_size // ways) * ways
        self._examples, self._sharding = len(source), sharding
        indices = sharding.addressable_devices_indices_map((self._batch_size,)).values()
        rows = local_rows(indices, self._batch_size)
        self._batches = [
            (_gather(source, np.minimum(start + rows, len(source) - 1)), start + rows < len(source))
            for start in range(0, len(source), self._batch_size)
        ]
        # Replicated, so that every process can read the sums.
        everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        self._sums = jax.jit(_sums(metrics), out_shardings=everywhere)

    def means(self, variables: Any) -> dict[str, float]:
        """Sum over the batches in double precision, and divide by the number of examples."""
        placed = (put_rows(batch, self._sharding, self._batch_size) for batch in self._batches)
        fetched = jax.device_get([self._sums(variables, *batch) for batch in placed])
        return {name: sum(float(total[name]) for total in fetched) / self._examples for name in fetched[0]}


def _sums(metrics: ExampleMetrics) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
    """Sums of the metrics over the examples that are there."""

    def sums(variables: Any, batch: Any, there: jax.Array) -> dict[str, jax.Array]:
        values = dict(metrics(variables, batch))
        for name, value in values.items():
            if jnp.shape(value) != there.shape:
                shape = jnp.shape(value)
                raise ValueError(f"metric {name}: got shape {shape}, expected one value per example, {there.shape}")
        return {name: _sum(jnp.where(there, value, 0)) for name, value in values.items()}

    return sums


def _sum(values: jax.Array) -> jax.Array:
    """Sum in single precision at least, whatever the values are in."""
    return jnp.sum(values, dtype=jnp.promote_types(values.dtype, jnp.float32))


def _gather(source: Any, indices: np.ndarray) -> Any:
    """Stack examples, each of them read once; columns are indexed as a whole."""
    if isinstance(source, Rows):
        return source[indices]
    distinct, places = np.unique(indices, return_inverse=True)
    read = [source[int(index)] for index in distinct]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(read[place] for place in places))


def _sharding() -> Sharding:
    """Of a batch on the mesh that is set, or on the first device."""
    mesh = jax.sharding.get_mesh()
    return SingleDeviceSharding(jax.devices()[0]) if mesh.empty else batch_sharding(mesh)


def _ways(sharding: Sharding) -> int:
    """Number of pieces that the leading axis is split into."""
    return (
        math.prod(sharding.mesh.shape[axis] for axis in sharding.spec[0]) if isinstance(sharding, NamedSharding) else 1
    )
