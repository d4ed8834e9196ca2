"""Byte-pair merges as operations on arrays: apply one, count pairs, learn them from a text that is never cut.

Hugging Face's trainer is quadratic in the length of one string, this one linear up to logarithms (Larsson and Moffat,
"Off-line dictionary-based compression", 2000): the text is a doubly linked list in arrays, so one merge costs its
number of occurrences. The occurrences of a pair all arise when the newer of its two tokens is made, and only vanish
afterwards. So each pair's list of positions is made once, its length is an upper bound of the pair's count, and a queue
of such bounds is corrected when a pair comes to its head.
"""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Merge = tuple[int, int]
_END = -1  # stands behind each sequence, so that no pair crosses


def apply_merge(tokens: NDArray[np.int64], merge: Merge, token: int) -> NDArray[np.int64]:
    """Replace a pair by a new token, from left to right without overlap.

    Args:
        tokens: 1-D ids.
        merge: left and right id of the pair.
        token: id that replaces it.

    Returns:
        The shorter sequence.

    Example:
        >>> apply_merge(np.array([0, 0, 0, 1]), (0, 0), 2).tolist()
        [2, 0, 1]
    """
    left, right = merge
    found = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left == right:
        found = found[_alternate(np.diff(found, prepend=-2) == 1)]
    merged = tokens.copy()
    merged[found] = token
    return np.delete(merged, found + 1)


def most_frequent_pair(tokens: NDArray[np.int64], *, overlapping: bool) -> tuple[Merge, int]:
    """The most frequent pair of adjacent tokens, ties to the smallest ids.

    Args:
        tokens: 1-D ids, 0 or more.
        overlapping: whether 000 counts the pair 00 twice.

    Returns:
        The pair and its count; ((0, 0), 0) if there are fewer than two tokens.

    Example:
        >>> most_frequent_pair(np.array([0, 0, 0, 0, 1, 0, 1]), overlapping=False)
        ((0, 0), 2)
        >>> most_frequent_pair(np.array([0, 0, 0, 1, 0, 1, 0, 1]), overlapping=False)
        ((0, 1), 3)
    """
    if len(tokens) < 2:
        return (0, 0), 0
    base = int(tokens.max()) + 1
    keys = tokens[:-1] * base + tokens[1:]
    if not overlapping:
        same = np.flatnonzero(tokens[:-1] == tokens[1:])
        keys = np.delete(keys, same[~_alternate(np.diff(same, prepend=-2) == 1)])
    values, counts = np.unique(keys, return_counts=True)
    best = int(values[counts.argmax()])
    return divmod(best, base), int(counts.max())


def _alternate(follows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of positions in runs, the first, third, ... of each run; `follows` tells which continue the run before them."""
    order = np.arange(len(follows))
    first = np.maximum.accumulate(np.where(follows, 0, order))
    return (order - first) % 2 == 0


def learn_merges(
    sequences: Sequence[NDArray[np.int64]], alphabet: int, size: int, *, overlapping: bool = True
) -> list[Merge]:
    """Merge the most frequent pair again and again, ties to the smallest ids.

    Args:
        sequences: 1-D over 0..A-1; pairs do not cross from one into the next.
        alphabet: A; the i-th merge makes the token A + i.
        size: wanted number of tokens, the A symbols included.
        overlapping: whether 000 counts the pair 00 twice, as Hugging Face's trainer does; else pairs count as often as
            they can be merged (Re-Pair).

    Returns:
        size - A merges, fewer if the text has no pair left.

    Example:
        >>> learn_merges([np.array([0, 1, 0, 1, 0, 1, 1])], alphabet=2, size=4)
        [(0, 1), (2, 2)]
    """
    # Every merge shortens the text; a pair is one number in base `size`, which must not overflow.
    size = min(size, alphabet + sum(map(len, sequences)))
    text = _LinkedText(sequences)
    places: dict[Merge, NDArray[np.int64]] = {}
    bounds: list[tuple[int, Merge]] = []

    def add(positions: NDArray[np.int64]) -> None:
        for pair, found in text.by_pair(positions, size):
            places[pair] = found
            heapq.heappush(bounds, (-len(found), pair))

    add(np.arange(len(text.tokens)))
    merges: list[Merge] = []
    while bounds and alphabet + len(merges) < size:
        bound, pair = heapq.heappop(bounds)
        found, mergeable = text.occurrences(places.pop(pair), pair)
        count = len(found if overlapping else mergeable)
        if count == -bound:
            add(text.merge(mergeable, alphabet + len(merges)))
            merges.append(pair)
        elif count:
            places[pair] = found
            heapq.heappush(bounds, (-count, pair))
    return merges


class _LinkedText:
    """Sequences of tokens as a doubly linked list in arrays; a position keeps its place when its neighbours merge."""

    def __init__(self, sequences: Sequence[NDArray[np.int64]]) -> None:
        ended = [part for sequence in sequences for part in (sequence, [_END])]
        self.tokens = np.concatenate([*ended, [_END]]).astype(np.int64)
        size = len(self.tokens)
        self.following = np.minimum(np.arange(1, size + 1), size - 1)
        self.previous = np.arange(-1, size - 1)

    def by_pair(self, positions: NDArray[np.int64], base: int) -> Iterator[tuple[Merge, NDArray[np.int64]]]:
        """Each pair that begins at one of the sorted positions, with those where it does."""
        left, right = self.tokens[positions], self.tokens[self.following[positions]]
        inside = (left != _END) & (right != _END)
        keys = left[inside] * base + right[inside]
        order = np.argsort(keys, kind="stable")
        values, starts = np.unique(keys[order], return_index=True)
        groups = np.split(positions[inside][order], starts[1:])
        return zip(((value // base, value % base) for value in values.tolist()), groups, strict=False)

    def occurrences(self, positions: NDArray[np.int64], pair: Merge) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those positions where the pair still begins, and of them those to merge: from the left, without overlap."""
        left, right = pair
        found = positions[(self.tokens[positions] == left) & (self.tokens[self.following[positions]] == right)]
        if left != right:
            return found, found
        follows = np.concatenate([[False], self.following[found[:-1]] == found[1:]])[: len(found)]
        return found, found[_alternate(follows)]

    def merge(self, positions: NDArray[np.int64], token: int) -> NDArray[np.int64]:
        """Merge the pairs that begin at some positions; returns where the pairs with the new token begin."""
        gone = self.following[positions]
        after = self.following[gone]
        self.tokens[positions], self.tokens[gone] = token, _END
        self.following[positions], self.previous[after] = after, positions
        return np.unique(np.concatenate([self.previous[positions], positions]))
