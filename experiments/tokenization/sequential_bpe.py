"""Sequential BPE (algorithm 1 of arXiv 2404.08335): at most one new token per text, and an encoder in two regimes."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.bpe import BPETokenizer
from experiments.tokenization.greedy import GreedyTokenizer
from experiments.tokenization.merges import Merge, apply_merge, most_frequent_pair
from experiments.tokenization.split import SplitTokenizer
from experiments.tokenization.tokenizer import Ids, Tokenizer, training_data


class SequentialBPETokenizer(Tokenizer):
    """Merges learned one text at a time, with the greedy encoder for a large dictionary and BPE.split for a small one.

    With d_0 = epsilon d / (2 log(4 A)) the dictionary is small if it has fewer than d_0 tokens; BPE.split then cuts
    chunks of d symbols.

    Args:
        alphabet: the A symbols, sorted.
        merges: learned rules, as `BPETokenizer.from_merges`.
        size: d, the number of tokens or more.
        epsilon: in (0, 1).

    Raises:
        ValueError: if `epsilon` is not in (0, 1) or d is too small, or as `BPETokenizer.from_merges`.
    """

    def __init__(self, alphabet: Sequence[int], merges: Sequence[Merge], size: int, epsilon: float) -> None:
        """Choose the encoder."""
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon: got {epsilon}; expected a number in (0, 1)")
        bpe = BPETokenizer.from_merges(alphabet, merges)
        super().__init__(bpe.vocabulary)
        if not isinstance(size, int | np.integer) or size < len(self):
            raise ValueError(f"size: got {size}; expected an integer, {len(self)} or more, the number of tokens")
        self.merges = bpe.merges
        self.threshold = epsilon * size / (2 * math.log(4 * len(alphabet)))
        self.encoder: Tokenizer = (
            SplitTokenizer(bpe, size) if len(bpe) < self.threshold else GreedyTokenizer(bpe.vocabulary)
        )

    @classmethod
    def train(
        cls,
        sequences: Iterable[ArrayLike],
        size: int,
        *,
        epsilon: float,
        alphabet: int | None = None,
        overlapping: bool = False,
    ) -> "SequentialBPETokenizer":
        """Learn at most `size` tokens, the single symbols included.

        The i-th of d texts is encoded by the rules so far; if its most frequent pair occurs at least log d times, the
        pair becomes a rule. The theorem wants texts of order d symbols, so of order d**2 in all.

        Args:
            sequences: d texts; or a single one, which is cut into d texts of equal length.
            size: d.
            epsilon: in (0, 1); only the encoder depends on it.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in training.
            overlapping: whether 000 counts the pair 00 twice; else as often as it can be merged.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if there are neither one nor d texts, a single one is shorter than d, `size` is smaller than
                the alphabet, a symbol is outside it, or `epsilon` is not in (0, 1).

        Example:
            >>> tokenizer = SequentialBPETokenizer.train([[0, 1] * 100], size=10, epsilon=0.5)
            >>> tokenizer.vocabulary
            ((0,), (1,), (0, 1), (0, 1, 0, 1))
        """
        data, symbols = training_data(sequences, size, alphabet)
        texts = _texts([np.searchsorted(symbols, sequence) for sequence in data], size)
        merges = learn_sequentially(texts, len(symbols), size, overlapping=overlapping)
        return cls(symbols, merges, size, epsilon)

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self.encoder.encode(sequence)

    def _encode_batch(self, sequences: list[NDArray[np.int64]]) -> list[Ids]:
        return self.encoder.encode_batch(sequences)


def learn_sequentially(
    texts: Sequence[NDArray[np.int64]], alphabet: int, size: int, *, overlapping: bool = False
) -> list[Merge]:
    """The rules of algorithm 1.

    Args:
        texts: 1-D over 0..A-1, in order.
        alphabet: A; the i-th rule makes the token A + i.
        size: d, the largest number of tokens; a pair needs log d occurrences.
        overlapping: whether 000 counts the pair 00 twice.

    Returns:
        At most one rule per text.

    Example:
        >>> learn_sequentially([np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0, 1, 1])], alphabet=2, size=5)
        [(0, 1), (2, 1)]
    """
    merges: list[Merge] = []
    for text in texts:
        if alphabet + len(merges) >= size:
            break
        for token, merge in enumerate(merges, start=alphabet):
            text = apply_merge(text, merge, token)
        pair, count = most_frequent_pair(text, overlapping=overlapping)
        if count and count >= math.log(size):
            merges.append(pair)
    return merges


def _texts(data: list[NDArray[np.int64]], size: int) -> list[NDArray[np.int64]]:
    if len(data) == 1 and len(data[0]) >= size:
        length = len(data[0]) // size
        return list(data[0][: size * length].reshape(size, length))
    if len(data) != size:
        given = f"one text of {len(data[0])} symbols" if len(data) == 1 else f"{len(data)} texts"
        raise ValueError(f"sequences: got {given}; expected {size} texts, or one of at least {size} symbols")
    return data
