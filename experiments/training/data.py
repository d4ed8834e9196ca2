"""What is trained on: single examples in one global order, read in batches on the devices.

The order is a pure function of (seed, index), and a position in it is one integer, the global number of examples
consumed. A training that restarts with another number of processes or workers therefore continues the same order.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Sharding

from experiments.errors import UserError
from experiments.training.recording import recorder

DROPPED = "data: some examples are dropped, expected a dataset that is filtered before its order is made"


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

    def __getitem__(self, index: int | np.ndarray) -> dict[str, np.ndarray]:
        """One row of every column, or several."""
        return {name: column[index] for name, column in self.columns.items()}


def examples(source: Mapping[str, np.ndarray] | Any, *, seed: int, shuffle: bool = True) -> grain.MapDataset:
    """An endless order of examples, every epoch another permutation.

    Args:
        source: columns by name, each (examples, ...), or anything with `len` and random access whose elements are
            pytrees of arrays (a `tfds.data_source`, a `grain.MapDataset`).
        seed: of the order. Which example stands at an index depends on (seed, index) alone.
        shuffle: false keeps the order of the source.

    Returns:
        A Grain dataset of single examples; what does not fill a batch is carried into the next epoch.

    Raises:
        ValueError: columns of different lengths, or no examples.

    Example:
        >>> data = examples({"x": np.arange(6)}, seed=0)
        >>> sorted(int(data[i]["x"]) for i in range(6, 12))
        [0, 1, 2, 3, 4, 5]
    """
    rows = Rows(source) if isinstance(source, Mapping) else source
    if not len(rows):
        raise ValueError("source: got no examples, expected at least one")
    dataset = grain.MapDataset.source(rows).seed(seed)
    return (dataset.shuffle() if shuffle else dataset).repeat()


class Share(grain.MapDataset):
    """The examples that one process reads: from a position on, some rows of every global batch.

    Local example j is row `rows[j % len(rows)]` of the global batch `j // len(rows)` behind the position.

    Example:
        >>> share = Share(grain.MapDataset.range(100), batch_size=4, rows=[0, 3], position=10)
        >>> [share[j] for j in range(6)]
        [10, 13, 14, 17, 18, 21]
    """

    def __init__(self, data: grain.MapDataset, batch_size: int, rows: Sequence[int], position: int) -> None:
        """Count the global batches that are left."""
        super().__init__(data)
        self._batch_size, self._rows, self._position = batch_size, [int(row) for row in rows], position
        self._length = len(rows) * max(0, (len(data) - position) // batch_size)

    def __len__(self) -> int:
        """Local examples left in whole global batches."""
        return self._length

    def __getitem__(self, index: Any) -> Any:
        """Read one local example."""
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        example = self._parent[self._position + batch * self._batch_size + self._rows[row]]
        if example is None:  # Grain's sign of an example that was filtered out
            raise UserError(DROPPED)
        return example

    def __str__(self) -> str:
        """Name, for Grain's messages."""
        return f"Share(batch_size={self._batch_size}, rows={len(self._rows)})"


def local_rows(indices: Iterable[tuple[slice, ...] | None], batch_size: int) -> np.ndarray:
    """Rows of a global batch that a process reads, ascending, each once.

    Args:
        indices: what each of its devices holds, the values of `sharding.addressable_devices_indices_map`.
        batch_size: rows of the global batch.

    Returns:
        (rows,) integers.

    Example:
        >>> local_rows([(slice(4, 6),), (slice(0, 2),), (slice(4, 6),)], 8).tolist()
        [0, 1, 4, 5]
    """
    return np.unique(np.concatenate([np.arange(batch_size)[index[0]] for index in indices if index]))


def put_rows(batch: Any, sharding: Sharding, batch_size: int) -> Any:
    """Hand the rows that this process read to its devices, as its part of the global batch.

    Args:
        batch: pytree of arrays (rows, ...), the rows being `local_rows` of the sharding.
        sharding: of the leading axis.
        batch_size: rows of the global batch.

    Returns:
        A pytree of global arrays (batch_size, ...).
    """
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)

    def put(leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, leaf, (batch_size, *leaf.shape[1:]))

    return jax.tree.map(put, batch)


