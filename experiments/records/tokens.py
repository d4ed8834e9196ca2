"""Rows of tokens from documents: the job behind `data prepare`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.errors import UserError
from experiments.files import as_path
from experiments.records.documents import Documents

BYTES = "bytes"
TOKENIZER = "tokenizer.json"
KIND = "rows of tokens"
_AT_ONCE = 256  # documents that a tokenizer gets together: its own record of a token takes about a hundred bytes


@dataclass(frozen=True)
class Tokenization:
    """What text becomes.

    Attributes:
        tokenizer: JSON of a Hugging Face tokenizer (`tokenizers.Tokenizer.to_str`); None takes UTF-8 bytes.
        end: token that is put behind each document; None puts none there.

    Example:
        >>> [ids.tolist() for ids in Tokenization(None).encode(["ab", "", "é"])]
        [[97, 98], [], [195, 169]]
    """

    tokenizer: str | None
    end: int | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens are below it."""
        return 256 if self.tokenizer is None else max(_loaded(self.tokenizer).get_vocab().values()) + 1

    @property
    def sha256(self) -> str:
        """Of the tokenizer's JSON, or of the word "bytes"."""
        return hashlib.sha256((self.tokenizer or BYTES).encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest that holds every token."""
        return np.min_scalar_type(self.vocab_size - 1)

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        """Token ids of each document, in order."""
        iterator = iter(documents)
        while batch := list(islice(iterator, _AT_ONCE)):
            if self.tokenizer is None:
                yield from (np.frombuffer(text.encode(), np.uint8) for text in batch)
                continue
            for encoded in _loaded(self.tokenizer).encode_batch_fast(batch, add_special_tokens=False):
                ids = encoded.ids if self.end is None else [*encoded.ids, self.end]
                yield np.array(ids, self.dtype)


def read_tokenizer(path: str, end: str = "") -> Tokenization:
    """The tokenization that a word of the command line names.

    Args:
        path: "bytes", or a `tokenizer.json` of Hugging Face's library.
        end: text of the token behind each document, such as <|endoftext|>; empty: none.

    Returns:
        The tokenization.

    Raises:
        UserError: there is no such file, it is no tokenizer, or it does not have that token.
    """
    if path == BYTES:
        if end:
            raise UserError(f"--end: got {end!r}, but bytes have no such token")
        return Tokenization(None)
    try:
        text = as_path(path).read_text(encoding="utf-8")
        tokenizer = _loaded(text)
    except OSError:
        raise UserError(f"--tokenizer: no file {path}; expected bytes, or the path of a tokenizer.json") from None
    except Exception as error:  # what the Rust library raises is a plain Exception
        raise UserError(f"{path} is no tokenizer.json ({str(error).splitlines()[0][:100]})") from None
    number = tokenizer.token_to_id(end) if end else None
    if end and number is None:
        raise UserError(f"--end: {path} has no token {end!r}")
    return Tokenization(text, number)


def prepared_tokenizer(folder: str | Path, about: Mapping[str, Any]) -> str | None:
    """The tokenizer of a folder of rows.

    Args:
        folder: of the rows.
        about: of its manifest.

    Returns:
        Its JSON; None if tokens are bytes.

    Raises:
        UserError: it is not there, or another than the rows were made with.
    """
    if about["tokenizer"] == BYTES:
        return None
    path = as_path(folder) / about["tokenizer"]
    if not path.is_file():
        raise UserError(f"{path} does not exist, and the manifest names it; `data prepare` writes it again")
    text = path.read_text(encoding="utf-8")
    if Tokenization(text).sha256 != about["tokenizer_sha256"]:
        raise UserError(f"{path} is not the tokenizer that the rows were made with")
    return text


def pack(documents: Iterable[NDArray[Any]], length: int, dtype: np.dtype[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    """Documents one behind the other, cut into rows; only the last row is padded.

    Args:
        documents: token ids, each 1-D; one without tokens takes no place.
        length: tokens of a row.
        dtype: of the tokens.

    Yields:
        "tokens" (length,) and "segment_ids" (length,): 1, 2, ... for the documents of a row, 0 behind the last. What
        does not fit into a row goes on in the next one, as its segment 1.

    Raises:
        ValueError: the length is below 1.

    Example:
        >>> for row in pack([np.array([1, 2, 3]), np.array([4])], 2, np.dtype(np.uint8)):
        ...     row["tokens"].tolist(), row["segment_ids"].tolist()
        ([1, 2], [1, 1])
        ([3, 4], [1, 2])
    """
    if length < 1:
        raise ValueError(f"length: got {length}, expected at least 1")
    ids = np.min_scalar_type(length)
    tokens, segments, filled, segment = np.zeros(length, dtype), np.zeros(length, ids), 0, 0
    for document in documents:
        start, segment = 0, segment + 1 if len(document) else segment
        while start < len(document):
            taken = min(length - filled, len(document) - start)
            tokens[filled : filled + taken] = document[start : start + taken]
            segments[filled : filled + taken] = segment
            filled, start = filled + taken, start + taken
            if filled == length:
                yield {"tokens": tokens, "segment_ids": segments}
                tokens, segments, filled = np.zeros(length, dtype), np.zeros(length, ids), 0
                segment = 1 if start < len(document) else 0
    if filled:
        yield {"tokens": tokens, "segment_ids": segments}


@dataclass(frozen=True)
class TokenRows:
    """The `experiments.records.writing.Job` that tokenises documents and packs them into rows.

    Attributes:
        name: of the data.
        documents: what is tokenised; shard k of n has the rows of their part k.
        tokenization: how.
        length: tokens of a row.
        shards: how many.
    """

    name: str
    documents: Documents
    tokenization: Tokenization
    length: int
    shards: int

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What the manifest says of the rows."""
        return {
            "kind": KIND,
            "source": self.documents.name,
            "source_sha256": self.documents.sha256,
            "tokenizer": BYTES if self.tokenization.tokenizer is None else TOKENIZER,
            "tokenizer_sha256": self.tokenization.sha256,
            "vocab_size": self.tokenization.vocab_size,
            "end": self.tokenization.end,
            "length": self.length,
            "packing": "documents in order, cut at the end of a row",
        }

    @property
    def files(self) -> Mapping[str, str]:
        """The tokenizer, unless tokens are bytes."""
        return {} if self.tokenization.tokenizer is None else {TOKENIZER: self.tokenization.tokenizer}

    def records(self, shard: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Rows of one shard."""
        documents = self.tokenization.encode(self.documents.part(shard, self.shards))
        yield from pack(documents, self.length, self.tokenization.dtype)

    def count(self, record: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Tokens of a row, and the pieces of documents in it."""
        segments = record["segment_ids"]
        return {"tokens": int(np.count_nonzero(segments)), "segments": int(segments.max())}


@functools.lru_cache(2)
def _loaded(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
