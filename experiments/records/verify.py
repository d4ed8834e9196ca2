"""Whether a folder of records is what its manifest says: every byte, every record, every count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.errors import UserError
from experiments.records.encoding import Record
from experiments.records.manifest import Manifest
from experiments.records.source import Records
from experiments.records.tokens import KIND


def verify(folder: str | Path) -> Manifest:
    """Read everything.

    Args:
        folder: of records; shards of a bucket are fetched.

    Returns:
        The manifest.

    Raises:
        UserError: at the first thing that is not as the manifest says.
    """
    manifest = Records(folder, check=True).manifest
    for number, shard in enumerate(manifest.shards):
        if not shard.records:
            continue
        source = Records(folder, [number], check=False)
        counts = Counter[str]()
        for record in _all(source):
            if manifest.about.get("kind") == KIND:
                counts.update(_checked(record, manifest, shard.file))
        if counts and dict(counts) != dict(shard.counts):
            raise UserError(f"{shard.file}: its records have {dict(counts)}, and the manifest says {shard.counts}")
    return manifest


def _all(source: Records) -> Iterator[Record]:
    for index in range(len(source)):
        yield source[index]


def _checked(record: Record, manifest: Manifest, file: str) -> dict[str, int]:
    """The counts of a row of tokens that keeps the rules of `experiments.records.tokens.pack`."""
    length, vocab_size = manifest.about["length"], manifest.about["vocab_size"]
    if set(record) != {"tokens", "segment_ids"} or any(array.shape != (length,) for array in record.values()):
        raise UserError(f"{file}: a record is no row of {length} tokens and segment ids")
    tokens, segments = (record[name].astype(np.int64) for name in ("tokens", "segment_ids"))
    real = segments > 0
    filled = int(real.sum())
    if not filled or not real[:filled].all() or segments[0] != 1 or not set(np.diff(segments[:filled])) <= {0, 1}:
        raise UserError(f"{file}: segment ids do not count 1, 2, ... with padding behind the last")
    if tokens.max() >= vocab_size or tokens[~real].any():
        raise UserError(f"{file}: got the token {tokens.max()}, expected tokens below {vocab_size}, and 0 as padding")
    return {"tokens": filled, "segments": int(segments.max())}
