"""How fast one process reads a folder of rows of tokens."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import grain
import jax

from experiments.errors import UserError
from experiments.files import is_object_store
from experiments.records.order import in_training_order
from experiments.records.source import CACHE, Records
from experiments.training.config import TrainConfig
from experiments.training.data import DeviceBatches
from experiments.training.mesh import batch_sharding, make_mesh

_WARM_UP = 4


@dataclass(frozen=True)
class Speed:
    """One measurement.

    Attributes:
        way: how the rows were read.
        rows: read.
        seconds: that it took.
        rows_per_second: of this process.
        tokens_per_second: places of the rows, padding included.
    """

    way: str
    rows: int
    seconds: float
    rows_per_second: float
    tokens_per_second: float


def reading_speed(folder: str | Path, seconds: float = 2.0, batch_size: int = 64, workers: int = 0) -> list[Speed]:
    """Read a folder in three ways, each for some time or, in order, until its end.

    Args:
        folder: of rows of tokens.
        seconds: of each measurement.
        batch_size: rows of a batch, in training order.
        workers: processes that read, in training order; 0 takes threads.

    Returns:
        In order, cold: after the operating system was asked to forget the files, and from a bucket with an empty cache.
        In order, warm: the same again. In training order, on the device: shuffled, batched and handed over, as the
        training loop gets it.

    Raises:
        UserError: there is no row in it.
    """
    rows = Records(folder, check=False)
    if not len(rows) or "length" not in rows.manifest.about:
        raise UserError(f"{folder} has no rows of tokens")
    length = rows.manifest.about["length"]
    with _cold(folder):
        cold = _in_order(Records(folder, check=False), seconds)
        warm = _in_order(Records(folder, check=False), seconds)
        data = in_training_order(folder, seed=0, batch_size=batch_size, check=False)
        shuffled = speed_in_training_order(data, seconds, batch_size, workers)
    ways = {"in order, cold": cold, "in order, warm": warm, "training order, on the device": shuffled}
    return [Speed(way, rows, spent, rows / spent, rows * length / spent) for way, (rows, spent) in ways.items()]


def speed_in_training_order(
    data: grain.MapDataset, seconds: float, batch_size: int, workers: int = 0
) -> tuple[int, float]:
    """Read rows as the training loop gets them: shuffled, batched and handed to the device.

    Args:
        data: single rows, endless.
        seconds: of the measurement.
        batch_size: rows of a batch.
        workers: processes that read; 0 takes threads.

    Returns:
        Rows that were read, and in how many seconds.
    """
    sharding = batch_sharding(make_mesh(TrainConfig().mesh))
    with closing(DeviceBatches(data, batch_size, sharding, workers=workers)) as batches:
        _timed(lambda: next(batches), lambda count, _: count < _WARM_UP)
        count, spent = _timed(lambda: next(batches), lambda _, spent: spent < seconds)
    return count * batch_size, spent


def _in_order(source: Records, seconds: float) -> tuple[int, float]:
    start = time.perf_counter()
    for index in range(len(source)):
        source[index]
        if index % 64 == 63 and time.perf_counter() - start > seconds:
            break
    return index + 1, time.perf_counter() - start


def _timed(read: Callable[[], Any], on: Callable[[int, float], bool]) -> tuple[int, float]:
    start, count = time.perf_counter(), 0
    while on(count, time.perf_counter() - start):
        jax.block_until_ready(read())
        count += 1
    return count, time.perf_counter() - start


@contextmanager
def _cold(folder: str | Path) -> Iterator[None]:
    """Let nothing of the folder be in memory, or in a cache of shards; what is fetched meanwhile is removed."""
    source = Records(folder, check=False)
    if is_object_store(source.folder):
        cache = tempfile.mkdtemp(prefix="lightnet-lab-")
        try:
            with mock.patch.dict(os.environ, {CACHE: cache}):
                yield
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        return
    for shard in source.manifest.shards:
        descriptor = os.open(source.folder / shard.file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only pages that are on the disk are forgotten
            if sys.platform == "linux":  # others have no such request, and what is called cold there may not be
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    yield
