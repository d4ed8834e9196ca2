"""The encoder BPE.split of arXiv 2404.08335, definition 4.6, around any tokenizer."""

from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from experiments.tokenization.tokenizer import Ids, Tokenizer


class SplitTokenizer(Tokenizer):
    """Cuts a sequence into chunks of a fixed length, encodes each by itself, and splices the results.

    Args:
        tokenizer: encodes a chunk; its dictionary stays.
        length: symbols per chunk; the last one may be shorter.

    Raises:
        ValueError: if the length is no integer, 1 or more.

    Example:
        >>> from experiments.tokenization import GreedyTokenizer
        >>> tokenizer = SplitTokenizer(GreedyTokenizer([(0,), (1,), (0, 1)]), length=3)
        >>> tokenizer.encode([0, 1, 0, 1, 0]).tolist()
        [2, 0, 1, 0]
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        """Take over the dictionary."""
        if not isinstance(length, int | np.integer) or length < 1:
            raise ValueError(f"length: got {length}; expected an integer, 1 or more")
        self.distinct = tokenizer.distinct
        super().__init__(tokenizer.vocabulary)
        self.tokenizer = tokenizer
        self.length = length

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self._encode_batch([sequence])[0]

    def _encode_batch(self, sequences: list[NDArray[np.int64]]) -> list[Ids]:
        cut = [[s[start : start + self.length] for start in range(0, len(s), self.length)] for s in sequences]
        ids = self.tokenizer.encode_batch(chunk for chunks in cut for chunk in chunks)
        ends = accumulate(map(len, cut), initial=0)
        return [np.concatenate([np.zeros(0, np.int32), *ids[start:end]]) for start, end in pairwise(ends)]
