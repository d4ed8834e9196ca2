"""Rows of a binary Markov source, the tokenizer of characters or of BPE, and n-grams over its tokens, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from experiments.sources.source import Source
from experiments.tokenization.bpe import BPETokenizer
from experiments.tokenization.characters import CharacterTokenizer
from experiments.tokenization.losses import held_out_loss
from experiments.tokenization.tokenizer import Tokenizer
from experiments.training.update import random_stream


def draw_rows(source: Source, seed: int, counts: Mapping[str, int], length: int) -> dict[str, NDArray[np.int32]]:
    """Rows of each part, from random numbers of its own.

    Args:
        source: the law of the text.
        seed: of all parts.
        counts: part -> rows.
        length: symbols of a row.

    Returns:
        part -> (rows, length).

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> rows = draw_rows(SwitchingSource(2, 0.8, 0.8), 0, {"training": 3, "evaluation": 2}, 8)
        >>> rows["training"].shape, rows["evaluation"].shape
        ((3, 8), (2, 8))
    """
    return {
        part: np.asarray(source.sample(random_stream(seed, part), (count, length))) for part, count in counts.items()
    }


def binary_tokenizer(rows: NDArray[np.int32], characters: int, size: int) -> Tokenizer:
    """Characters for two tokens, else BPE on one text that is not cut.

    Args:
        rows: of 0 and 1, joined to one text.
        characters: at its beginning that BPE is trained on.
        size: dictionary size d.

    Returns:
        The tokenizer.

    Example:
        >>> binary_tokenizer(np.array([[0, 1, 0], [1, 0, 1]]), 6, 3).vocabulary
        ((0,), (1,), (0, 1))
    """
    text = rows.reshape(1, -1)[:, :characters]
    if size == 2:
        return CharacterTokenizer.train(text, alphabet=2)
    return BPETokenizer.train_whole(text, size, alphabet=2)


def n_gram_loss(tokenizer: Tokenizer, rows: NDArray[np.int32], order: int) -> float:
    """Loss of an n-gram over tokens, each row tokenized by itself: fitted on the first half, scored on the second.

    Args:
        tokenizer: of all rows.
        rows: an even number of them.
        order: n.

    Returns:
        Nats per source symbol, with Laplace's rule.

    Example:
        >>> round(n_gram_loss(CharacterTokenizer([(0,), (1,)]), np.array([[0, 1], [0, 1]]), 1), 4)
        0.6931
    """
    tokens, count = tokenizer.encode_batch(rows), len(rows) // 2
    symbols = rows[count:].size
    return held_out_loss(tokens[:count], tokens[count:], size=len(tokenizer), order=order, alpha=1.0, symbols=symbols)
