"""ListOps drawn here, written as the Long Range Arena's files are: what a small run reads where no folder is given."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.long_memory.arena_data import LISTOPS_FILES
from experiments.sources.listops import CLOSE, OPERATORS, SYMBOLS, listops


def parenthesised(tokens: Sequence[str]) -> str:
    """An expression as the released files have it: a pair of parentheses around each token and all before it.

    Args:
        tokens: of `experiments.sources.listops`.

    Returns:
        The tokens and parentheses, spaces between.

    Example:
        >>> parenthesised("[MAX 4 [MIN 1 5 ] ]".split())
        '( ( ( [MAX 4 ) ( ( ( [MIN 1 ) 5 ) ] ) ) ] )'
    """
    stack: list[str] = []
    for token in tokens:
        if token in OPERATORS:
            stack.append(token)
            continue
        pair = f"( {stack.pop()} {token} )" if token == CLOSE else token
        stack.append(f"( {stack.pop()} {pair} )" if stack else pair)
    (whole,) = stack
    return whole


def write_listops(
    folder: Path, counts: Sequence[int] = (64, 16, 16), *, depth: int = 2, shortest: int = 8, longest: int = 30
) -> Path:
    """Write the three files.

    Args:
        folder: in the place of what was released.
        counts: expressions of each file.
        depth: most operators inside of each other.
        shortest: fewest tokens.
        longest: most tokens.

    Returns:
        The folder.
    """
    for part, (name, count) in enumerate(zip(LISTOPS_FILES, counts, strict=True)):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        sizes = {"depth": depth, "arguments": 10, "shortest": shortest, "longest": longest}
        drawn = listops(np.random.default_rng(part), count, **sizes)
        with file.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines, delimiter="\t")
            writer.writerow(["Source", "Target"])
            for row, length, value in zip(*drawn, strict=True):
                writer.writerow([parenthesised([SYMBOLS[id] for id in row[:length]]), value])
    return folder
