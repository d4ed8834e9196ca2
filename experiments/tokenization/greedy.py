"""The greedy encoder of arXiv 2404.08335, definition A.3: always take the longest token that fits.

Where the walk through the trie cannot go on, the tokens that the symbols read so far give, and the node where the walk
continues, depend on the node only and are tabulated: one look-up per symbol with any dictionary, whatever the length of
its tokens (the LinMaxMatch algorithm of Song et al., "Fast WordPiece Tokenization", arXiv 2012.15524).
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from experiments.tokenization.tokenizer import Ids, Tokenizer
from experiments.tokenization.trie import Table, Trie


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
        self._trie = Trie.of(self.vocabulary)

    @property
    def prefix_closed(self) -> bool:
        """Whether every prefix of a token is a token, as in an LZW dictionary."""
        return self._trie.prefix_closed

    @cached_property
    def _dead_ends(self) -> "DeadEnds":
        return DeadEnds(self._trie)

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        child, onward = self._trie.children.get, self._dead_ends.onward
        stuck: list[int] = []
        emit = stuck.append
        node = 0
        for symbol in self._trie.indices(sequence):
            longer = child(node + symbol)
            if longer is None:
                emit(node + symbol)
                longer = onward[node + symbol]
            node = longer
        ids: list[int] = []
        tokens = self._dead_ends.tokens
        for key in stuck:
            ids += tokens[key]
        return np.array(ids + self._dead_ends.rest(node), dtype=np.int32)


# Tokens as a tree: None, an id, or a pair of such. Paths share their beginnings, so all of them take linear space.
Emitted = None | int | tuple["Emitted", "Emitted"]


class DeadEnds:
    """What greedy does when the walk cannot go on from a node.

    Args:
        trie: the dictionary.

    Example:
        >>> ends = DeadEnds(Trie.of([(0,), (1,), (0, 0, 0, 1)]))
        >>> stuck_at_00_with_1 = 6 + 1
        >>> ends.tokens[stuck_at_00_with_1], ends.onward[stuck_at_00_with_1]
        ([0, 0], 4)
    """

    def __init__(self, trie: Trie) -> None:
        """Tabulate, for each node, the tokens that must be emitted there and the node of the symbols that remain."""
        self._trie = trie
        self._emitted, self._fallback = _failures(trie)
        self.tokens: Table[list[int]] = Table(self._tokens)
        self.onward: Table[int] = Table(lambda key: trie.children[self._path(key)[-1] + key % len(trie.alphabet)])

    def rest(self, node: int) -> list[int]:
        """Ids of the tokens of the symbols at the end of a sequence, whose walk stopped at a node.

        Args:
            node: of the trie.

        Returns:
            Token ids, none at the root.
        """
        ids: list[int] = []
        while node:
            ids += flatten(self._emitted[node])
            node = self._fallback[node]
        return ids

    def _path(self, key: int) -> list[int]:
        """The nodes fallen back to until the symbol of a key fits, the last one included."""
        symbol = key % len(self._trie.alphabet)
        nodes = [key - symbol]
        while nodes[-1] + symbol not in self._trie.children:
            nodes.append(self._fallback[nodes[-1]])
        return nodes

    def _tokens(self, key: int) -> list[int]:
        return [token for node in self._path(key)[:-1] for token in flatten(self._emitted[node])]


def _failures(trie: Trie) -> tuple[dict[int, Emitted], dict[int, int]]:
    """For each node the tokens that greedy emits there, and the node of the symbols that are left."""
    emitted: dict[int, Emitted] = {}
    fallback: dict[int, int] = {}
    alphabet = len(trie.alphabet)
    for key, node in trie.by_depth():
        token = trie.token_at.get(node)
        if token is not None:
            emitted[node], fallback[node] = token, 0
            continue
        symbol = key % alphabet
        tokens, left = emitted[key - symbol], fallback[key - symbol]
        while left + symbol not in trie.children:
            tokens, left = (tokens, emitted[left]), fallback[left]
        emitted[node], fallback[node] = tokens, trie.children[left + symbol]
    return emitted, fallback


def flatten(tokens: Emitted) -> list[int]:
    """The ids in a tree of tokens, from left to right.

    Args:
        tokens: a tree, however deep.

    Returns:
        Token ids.

    Example:
        >>> flatten(((2, 5), 1))
        [2, 5, 1]
    """
    ids: list[int] = []
    pending = [tokens]
    while pending:
        tree = pending.pop()
        if isinstance(tree, tuple):
            pending += [tree[1], tree[0]]
        elif tree is not None:
            ids.append(tree)
    return ids
