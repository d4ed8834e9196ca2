"""The greedy encoder of arXiv 2404.08335, definition A.3: always take the longest token that fits.

The dictionary is a trie in one Python dict, {node + symbol index: child node}, in which a node is a multiple of the
alphabet size: one addition and one look-up per symbol.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from experiments.tokenization.tokenizer import Ids, Token, Tokenizer


class GreedyTokenizer(Tokenizer):
    """Any dictionary that contains the single symbols, with the greedy encoder.

    Args:
        vocabulary: the tokens; every symbol that occurs in one must be a token by itself.

    Raises:
        ValueError: if a symbol is missing as a token: encoding would not be total.

    Example:
        >>> tokenizer = GreedyTokenizer([(0,), (1,), (0, 1, 1), (1, 1)])
        >>> tokenizer.encode([0, 1, 0, 1, 1, 1]).tolist()
        [0, 1, 2, 1]
    """

    def __init__(self, vocabulary: Iterable[Sequence[int]]) -> None:
        """Check that encoding is total."""
        super().__init__(vocabulary)
        missing = set().union(*self.vocabulary) - set(self.alphabet)
        if missing:
            raise ValueError(f"vocabulary: the symbol {min(missing)} is part of a token; expected it as a token too")

    @property
    def prefix_closed(self) -> bool:
        """Whether every prefix of a token is a token, as in an LZW dictionary."""
        return len(self._token_at) == len(self._children)

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        """Position of each symbol in the alphabet."""
        index = np.zeros(self.alphabet[-1] + 1, dtype=np.int64)
        index[list(self.alphabet)] = np.arange(len(self.alphabet))
        return index

    @cached_property
    def _trie(self) -> tuple[dict[int, int], dict[int, int]]:
        return build_trie(self.vocabulary, self._index.tolist(), len(self.alphabet))

    @property
    def _children(self) -> dict[int, int]:
        return self._trie[0]

    @property
    def _token_at(self) -> dict[int, int]:
        return self._trie[1]

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        symbols = self._index[sequence].tolist()
        encode = encode_prefix_closed if self.prefix_closed else encode_longest
        return np.array(encode(symbols, self._children, self._token_at), dtype=np.int32)


def build_trie(
    vocabulary: Sequence[Token], index: Sequence[int], alphabet: int
) -> tuple[dict[int, int], dict[int, int]]:
    """The dictionary as a trie.

    Args:
        vocabulary: the tokens.
        index: position of each symbol in the alphabet.
        alphabet: number of symbols A.

    Returns:
        {node + symbol index: child} and {node: id of the token that ends there}; the root is 0, nodes are multiples
        of A.
    """
    children: dict[int, int] = {}
    token_at: dict[int, int] = {}
    for token_id, token in enumerate(vocabulary):
        node = 0
        for symbol in token:
            node = children.setdefault(node + index[symbol], alphabet * (len(children) + 1))
        token_at[node] = token_id
    return children, token_at


def encode_prefix_closed(symbols: Sequence[int], children: dict[int, int], token_at: dict[int, int]) -> list[int]:
    """Greedy encoding when every node of the trie is a token: the walk never has to step back.

    Args:
        symbols: symbol indices.
        children: from `build_trie`.
        token_at: from `build_trie`.

    Returns:
        Token ids.
    """
    nodes: list[int] = []
    emit, child = nodes.append, children.get
    node = 0
    for symbol in symbols:
        longer = child(node + symbol)
        if longer is None:
            emit(node)
            longer = children[symbol]
        node = longer
    if node:
        emit(node)
    return [token_at[node] for node in nodes]


def encode_longest(symbols: Sequence[int], children: dict[int, int], token_at: dict[int, int]) -> list[int]:
    """Greedy encoding with any dictionary: walk as far as the trie goes, then step back to the last token.

    Args:
        symbols: symbol indices.
        children: from `build_trie`.
        token_at: from `build_trie`.

    Returns:
        Token ids.
    """
    ids: list[int] = []
    emit, child, token = ids.append, children.get, token_at.get
    start, length = 0, len(symbols)
    while start < length:
        node, position, best, end = 0, start, -1, start
        while position < length:
            longer = child(node + symbols[position])
            if longer is None:
                break
            node, position = longer, position + 1
            found = token(node)
            if found is not None:
                best, end = found, position
        emit(best)
        start = end
    return ids
