"""Masked diffusion on short sequences, exactly: all partly masked states, the exact denoiser, and what samplers give.

At time t every symbol of a sequence is masked with probability t, each by itself. A state is a sequence of symbols,
0 to A - 1, with A where it is masked; states are numbered as digits to the base A + 1, the first symbol first. A
denoiser is a table of log probabilities, at each state of every position (S, L, A), and draws the positions
independently: with few evaluations that is wrong, however exact the table. A sampler with n evaluations begins with
everything masked, at t 1, and goes to 0 in n equal steps; from t to s each masked position is left masked with
probability s / t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


def numbers(z: Any, symbols: int) -> Any:
    """Numbers of states (..., L).

    Example:
        >>> numbers(np.array([[0, 0], [1, 2], [2, 2]]), symbols=2).tolist()
        [0, 5, 8]
    """
    return z @ (symbols + 1) ** np.arange(z.shape[-1])[::-1]


def visible_mass(law: np.ndarray) -> np.ndarray:
    """Probability of what is visible, at every state.

    Args:
        law: of whole sequences, an axis for each position (A, ..., A).

    Returns:
        (A + 1, ..., A + 1).

    Example:
        >>> visible_mass(np.array([[0.1, 0.2], [0.3, 0.4]])).round(1).tolist()
        [[0.1, 0.2, 0.3], [0.3, 0.4, 0.7], [0.4, 0.6, 1.0]]
    """
    for axis in range(law.ndim):
        law = np.concatenate([law, law.sum(axis, keepdims=True)], axis)
    return law


def exact_denoiser(law: np.ndarray) -> np.ndarray:
    """Log probabilities of each position's symbol given all that is visible elsewhere (S, L, A), of a law as above.

    Example:
        >>> table = np.exp(exact_denoiser(np.array([[0.1, 0.2], [0.3, 0.4]])))
        >>> table[8].round(1).tolist(), table[numbers(np.array([1, 2]), 2), 1].round(3).tolist()
        ([[0.3, 0.7], [0.4, 0.6]], [0.429, 0.571])
    """
    mass, symbols = visible_mass(law), len(law)
    rows = []
    for axis in range(law.ndim):
        known, unknown = np.split(mass, [symbols], axis)
        row = np.expand_dims(np.moveaxis(known / unknown, axis, -1), axis)
        rows.append(np.broadcast_to(row, (*mass.shape, symbols)).reshape(-1, symbols))
    return np.log(np.stack(rows, axis=1))


class Moves(NamedTuple):
    """All pairs of states of which the second may follow the first.

    Attributes:
        source: numbers of the first (M).
        target: of the second (M).
        symbols: of the second (M, L), 0 where it is masked.
        drawn: where it is drawn (M, L).
        left: how many positions are left masked (M).
    """

    source: np.ndarray
    target: np.ndarray
    symbols: np.ndarray
    drawn: np.ndarray
    left: np.ndarray


def all_moves(symbols: int, length: int) -> Moves:
    """The moves on sequences of a length.

    Example:
        >>> moves = all_moves(2, 1)
        >>> list(zip(moves.source.tolist(), moves.target.tolist(), strict=True))
        [(0, 0), (1, 1), (2, 2), (2, 0), (2, 1)]
    """
    before = np.r_[np.arange(symbols + 1), np.full(symbols, symbols)]
    after = np.r_[np.arange(symbols + 1), np.arange(symbols)]
    chosen = np.indices((2 * symbols + 1,) * length).reshape(length, -1).T
    source, target = before[chosen], after[chosen]
    shown = np.where(target == symbols, 0, target)
    left = (target == symbols).sum(1)
    return Moves(numbers(source, symbols), numbers(target, symbols), shown, source != target, left)


def sampled_laws(table: np.ndarray, moves: Moves, evaluations: Sequence[int]) -> np.ndarray:
    """Laws of whole sequences from samplers with so many evaluations of a denoiser.

    Args:
        table: log probabilities (S, L, A).
        moves: of `all_moves`.
        evaluations: of each sampler.

    Returns:
        (samplers, A^L), sequences numbered as digits to the base A.

    Example:
        >>> copies = np.array([[0.5, 0.0], [0.0, 0.5]])
        >>> with np.errstate(divide="ignore", invalid="ignore"):
        ...     table = exact_denoiser(copies)
        >>> sampled_laws(table, all_moves(2, 2), [1, 2]).tolist()
        [[0.25, 0.25, 0.25, 0.25], [0.375, 0.125, 0.125, 0.375]]
    """
    size, length, symbols = table.shape
    each = table[moves.source[:, None], np.arange(length), moves.symbols]
    drawn = np.exp(np.where(moves.drawn, each, 0).sum(1))
    whole = np.indices((symbols,) * length).reshape(length, -1).T
    laws = []
    for number in evaluations:
        law = np.eye(size)[-1]
        for step in range(number):
            chance = 1 / (number - step)  # (t - s) / t of being drawn
            weights = drawn * chance ** moves.drawn.sum(1) * (1 - chance) ** moves.left
            law = np.bincount(moves.target, law[moves.source] * weights, size)
        laws.append(law[numbers(whole, symbols)])
    return np.stack(laws)
