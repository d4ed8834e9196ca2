"""Documents in memory, a job that writes them, and what a folder holds."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.records.documents import bounds
from experiments.records.source import CACHE
from experiments.records.tokens import Tokenization, TokenRows


@dataclass(frozen=True)
class Listed:
    """Documents of a list; nothing else of it than the texts is hashed."""

    texts: tuple[str, ...]
    name: str = "listed"

    @property
    def sha256(self):
        """Of the texts."""
        return hashlib.sha256(repr(self.texts).encode()).hexdigest()

    def part(self, number, parts):
        """See `Documents`."""
        first, end = bounds(len(self.texts), number, parts)
        yield from self.texts[first:end]


def texts(count=40, longest=37, seed=0):
    """Words of awkward lengths, an empty one among them."""
    lengths = np.random.default_rng(seed).integers(0, longest, count)
    return tuple("abcdefghij"[i % 10] * int(n) for i, n in enumerate(lengths))


def byte_rows(shards=4, length=16, **listed):
    """A job of bytes."""
    return TokenRows("demo", Listed(texts(**listed)), Tokenization(None), length, shards)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """One process, and a cache of shards that is empty."""
    for name in ("LIGHTNET_PROCESS", "LIGHTNET_PROCESSES", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
