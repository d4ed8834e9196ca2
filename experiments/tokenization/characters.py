"""The trivial tokenizer: every symbol is a token."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.tokenizer import Ids, Tokenizer, training_data


class CharacterTokenizer(Tokenizer):
    """One token per symbol, in increasing order.

    Example:
        >>> tokenizer = CharacterTokenizer.train([[7, 3, 3]])
        >>> tokenizer.vocabulary, tokenizer.encode([3, 7]).tolist()
        (((3,), (7,)), [0, 1])
    """

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
        return np.searchsorted(np.array([token[0] for token in self.vocabulary]), sequence).astype(np.int32)
