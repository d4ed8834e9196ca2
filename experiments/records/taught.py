"""Rows of tokens with the outputs of a teacher beside them: two folders read as one, which must belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from experiments.errors import UserError
from experiments.records.manifest import Manifest, read_manifest
from experiments.records.source import Records

KIND = "outputs of a teacher"


class TaughtRows:
    """Record i has the arrays of row i and those of the teacher for it, see `experiments.records.teacher`.

    Attributes:
        rows: what `data prepare` wrote.
        outputs: what `data teacher` wrote for these rows.
    """

    def __init__(
        self, folder: str | Path, teacher: str | Path, shards: Sequence[int] | None = None, *, check: bool = True
    ) -> None:
        """Look at both manifests, then at the shards.

        Args:
            folder: of the rows.
            teacher: folder of the outputs.
            shards: numbers; None takes all.
            check: as for `Records`.

        Raises:
            UserError: the outputs are of other rows, another tokenizer or another vocabulary, a folder is not whole, or
                a shard is not the one that its manifest names.
        """
        _refuse_other_rows(read_manifest(folder), read_manifest(teacher), teacher)
        self.rows, self.outputs = (Records(each, shards, check=check) for each in (folder, teacher))

    @property
    def manifest(self) -> Manifest:
        """Of the rows."""
        return self.rows.manifest

    @property
    def shards(self) -> tuple[int, ...]:
        """Numbers of the shards that are read, in this order."""
        return self.rows.shards

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """One row with its outputs."""
        return {**self.rows[index], **self.outputs[index]}

    def only(self, shards: Sequence[int]) -> TaughtRows:
        """The rows of some of these shards, which are not checked again.

        Args:
            shards: their numbers in the folders.

        Returns:
            A source of them.
        """
        return TaughtRows(self.rows.folder, self.outputs.folder, shards, check=False)

    def __repr__(self) -> str:
        """For Grain's messages."""
        return f"TaughtRows({self.rows!r}, {self.outputs!r})"


def _refuse_other_rows(rows: Manifest, outputs: Manifest, teacher: str | Path) -> None:
    """What differs is named, the hash of everything last: it alone says only that something does."""
    if outputs.about.get("kind") != KIND:
        raise UserError(f"{teacher} holds no outputs of a teacher; see `data teacher`")
    for field, what in (("tokenizer_sha256", "tokenizer"), ("vocab_size", "vocabulary"), ("length", "length of a row")):
        if outputs.about.get(field) != rows.about.get(field):
            raise UserError(f"{teacher} has outputs for rows of another {what}; `data teacher` writes them for these")
    counts, expected = ([shard.records for shard in manifest.shards] for manifest in (outputs, rows))
    if counts != expected:
        raise UserError(
            f"{teacher} has outputs for {sum(counts)} rows in {len(counts)} shards, and there are "
            f"{sum(expected)} in {len(expected)}"
        )
    if outputs.about.get("data_sha256") != rows.sha256:
        raise UserError(f"{teacher} has outputs for other rows: another SHA-256; `data teacher` writes them for these")
