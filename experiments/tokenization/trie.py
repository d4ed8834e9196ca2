"""A dictionary of tokens as a trie in one Python dict, {node + symbol index: child node}.

A node is a multiple of the alphabet size A, the root is 0, and the i-th node made is i A: one addition and one look-up
per symbol, and the parent and the last symbol of a node are read off its key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.tokenization.tokenizer import Token

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Trie:
    """The prefixes of the tokens.

    Args:
        alphabet: the single symbols, sorted.
        children: {node + symbol index: child node}, parents before their children.
        token_at: {node: id of the token that ends there}.

    Example:
        >>> trie = Trie.of([(0,), (1,), (0, 1)])
        >>> trie.children, trie.token_at
        ({0: 2, 1: 4, 3: 6}, {2: 0, 4: 1, 6: 2})
    """

    alphabet: tuple[int, ...]
    children: dict[int, int]
    token_at: dict[int, int]

    @classmethod
    def of(cls, vocabulary: Sequence[Token]) -> "Trie":
        """The trie of a dictionary in which every symbol that occurs in a token is a token too.

        Args:
            vocabulary: the tokens; the position is the id.

        Returns:
            The trie.

        Raises:
            ValueError: if a symbol is missing as a token: encoding would not be total.
        """
        alphabet = tuple(sorted(token[0] for token in vocabulary if len(token) == 1))
        missing = set(chain.from_iterable(vocabulary)) - set(alphabet)
        if missing:
            raise ValueError(f"vocabulary: the symbol {min(missing)} is part of a token; expected it as a token too")
        index = {symbol: i for i, symbol in enumerate(alphabet)}
        children: dict[int, int] = {}
        token_at: dict[int, int] = {}
        for token_id, token in enumerate(vocabulary):
            node = 0
            for symbol in token:
                node = children.setdefault(node + index[symbol], len(alphabet) * (len(children) + 1))
            token_at[node] = token_id
        return cls(alphabet, children, token_at)

    @property
    def prefix_closed(self) -> bool:
        """Whether every prefix of a token is a token, as in an LZW dictionary."""
        return len(self.token_at) == len(self.children)

    def by_depth(self) -> list[tuple[int, int]]:
        """All (key, node), those of shorter prefixes first."""
        depth = {0: 0}
        for key, node in self.children.items():
            depth[node] = depth[key - key % len(self.alphabet)] + 1
        return sorted(self.children.items(), key=lambda entry: depth[entry[1]])

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Position of each symbol in the alphabet, (largest symbol + 1,)."""
        positions = np.zeros(self.alphabet[-1] + 1, dtype=np.int64)
        positions[list(self.alphabet)] = np.arange(len(self.alphabet))
        return positions

    def indices(self, sequence: NDArray[np.int64]) -> list[int]:
        """Position in the alphabet of each symbol of a sequence.

        Args:
            sequence: over the alphabet.

        Returns:
            Integers in 0..A-1.
        """
        return self.positions[sequence].tolist()


class Table(dict[int, Entry]):
    """A dict that computes a missing entry from its key and keeps it.

    Args:
        entry: key -> value.

    Example:
        >>> squares = Table(lambda key: key * key)
        >>> squares[3], dict(squares)
        (9, {3: 9})
    """

    def __init__(self, entry: Callable[[int], Entry]) -> None:
        """Start empty."""
        super().__init__()
        self._entry = entry

    def __missing__(self, key: int) -> Entry:
        """Compute an entry."""
        value = self[key] = self._entry(key)
        return value
