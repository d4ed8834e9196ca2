"""The trivial tokenizer: every symbol is a token."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.tokenizer import Ids, Tokenizer, training_data


class CharacterTokenizer(Tokenizer):
    """One token per symbol, in increasing order if it is trained.

    Args:
        vocabulary: tokens of one symbol each.

    Raises:
        ValueError: if a token has more than one symbol, or one is there twice.

    Example:
        >>> tokenizer = CharacterTokenizer.train([[7, 3, 3]])
        >>> tokenizer.vocabulary, tokenizer.encode([3, 7]).tolist()
        (((3,), (7,)), [0, 1])
    """

    def __init__(self, vocabulary: Iterable[Sequence[int]]) -> None:
        """Check that tokens are single symbols."""
        super().__init__(vocabulary)
        if self.lengths.max() > 1:
            raise ValueError(f"vocabulary: got a token of {self.lengths.max()} symbols; expected one each")

    @classmethod
    def train(
        cls, sequences: Iterable[ArrayLike], size: int | None = None, *, alphabet: int | None = None
    ) -> "CharacterTokenizer":
        """Take the alphabet of the sequences as the dictionary.

        Args:
            sequences: 1-D integer arrays, or the rows of a 2-D array.
            size: upper limit of the dictionary size; the dictionary has one token per symbol whatever it is.
            alphabet: number of symbols; None takes those seen.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if `size` is smaller than the alphabet, or a symbol is outside it.
        """
        _, symbols = training_data(sequences, size, alphabet)
        return cls((symbol,) for symbol in symbols)

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self._ids[sequence]

    @cached_property
    def _ids(self) -> Ids:
        ids = np.zeros(self.alphabet[-1] + 1, dtype=np.int32)
        ids[[token[0] for token in self.vocabulary]] = np.arange(len(self))
        return ids
