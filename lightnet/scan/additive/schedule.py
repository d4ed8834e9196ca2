"""The order in which kernels without an order go over tokens: segment by segment, each in several passes.

A segment is contiguous, so it is some blocks of tokens, the first and the last of which it may share with its
neighbours. An item is one pass over one block for one segment; so every array moves once or once per pass, however many
segments there are, and what is known of a segment never leaves the chip.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy

from lightnet.typing import Array

KEYS, QUERIES, VALUES, NOTHING = range(4)  # passes: sums over keys, what queries see, gradients of keys and values
FIELDS = 6


class Item(NamedTuple):
    """What an item is, as places in the table.

    Attributes:
        phase: the pass, or `NOTHING`.
        segment: its number.
        edge: 1 in the first block of the pass, 2 in the last, 3 in both.
        keys: block of key logits and values. In passes without them, that of the pass before or behind.
        queries: block of queries and outputs, likewise.
        slopes: block of the gradients of key logits and values, likewise.
    """

    phase: int = 0
    segment: int = 1
    edge: int = 2
    keys: int = 3
    queries: int = 4
    slopes: int = 5


AT = Item()


def most_items(blocks: int, segments: int, passes: int) -> int:
    """Every boundary between segments takes one block more per pass."""
    return passes * (blocks + segments - 1)


def schedule(runs: Array | None, length: int, tokens: int, segments: int, phases: tuple[int, ...]) -> Any:
    """The items of each sequence in order.

    Args:
        runs: (B, L), number of each token's segment, non-decreasing; None if there is one.
        length: L.
        tokens: of a block.
        segments: how many there are at most.
        phases: the passes over each segment.

    Returns:
        (B|1, items, `FIELDS`) integers, known ones if there is one segment.

    Example:
        >>> table = schedule(jnp.array([[0, 0, 0, 1]]), 4, 2, 2, (KEYS, QUERIES))
        >>> table[0, :, AT.phase].tolist(), table[0, :, AT.segment].tolist()
        ([0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1])
        >>> table[0, :, AT.keys].tolist(), table[0, :, AT.queries].tolist()
        ([0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1])
    """
    blocks, passes = -(-length // tokens), len(phases)
    np: Any = numpy if runs is None else jnp  # numbers if they are known
    begin: Any
    end: Any
    if runs is None:
        begin, end = numpy.zeros((1, 1), int), numpy.full((1, 1), length)
    else:
        numbers = jnp.arange(segments)[None, :, None]
        begin, end = (x.sum(axis=2) for x in (runs[:, None] < numbers, runs[:, None] <= numbers))
    first = begin // tokens
    count = np.where(end > begin, (end - 1) // tokens - first + 1, 0)
    behind = np.cumsum(passes * count, axis=1)
    items = np.arange(most_items(blocks, segments, passes))
    segment = (behind[:, None] <= items[None, :, None]).sum(axis=2)
    idle, segment = segment == segments, np.minimum(segment, segments - 1)
    first, count, behind = (np.take_along_axis(x, segment, axis=1) for x in (first, count, behind))
    place = items[None] - (behind - passes * count)
    block = first + place % np.maximum(count, 1)
    phase = np.asarray(phases)[np.clip(place // np.maximum(count, 1), 0, passes - 1)]
    last = first + count - 1
    edge = (block == first) + 2 * (block == last)
    elsewhere = first if VALUES in phases else last
    keys = np.where(phase == QUERIES, elsewhere, block)
    queries = np.where(phase == QUERIES, block, np.where(phase == KEYS, first, last))
    slopes = np.where(phase == VALUES, block, first)
    at_end = [np.where(idle, blocks - 1, x) for x in (keys, queries, slopes)]
    fields = (np.where(idle, NOTHING, phase), segment, edge, *at_end)
    return np.stack([x.astype(jnp.int32) for x in fields], axis=-1)
