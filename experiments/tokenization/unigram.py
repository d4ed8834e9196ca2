"""The unigram tokenizer (Kudo, arXiv 1804.10959): Hugging Face's trainer, Viterbi encoding with its probabilities.

The trainer starts from frequent substrings of at most 16 symbols, fits their probabilities by EM, and prunes the least
useful until `size` remain. On few symbols it is slow: seconds for 100,000 symbols, whatever the dictionary size. After
its last pruning it drops tokens that became too rare; where fewer than `size` are left, it is asked for up to twice as
many and the most likely are kept. Two trainings on one text agree up to rounding, so a tie may be broken differently.
"""

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer as Engine
from tokenizers import models, trainers

from experiments.tokenization.lattice import ViterbiTokenizer
from experiments.tokenization.letters import CHUNK, as_symbols, chunks, letters
from experiments.tokenization.tokenizer import too_few_tokens, training_data


class UnigramTokenizer(ViterbiTokenizer):
    """Dictionary with probabilities; the encoding is the most likely one.

    Example:
        >>> tokenizer = UnigramTokenizer.train([[0, 1, 1] * 30], size=4)
        >>> len(tokenizer), tokenizer.decode(tokenizer.encode([0, 1, 1, 0])).tolist()
        (4, [0, 1, 1, 0])
    """

    @classmethod
    def train(
        cls, sequences: Iterable[ArrayLike], size: int, *, alphabet: int | None = None, longest: int = 16
    ) -> "UnigramTokenizer":
        """Learn exactly `size` tokens, the single symbols included.

        Args:
            sequences: 1-D integer arrays, or the rows of a 2-D array; cut into chunks of 512 symbols for training.
            size: dictionary size d.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in training.
            longest: most symbols of a token, 2 or more.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if `size` is smaller than the alphabet, a symbol is outside the alphabet, the alphabet has more
                than 65,534 symbols, the text gives fewer than `size` tokens, or `longest` is
                below 2.
        """
        if longest < 2:
            raise ValueError(f"longest: got {longest}; expected 2 or more")
        data, symbols = training_data(sequences, size, alphabet)
        if size == len(symbols):
            return cls(*_single_symbols(data, symbols))
        pieces: list[tuple[str, float]] = []
        room = len(symbols) + min(longest, CHUNK) * sum(map(len, data))  # substrings that there can be
        for wanted in (size, size + size // 8 + 1, 2 * size):
            if len(pieces) < size:
                pieces = _trained(list(chunks(data, symbols)), min(wanted, room), letters(len(symbols)), longest)
        if len(pieces) < size:
            raise too_few_tokens(size, len(pieces))
        # Single symbols first, so that they survive the cut; then the others from the most likely down.
        kept = sorted(pieces, key=lambda piece: (len(piece[0]) > 1, -piece[1]))[:size]
        return cls([as_symbols(piece, symbols) for piece, _ in kept], [score for _, score in kept])


def _trained(texts: list[str], size: int, alphabet: list[str], longest: int) -> list[tuple[str, float]]:
    """Pieces and their log probabilities."""
    engine = Engine(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        max_piece_length=longest,
        special_tokens=[],
        unk_token=None,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return [(piece, score) for piece, score in json.loads(engine.to_str())["model"]["vocab"]]


def _single_symbols(
    data: list[NDArray[np.int64]], symbols: tuple[int, ...]
) -> tuple[list[tuple[int]], NDArray[np.float64]]:
    """The dictionary without longer tokens, where the trainer may never end; probabilities by the rule of Laplace."""
    counts = sum(
        (np.bincount(np.searchsorted(symbols, s), minlength=len(symbols)) for s in data), np.zeros(len(symbols))
    )
    return [(symbol,) for symbol in symbols], np.log((counts + 1) / (counts + 1).sum())
