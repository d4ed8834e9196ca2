"""WordPiece as Hugging Face implements it: pairs are merged as in BPE, and each word is encoded greedily.

A token at the beginning of a word is another token than the same symbols later in a word ("ab" and "##ab"), so the
first symbol of each word is replaced by a marked copy of itself: the alphabet doubles, no token crosses a word, and
what remains is BPE training and greedy encoding (Devlin et al., arXiv 1810.04805). Two differences from the engine:
words of any length are encoded (it turns one of more than 100 characters into an unknown token), and every symbol is in
the dictionary in both forms, so nothing is lost.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.bpe import BPETokenizer
from experiments.tokenization.greedy import GreedyTokenizer
from experiments.tokenization.tokenizer import Ids, Token, Tokenizer, training_data


class WordPieceTokenizer(Tokenizer):
    """Tokens that begin a word, and tokens that continue one.

    Args:
        marked: over 0..2A-1: the i-th symbol of the alphabet is i inside a word and A + i at its beginning.
        alphabet: the A symbols, sorted.
        separator: the symbol that begins a new word, as a blank does; None: a sequence is one word.

    Raises:
        ValueError: if a symbol is missing in either form, or the separator is no symbol.

    Example:
        >>> tokenizer = WordPieceTokenizer.train([[0, 1, 2, 0, 1, 2, 0, 1]], size=8, separator=2)
        >>> tokenizer.vocabulary[-2:], tokenizer.starts_word[-2:].tolist()
        (((0, 1), (2, 0, 1)), [False, True])
        >>> tokenizer.encode([0, 1, 2, 0, 1]).tolist()
        [3, 1, 7]
    """

    distinct = False

    def __init__(self, marked: Sequence[Token], alphabet: Sequence[int], separator: int | None = None) -> None:
        """Make the dictionary of unmarked tokens."""
        size = len(alphabet)
        super().__init__(tuple(alphabet[symbol % size] for symbol in token) for token in marked)
        self._greedy = GreedyTokenizer(marked)
        if self._greedy.alphabet != tuple(range(2 * size)):
            raise ValueError(f"marked: got the symbols {self._greedy.alphabet}; expected 0..{2 * size - 1}")
        if separator is not None and separator not in self.alphabet:
            raise ValueError(f"separator: got {separator}; expected a symbol of the alphabet")
        self.separator = separator
        self.starts_word = np.array([token[0] >= size for token in marked])

    @classmethod
    def train(
        cls,
        sequences: Iterable[ArrayLike],
        size: int,
        *,
        alphabet: int | None = None,
        separator: int | None = None,
    ) -> "WordPieceTokenizer":
        """Learn exactly `size` tokens, the single symbols in both forms included.

        Args:
            sequences: 1-D integer arrays, or the rows of a 2-D array; each begins with a new word.
            size: dictionary size d.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in training.
            separator: the symbol that begins a new word, as a blank does; None: a sequence is one word.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if `size` is smaller than twice the alphabet, a symbol is outside the alphabet, the text has too
                few pairs for `size` tokens, or the separator is no symbol.
        """
        data, symbols = training_data(sequences, size, alphabet)
        words = [word for sequence in data for word in _words(_marked(sequence, symbols, separator), len(symbols))]
        bpe = BPETokenizer.train(words, size, alphabet=2 * len(symbols))
        return cls(bpe.vocabulary, symbols, separator)

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self._greedy.encode(_marked(sequence, self.alphabet, self.separator))


def _marked(sequence: NDArray[np.int64], symbols: Sequence[int], separator: int | None) -> NDArray[np.int64]:
    """Positions in the alphabet, raised by its size where a word begins."""
    marked = np.searchsorted(symbols, sequence)
    begins = sequence == separator if separator is not None else np.zeros(len(sequence), dtype=bool)
    begins[:1] = True
    return marked + len(symbols) * begins


def _words(marked: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return np.split(marked, np.flatnonzero(marked >= size)[1:])