class DeviceBatches:
    """An iterator that reads ahead in threads or processes and hands each batch to the devices.

    The transfer is started by the loop's own thread while the devices still work on the step before: in a thread of its
    own it costs ten times as much, in switches of the interpreter lock.

    Attributes:
        position: global number of examples consumed, all that a checkpoint needs to know.
    """

    def __init__(
        self, data: grain.MapDataset, batch_size: int, sharding: Sharding, position: int = 0, workers: int = 0
    ) -> None:
        """Begin at a position.

        Args:
            data: single examples in global order, see `examples`.
            batch_size: examples of a batch over all processes; the next one holds examples
                [position, position + batch_size).
            sharding: of the leading axis; each process reads the rows that its devices hold and no others.
            position: global number of examples consumed before.
            workers: processes that read; 0 reads in threads. Each gets its own copy of the data, once.

        Raises:
            UserError: the data is not a dataset of examples, may drop some, or cannot be sent to a worker.
        """
        _require_examples(data)
        self.position = position
        self._batch_size, self._sharding, self._workers = batch_size, sharding, workers
        rows = local_rows(sharding.addressable_devices_indices_map((batch_size,)).values(), batch_size)
        self._iterator = _read_ahead(Share(data, batch_size, rows.tolist(), position), len(rows), workers)

    def __next__(self) -> Any:
        """The next batch, on the devices."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise UserError("the data ended before the last step: make it endless with .repeat()") from None
        self.position += self._batch_size
        if self._workers:  # it lies in memory shared with a worker, which JAX would hold on to
            batch = jax.tree.map(np.array, batch)
        return put_rows(batch, self._sharding, self._batch_size)

    def close(self) -> None:
        """Stop reading ahead; no worker is left when this returns."""
        self._iterator.close()


def _require_examples(data: Any) -> None:
    if isinstance(data, grain.IterDataset):
        raise UserError(
            "data: got an IterDataset, whose order is not a function of the index; expected columns by name or a "
            "grain.MapDataset of single examples (documents are packed before, by `pack`)"
        )
    if not isinstance(data, grain.MapDataset):
        got = type(data).__name__
        raise UserError(f"data: got {got}, expected columns by name or a grain.MapDataset of single examples")


def _read_ahead(share: Share, rows: int, workers: int) -> grain.DatasetIterator:
    """Iterate over the local batches, a few of them read in advance."""
    try:
        batches = share.batch(rows, drop_remainder=True)
    except ValueError as error:  # Grain's sentence on .filter() speaks of a conversion that does not help here
        raise UserError(DROPPED) from error
    threads = min(16, max(1, (os.cpu_count() or 1) // (2 * max(1, workers))))
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        _require_picklable(share)
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which only a program of absl's parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    return iter(dataset)


def _require_picklable(data: grain.MapDataset) -> None:
    try:
        cloudpickle.Pickler(_Nowhere()).dump(data)
    except Exception as error:  # a pickler raises whatever the object's own methods raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"data cannot be sent to a worker ({reason}); set train.workers 0") from error


class _Nowhere:
    """A file that forgets, so that trying to pickle takes no memory."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes


def _begin_worker(index: int, count: int) -> None:
    """Leave signals to the parent, which must still save its state, and never outlive it, even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


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
    if recorder() is not None:
        from experiments.planning import stand_ins

        return stand_ins.data_set(name, split)
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
        _update(digest, name, array)
    return digest.hexdigest()


def data_hash(data: Mapping[str, np.ndarray] | grain.MapDataset) -> str:
    """SHA-256 that tells other data, another order, or other types of elements.

    Args:
        data: columns by name, hashed whole; or a dataset, of which the lengths (its own and those of its sources) and
            some sixty examples spread over the order are hashed, with their names, types and shapes. One that has a
            `content_hash` of all of it is not read.

    Returns:
        64 hexadecimal digits, the same in every process and on every day.

    Raises:
        UserError: anything else.

    Example:
        >>> columns = {"x": np.arange(100)}
        >>> data_hash(examples(columns, seed=0)) == data_hash(examples(columns, seed=1))
        False
    """
    if isinstance(data, Mapping):
        return fingerprint({name: np.asarray(column) for name, column in data.items()})
    _require_examples(data)
    if isinstance(known := getattr(data, "content_hash", None), str):
        return known
    digest = hashlib.sha256(f"{len(data)}:{_source_lengths(data)}".encode())
    for index in _probes(len(data)):
        digest.update(f"[{index}]".encode())
        for path, leaf in jax.tree.flatten_with_path(data[index])[0]:
            _update(digest, jax.tree_util.keystr(path), np.asarray(leaf))
    return digest.hexdigest()


def _source_lengths(data: grain.MapDataset) -> list[int]:
    parents = data.parents
    return [length for parent in parents for length in _source_lengths(parent)] if parents else [len(data)]


def _probes(length: int) -> list[int]:
    """Indices that are looked at: evenly spread, or the first ones and powers of two where the order is endless."""
    if length == sys.maxsize:
        return [*range(32), *(2**k for k in range(5, 31))]
    return np.unique(np.linspace(0, length - 1, min(length, 64)).astype(int)).tolist()


def _update(digest: Any, name: str | int, array: np.ndarray) -> None:
    digest.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
    if array.dtype.hasobject:  # its bytes are addresses
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(array).tobytes())
