"""Batches for the loop: Grain pipelines over arrays in memory and over TensorFlow Datasets.

The order of examples is a pure function of (seed, index), and a pipeline's position is one integer.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import grain
import jax
import numpy as np

from experiments.errors import UserError


class Rows:
    """Random access to the rows of columns of equal length, as Grain expects of a source."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        """Refuse columns of different lengths, or none."""
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns: got lengths {lengths}, expected at least one column and equal lengths")
        self.columns = {name: np.asarray(column) for name, column in columns.items()}

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row of every column."""
        return {name: column[index] for name, column in self.columns.items()}


def batches(
    source: Mapping[str, np.ndarray] | Any, batch_size: int, *, seed: int, shuffle: bool = True
) -> grain.MapDataset:
    """An endless stream of batches, every epoch in another order.

    Args:
        source: columns by name, each (rows, ...), or anything with `len` and random access whose elements are pytrees
            of arrays (a `tfds.data_source`).
        batch_size: examples per batch; what does not fill a batch is carried into the next epoch.
        seed: of the order. Which rows batch i holds depends on (seed, i) alone.
        shuffle: false keeps the order of the source.

    Returns:
        A Grain dataset; its iterator's state is one integer.

    Raises:
        ValueError: columns of different lengths.

    Example:
        >>> stream = batches({"x": np.arange(6)}, batch_size=3, seed=0)
        >>> sorted(int(v) for batch in (stream[0], stream[1]) for v in batch["x"])
        [0, 1, 2, 3, 4, 5]
    """
    rows = Rows(source) if isinstance(source, Mapping) else source
    dataset = grain.MapDataset.source(rows).seed(seed)
    dataset = dataset.shuffle() if shuffle else dataset
    return dataset.repeat().batch(batch_size)


class DeviceBatches:
    """An iterator that reads ahead in threads and hands each batch to the devices.

    The transfer is started by the loop's own thread while the devices still work on the step before: in a thread of its
    own it costs ten times as much, in switches of the interpreter lock.
    """

    def __init__(self, data: grain.MapDataset | grain.IterDataset, sharding: Any, position: Any = None) -> None:
        """Begin at a position that `get_state` returned, or at the start."""
        if not isinstance(data, grain.MapDataset | grain.IterDataset):
            raise UserError(f"data: got {type(data).__name__}, expected columns by name or a Grain dataset of batches")
        if isinstance(data, grain.MapDataset):
            threads = min(16, max(1, (os.cpu_count() or 1) // 2))
            data = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        self._iterator = iter(data)
        self._sharding = sharding
        if position is not None:
            self._iterator.set_state(position)

    def __next__(self) -> Any:
        """The next batch, on the devices."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise UserError("the data ended before the last step: make it endless with .repeat()") from None
        return jax.device_put(batch, self._sharding)

    def get_state(self) -> Any:
        """The position behind the last batch, JSON-able."""
        return self._iterator.get_state()

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator.close()


def tfds_source(name: str, split: str, data_dir: str | None = None, *, embedded: str) -> Any:
    """A data set of TensorFlow Datasets with random access, without TensorFlow.

    Args:
        name: for example "mnist" or "cifar10:3.0.2".
        split: for example "train" or "train[:90%]".
        data_dir: where data sets are prepared; None is TFDS's default.
        embedded: the source that needs no download and can stand in, named in the error.

    Returns:
        A random-access source of dictionaries of NumPy arrays (`tfds.data_source`).

    Raises:
        UserError: the data set is neither prepared nor downloadable; one line that names the alternative.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        with _few_retries():
            builder.download_and_prepare(file_format="array_record")
        return builder.as_data_source(split)
    except Exception as error:
        # TFDS raises whatever its downloader, its registry or the file system raises; all mean the same to the user.
        where = data_dir or Path("~/tensorflow_datasets").expanduser()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(
            f"data set {name!r} ({split}) is not in {where} and cannot be prepared here ({reason}); "
            f"the embedded alternative is {embedded}"
        ) from error


@contextmanager
def _few_retries() -> Iterator[None]:
    """TFDS tries each address ten times, minutes without a network; three tries tell as much."""
    from tensorflow_datasets.core.download import downloader

    with mock.patch.object(downloader, "MAX_RETRIES", 2):
        yield


def fingerprint(arrays: Mapping[str, np.ndarray] | Sequence[np.ndarray] | np.ndarray) -> str:
    """SHA-256 of arrays: names, dtypes, shapes and bytes.

    Example:
        >>> fingerprint(np.zeros(2)) == fingerprint(np.zeros(2)) != fingerprint(np.zeros(3))
        True
    """
    if isinstance(arrays, np.ndarray):
        arrays = [arrays]
    items = sorted(arrays.items()) if isinstance(arrays, Mapping) else list(enumerate(arrays))
    digest = hashlib.sha256()
    for name, array in items:
        digest.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
