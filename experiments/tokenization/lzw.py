"""The LZW tokenizer of arXiv 2404.08335, definition 4.4 (the parsing of LZ78), with the greedy encoder.

Reading the training text from left to right, the shortest prefix of the rest that is not yet a token becomes one and is
cut off. Hence every prefix of a token is a token.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.greedy import GreedyTokenizer
from experiments.tokenization.tokenizer import Token, as_sequence, training_data


class LZWTokenizer(GreedyTokenizer):
    """Dictionary learned by LZ78 parsing, in the order of discovery; symbols that the parse missed come last.

    Example:
        >>> tokenizer = LZWTokenizer.train([[0, 1, 0, 0, 1, 1, 1]], size=10)
        >>> tokenizer.vocabulary
        ((0,), (1,), (0, 0), (1, 1))
        >>> tokenizer.encode([1, 1, 0, 0, 0]).tolist()
        [3, 2, 0]
    """

    @classmethod
    def train(cls, sequences: Iterable[ArrayLike], size: int, *, alphabet: int | None = None) -> "LZWTokenizer":
        """Learn at most `size` tokens.

        Every symbol of the alphabet is a token, so that encoding is total; those that the parse does not find by
        itself are added, and they count: len(vocabulary) <= size. The parse stops as soon as there is no room left.
        A text that is too short gives fewer tokens. Tokens do not cross sequences; an unfinished tail is dropped.

        Args:
            sequences: 1-D integer arrays, or the rows of a 2-D array, read in order.
            size: token budget d.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in all sequences.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if `size` is smaller than the alphabet, or a symbol is outside it.
        """
        data, symbols = training_data(sequences, size, alphabet)
        found = parse(data, symbols, size)
        known = set(found)
        return cls(found + [(symbol,) for symbol in symbols if (symbol,) not in known])

    @classmethod
    def train_on_prefix(cls, sequence: ArrayLike, length: int, *, alphabet: int | None = None) -> "LZWTokenizer":
        """Learn from the first d symbols, without another limit: what theorem 4.5 speaks of.

        Args:
            sequence: 1-D integers, at least d of them.
            length: d. The dictionary has at most d tokens, too.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in the prefix.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if the sequence is shorter than d, d is smaller than the alphabet, or a symbol is outside it.

        Example:
            >>> LZWTokenizer.train_on_prefix([0, 1, 0, 0, 1, 1, 1], 4).vocabulary
            ((0,), (1,), (0, 0))
        """
        symbols = as_sequence(sequence, "sequence")
        if not isinstance(length, int | np.integer) or not 1 <= length <= len(symbols):
            raise ValueError(f"length: got {length}; expected 1..{len(symbols)}, the length of the sequence")
        return cls.train([symbols[:length]], length, alphabet=alphabet)


def parse(sequences: Sequence[NDArray[np.int64]], alphabet: Sequence[int], size: int) -> list[Token]:
    """Tokens in the order in which the parse finds them.

    Args:
        sequences: over the alphabet.
        alphabet: the distinct symbols.
        size: largest number of tokens, the single symbols that were not found included.

    Returns:
        The tokens, a prefix-closed set.
    """
    width = max(alphabet) + 1
    children: dict[int, int] = {}
    tokens: list[Token] = []
    missing = len(alphabet)
    for sequence in sequences:
        node, start = 0, 0
        for position, symbol in enumerate(sequence.tolist(), start=1):
            longer = children.get(node + symbol)
            if longer is not None:
                node = longer
                continue
            # A token of one symbol takes the place that was kept for that symbol, a longer one needs a new place.
            if len(tokens) + missing >= size and node:
                return tokens
            children[node + symbol] = width * (len(children) + 1)
            tokens.append(tuple(sequence[start:position].tolist()))
            missing -= node == 0
            node, start = 0, position
    return tokens
