"""The order in which a training reads records, such that a process needs some of the shards only."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from experiments.errors import UserError
from experiments.records.source import Records
from experiments.records.taught import TaughtRows
from experiments.training.data import examples

TOKENS, SEGMENT_IDS = "tokens", "segment_ids"


class Lanes(grain.MapDataset):
    """Endless batches of which each lane fills its own rows, from its own shards, in its own shuffled order.

    Row r of a batch of B belongs to lane r G // B of G, so a process whose rows are some of the lanes' opens the shards
    of these lanes and no others. Which example stands at an index depends on (seed, index, B, G) alone, not on the
    number of processes. A lane that has fewer records begins its next epoch earlier.

    Attributes:
        content_hash: tells other records and another order; of the manifest, so that no record is read for it.
    """

    def __init__(self, lanes: Sequence[grain.MapDataset], batch_size: int, content_hash: str) -> None:
        """Put lanes beside each other.

        Args:
            lanes: endless, a divisor of the batch size many.
            batch_size: examples of a global batch.
            content_hash: of the records and their orders.
        """
        super().__init__(lanes)
        self._lanes, self._batch_size, self._each = list(lanes), batch_size, batch_size // len(lanes)
        self.content_hash = content_hash

    def __len__(self) -> int:
        """Endless, as Grain says it."""
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        """One example."""
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._batch_size)
        lane, place = divmod(row, self._each)
        return self._lanes[lane][batch * self._each + place]

    def __str__(self) -> str:
        """Name, for Grain's messages."""
        return f"Lanes({len(self._lanes)}, batch_size={self._batch_size})"


def in_training_order(
    folder: str | Path,
    *,
    seed: int,
    batch_size: int,
    lanes: int = 1,
    shards: Sequence[int] | None = None,
    teacher: str | Path | None = None,
    check: bool = True,
) -> Lanes:
    """Records of a folder in an endless shuffled order, for `experiments.training.loop.train`.

    Args:
        folder: of records, on this machine or in a bucket.
        seed: of the order.
        batch_size: of the training.
        lanes: 1 shuffles all records together, and every process reads from every shard; with a multiple of the number
            of processes each reads shards of its own. It is part of the order: keep it when the processes change.
        shards: numbers of the shards that are trained on; None takes all.
        teacher: folder of `data teacher`, of which each record gets the outputs for its row; the order is the same.
        check: as for `Records`.

    Returns:
        A dataset of single records, see `widened`.

    Raises:
        UserError: a folder is not whole, the teacher's outputs are of other rows, or the lanes divide neither shards
            nor batch.
    """
    source: Any = (
        Records(folder, shards, check=check) if teacher is None else TaughtRows(folder, teacher, shards, check=check)
    )
    numbers = source.shards
    if lanes < 1 or batch_size % lanes or len(numbers) % lanes:
        raise UserError(
            f"lanes: got {lanes}, expected a divisor of {len(numbers)} shards and of a batch of {batch_size}"
        )
    parts = [source if lanes == 1 else source.only(part.tolist()) for part in np.split(np.array(numbers), lanes)]
    identity = f"{source.manifest.sha256}:{numbers}:{seed}:{batch_size}:{lanes}"
    identity += "" if teacher is None else f":{source.outputs.manifest.sha256}"
    return Lanes(
        [examples(part, seed=_seed(seed, number)).map(widened) for number, part in enumerate(parts)],
        batch_size,
        hashlib.sha256(identity.encode()).hexdigest(),
    )


def widened(record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A record with tokens and segment ids in int32, which models expect; other arrays are as they were stored."""
    return {name: array.astype(np.int32) if name in (TOKENS, SEGMENT_IDS) else array for name, array in record.items()}


def _seed(seed: int, lane: int) -> int:
    """Seed of a lane, so that lanes of equal length are not shuffled alike."""
    return int(np.random.SeedSequence((seed, lane)).generate_state(1)[0])
