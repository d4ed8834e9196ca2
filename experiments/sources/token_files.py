"""Large texts as files of tokens, `train.bin` and `valid.bin`: 16 bits each, little-endian, one behind the other.

A file is mapped into memory, so that only the rows that are read are loaded, from any number of processes.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.errors import UserError
from experiments.training.recording import recorder

PARTS = ("train", "valid")
TYPE = np.dtype("<u2")


class Rows:
    """Random access to rows that predict each token but the first once; each begins with the last of the row before."""

    def __init__(self, stream: NDArray[np.uint16], length: int) -> None:
        """Keep what rows are cut from: (n,) tokens, of which each row predicts `length`."""
        self._stream, self._length = stream, length

    def __len__(self) -> int:
        """How many there are; what does not fill one is left out."""
        return (len(self._stream) - 1) // self._length

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int32]]:
        """The tokens (L + 1) of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start = index % len(self) * self._length
        return {"tokens": np.asarray(self._stream[start : start + self._length + 1], np.int32)}


def read_token_files(folder: str | Path, length: int, vocab_size: int) -> dict[str, Rows]:
    """The two parts.

    Args:
        folder: of the files.
        length: predicted tokens of a row.
        vocab_size: tokens that there can be.

    Returns:
        "train" and "valid".

    Raises:
        UserError: a file is absent, shorter than a row, or has tokens at its beginning or end that do not exist.
    """
    if recorder() is not None:
        return {part: Rows(np.zeros(2 * length + 1, np.uint16), length) for part in PARTS}
    return {part: Rows(_checked(Path(folder) / f"{part}.bin", length, vocab_size), length) for part in PARTS}


def _checked(path: Path, length: int, vocab_size: int) -> NDArray[np.uint16]:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise UserError(f"no file {path}: tokens of 16 bits, one behind the other, are needed there")
    if size % TYPE.itemsize or size <= length * TYPE.itemsize:
        raise UserError(f"{path}: got {size:,} bytes, expected two for each token, and more than {length} tokens")
    stream = np.memmap(path, TYPE, "r")
    # A file of a terabyte is not read as a whole; one that was cut from another vocabulary shows in a few rows.
    largest = max(int(stream[: 100 * length].max()), int(stream[-100 * length :].max()))
    if largest >= vocab_size:
        raise UserError(f"{path}: got the token {largest}, expected tokens from 0 to {vocab_size - 1}")
    return stream
