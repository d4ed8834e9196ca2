"""The data goes on from any position, whoever reads it: rows packed from documents, around the edge of an epoch."""

from contextlib import closing

import jax
import numpy as np
import pytest

from experiments.training.data import DeviceBatches, examples
from experiments.training.packing import pack

BATCH = 3


def packed():
    """Documents of awkward lengths, packed into rows of 7, shuffled, endless."""
    lengths = np.random.default_rng(0).integers(1, 17, 23)
    documents = np.split(np.arange(1, lengths.sum() + 1), np.cumsum(lengths)[:-1])
    return pack(documents, 7)


def read(position: int, workers: int, count: int) -> tuple[list, int]:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with closing(DeviceBatches(examples(packed(), seed=3), BATCH, device, position, workers)) as batches:
        return [jax.device_get(next(batches)) for _ in range(count)], batches.position


@pytest.mark.slow
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_packed_rows_read_by_workers_go_on_from_any_position_around_an_epoch(offset):
    epoch = len(packed())
    position = epoch - BATCH + offset
    order = examples(packed(), seed=3)
    expected = [
        jax.tree.map(lambda *rows: np.stack(rows), *(order[first + row] for row in range(BATCH)))
        for first in range(position, position + 4 * BATCH, BATCH)
    ]
    for workers in (0, 2):
        found, behind = read(position, workers, 4)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert behind == position + 4 * BATCH
