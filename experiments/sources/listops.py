"""Generated ListOps: nested lists of digits with an operator each, whose value has to be told (arXiv 1804.06028).

    [MAX 4 [MED 1 5 8 9 ] 7 ]   ->   7

MIN and MAX; MED, the integer part of the median; SM, the sum modulo 10. Expressions are drawn as the Long Range Arena
draws them (arXiv 2011.04006): a node is an operator with probability 1/4 where it may be, else a digit; it has 2 to 10
arguments. Its generator has a depth of 10 with the digits counted, which is 9 operators inside of each other, and keeps
what has more than 500 and fewer than 2,000 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}
CLOSE, END = "]", "="
SYMBOLS = (*map(str, range(10)), *OPERATORS, CLOSE, END)
OPERATOR_SHARE = 0.25
LONG_RANGE_ARENA = {"depth": 9, "arguments": 10, "shortest": 501, "longest": 1999}


class ListOps(NamedTuple):
    """Expressions as ids in SYMBOLS, each followed by END as often as it takes, and their values.

    Attributes:
        tokens: (N, longest + 1) int8.
        lengths: (N,) tokens of each expression: the place of the first END, where the value is asked for.
        values: (N,) from 0 to 9.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    values: np.ndarray


def evaluate(tokens: Sequence[str]) -> int:
    """The value of an expression.

    Args:
        tokens: of SYMBOLS without END.

    Returns:
        From 0 to 9.

    Raises:
        ValueError: it is not one whole expression.

    Example:
        >>> evaluate("[MAX 4 [MED 1 5 8 9 ] 3 ]".split())
        6
    """
    stack: list[list] = [[]]
    for token in tokens:
        if token in OPERATORS:
            stack.append([token])
        elif token == CLOSE and len(stack) > 1 and len(stack[-1]) > 1:
            operator, *values = stack.pop()
            stack[-1].append(OPERATORS[operator](values))
        elif token.isdecimal() and len(token) == 1:
            stack[-1].append(int(token))
        else:
            raise ValueError(f"tokens: {token!r} has no place where it stands")
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError(f"tokens: got {' '.join(tokens)!r}, expected one whole expression")
    return stack[0][0]


def expression(random: np.random.Generator, *, depth: int, arguments: int) -> list[str]:
    """An expression that begins with an operator.

    Args:
        random: generator.
        depth: most operators inside of each other.
        arguments: most arguments of an operator; the fewest are 2.

    Returns:
        Its tokens.

    Example:
        >>> tokens = expression(np.random.default_rng(0), depth=1, arguments=3)
        >>> tokens[0] in OPERATORS, tokens[-1], 0 <= evaluate(tokens) <= 9
        (True, ']', True)
    """
    return list(_list(random, depth, arguments))


def _list(random: np.random.Generator, depth: int, arguments: int) -> Iterator[str]:
    yield tuple(OPERATORS)[random.integers(len(OPERATORS))]
    for _ in range(random.integers(2, arguments + 1)):
        if depth > 1 and random.random() < OPERATOR_SHARE:
            yield from _list(random, depth - 1, arguments)
        else:
            yield str(random.integers(10))
    yield CLOSE


def listops(
    random: np.random.Generator, count: int, *, depth: int, arguments: int, shortest: int, longest: int
) -> ListOps:
    """Expressions of limited length, no two alike in more than what chance makes alike.

    Args:
        random: generator.
        count: expressions N.
        depth: most operators inside of each other, at least 1.
        arguments: most arguments of an operator, at least 2.
        shortest: fewest tokens of an expression, at most what depth and arguments allow.
        longest: most tokens, at least 4.

    Returns:
        The expressions and their values.

    Raises:
        ValueError: a number is outside its range, so that there are no such expressions.

    Example:
        >>> found = listops(np.random.default_rng(0), 5, depth=2, arguments=3, shortest=6, longest=12)
        >>> found.tokens.shape, bool((found.lengths >= 6).all())
        ((5, 13), True)
    """
    _check(depth, arguments, shortest, longest)
    tokens = np.full((count, longest + 1), SYMBOLS.index(END), np.int8)
    lengths, values = np.zeros(count, np.int32), np.zeros(count, np.int32)
    ids = {symbol: id for id, symbol in enumerate(SYMBOLS)}
    for row in range(count):
        found: list[str] = []
        while not shortest <= len(found) <= longest:
            found = expression(random, depth=depth, arguments=arguments)
        tokens[row, : len(found)] = [ids[token] for token in found]
        lengths[row], values[row] = len(found), evaluate(found)
    return ListOps(tokens, lengths, values)


def _check(depth: int, arguments: int, shortest: int, longest: int) -> None:
    for name, value, least in (("depth", depth, 1), ("arguments", arguments, 2), ("longest", longest, 4)):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    largest = 1
    for _ in range(depth):
        largest = 2 + arguments * largest
    if not shortest <= min(longest, largest):
        raise ValueError(f"shortest: got {shortest}, expected at most {min(longest, largest)}")
