"""What a folder of records holds: written last, so that a folder with a manifest is whole."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.files import as_path, read_json, to_plain, write_json
from experiments.records.shards import Shard, read_shard

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The content of a folder.

    Attributes:
        name: of the data.
        about: what the records are and what they were made of, in plain JSON values.
        shards: in order.
    """

    name: str
    about: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @property
    def records(self) -> int:
        """How many there are."""
        return sum(shard.records for shard in self.shards)

    @property
    def counts(self) -> dict[str, int]:
        """Sums over all records, such as "tokens"."""
        return dict(sum((Counter(shard.counts) for shard in self.shards), Counter()))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 that tells other content: of `about` and of the shards' hashes."""
        canonical = json.dumps(to_plain([self.about, [shard.sha256 for shard in self.shards]]), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write the manifest, after all shards.

    Args:
        folder: of the records.
        manifest: what it holds.
    """
    sums = {"records": manifest.records, "counts": manifest.counts, "sha256": manifest.sha256}
    write_json(as_path(folder) / MANIFEST, {"format": FORMAT, **to_plain(manifest), **sums})


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder.

    Args:
        folder: of the records.

    Returns:
        The manifest.

    Raises:
        UserError: the folder is not whole, or its manifest is damaged or of another format.
    """
    path = as_path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no finished folder of records: it has no {MANIFEST}; see `data prepare`")
    plain = read_json(path)
    if not isinstance(plain, dict) or not {"name", "about", "shards", "sha256"} <= plain.keys():
        raise UserError(f"{path} is damaged: it is no manifest of records")
    if plain.get("format") != FORMAT:
        raise UserError(f"{path} has the format {plain.get('format')}, expected {FORMAT}")
    manifest = Manifest(plain["name"], plain["about"], tuple(read_shard(shard, path) for shard in plain["shards"]))
    if manifest.sha256 != plain["sha256"]:
        raise UserError(f"{path} is damaged: its content does not have its SHA-256")
    return manifest
