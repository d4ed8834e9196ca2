"""Held-out losses of the best unigram and bigram over the tokens of one uncut text of a Markov source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.sources.source import Source
from experiments.tokenization.losses import held_out_loss
from experiments.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    """What models over the tokens of a fresh text lose.

    Args:
        unigram: nats per source symbol.
        bigram: nats per source symbol.
        symbols_per_token: of the fresh text.
        single_share: share of its tokens that are one symbol.
    """

    unigram: float
    bigram: float
    symbols_per_token: float
    single_share: float


def sample_texts(source: Source, seed: int, lengths: Sequence[int]) -> list[NDArray[np.int32]]:
    """Independent stationary texts, each from random numbers of its own.

    Args:
        source: their law.
        seed: of all of them.
        lengths: symbols of each.

    Returns:
        1-D texts, in that order.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> [text.shape for text in sample_texts(SwitchingSource(1, 0.8, 0.8), 0, (20, 30))]
        [(20,), (30,)]
    """
    keys = jax.random.split(jax.random.key(seed), len(lengths))
    return [np.asarray(source.sample(key, (1, length)))[0] for key, length in zip(keys, lengths, strict=True)]


def held_out_scores(tokenizer: Tokenizer, fit: NDArray, fresh: NDArray, alpha: float) -> Scores:
    """Losses on one text of n-grams fitted on another, neither of which is cut.

    Args:
        tokenizer: of both texts.
        fit: 1-D, what the models are fitted on.
        fresh: 1-D, not empty, what they are scored on.
        alpha: pseudo-count of both models.

    Returns:
        The scores.

    Example:
        >>> from experiments.tokenization import GreedyTokenizer
        >>> scores = held_out_scores(GreedyTokenizer([(0,), (1,)]), np.array([0, 1]), np.array([0, 1, 1]), 1.0)
        >>> round(scores.unigram, 6), scores.single_share
        (0.693147, 1.0)
    """
    fit_ids, ids = tokenizer.encode(fit), tokenizer.encode(fresh)
    unigram, bigram = (
        held_out_loss([fit_ids], [ids], size=len(tokenizer), order=order, alpha=alpha, symbols=len(fresh))
        for order in (1, 2)
    )
    return Scores(unigram, bigram, len(fresh) / len(ids), float((tokenizer.lengths[ids] == 1).mean()))


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """Rows with the same names as a table.

    Args:
        rows: at least one.

    Returns:
        name -> values.

    Example:
        >>> columns([{"d": 2, "loss": 0.5}, {"d": 4, "loss": 0.4}])
        {'d': [2, 4], 'loss': [0.5, 0.4]}
    """
    return {name: [row[name] for row in rows] for name in rows[0]}
