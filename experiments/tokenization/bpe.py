"""Byte-pair encoding through Hugging Face `tokenizers`, over arbitrary symbols instead of text.

There is no normaliser, no pre-tokeniser and no special token. The engine's trainer is quadratic in the length of one
string, so its training text is cut into chunks of 512 symbols: pairs across a cut are not counted, one in 512.
`train_whole` cuts nothing and counts them all. Encoding is not chunked.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer as Engine
from tokenizers import models, trainers

from experiments.tokenization.letters import as_symbols, as_text, chunks, letter_codes, letters
from experiments.tokenization.merges import Merge, learn_merges
from experiments.tokenization.tokenizer import Ids, Tokenizer, too_few_tokens, training_data


class BPETokenizer(Tokenizer):
    """Merges the most frequent adjacent pair until the dictionary is full; encodes by the merges in learned order.

    Args:
        engine: trained Hugging Face tokenizer over private-use characters.
        symbols: the alphabet, sorted; its i-th symbol is the i-th private-use character.

    Example:
        >>> tokenizer = BPETokenizer.train([[0, 1, 0, 1, 0, 1, 1]], size=3)
        >>> tokenizer.vocabulary, tokenizer.encode([0, 1, 1]).tolist()
        (((0,), (1,), (0, 1)), [2, 1])
    """

    def __init__(self, engine: Engine, symbols: tuple[int, ...]) -> None:
        """Read the vocabulary off the engine."""
        strings = sorted(engine.get_vocab().items(), key=lambda entry: entry[1])
        super().__init__(as_symbols(string, symbols) for string, _ in strings)
        self._engine = engine
        self._codes = letter_codes(symbols)

    @classmethod
    def train(cls, sequences: Iterable[ArrayLike], size: int, *, alphabet: int | None = None) -> "BPETokenizer":
        """Learn exactly `size` tokens, the single symbols included.

        Pairs are counted with overlaps (000 counts the pair 00 twice); ties go to the pair with the smallest ids. The
        merges do not depend on `size`: a smaller dictionary is the beginning of a larger one.

        Args:
            sequences: 1-D integer arrays, or the rows of a 2-D array.
            size: dictionary size d.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in training.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if `size` is smaller than the alphabet, a symbol is outside the alphabet, the alphabet has more
                than 65,534 symbols, or the text has too few pairs for `size` tokens.
        """
        data, symbols = training_data(sequences, size, alphabet)
        engine = Engine(models.BPE())
        # Every merge shortens the text. The engine panics when it reserves room for far more tokens than there can be.
        room = min(size, len(symbols) + sum(map(len, data)))
        trainer = trainers.BpeTrainer(
            vocab_size=room, initial_alphabet=letters(len(symbols)), special_tokens=[], show_progress=False
        )
        engine.train_from_iterator(chunks(data, symbols), trainer)
        if engine.get_vocab_size() != size:
            raise too_few_tokens(size, engine.get_vocab_size())
        return cls(engine, symbols)

    @classmethod
    def train_whole(
        cls, sequences: Iterable[ArrayLike], size: int, *, alphabet: int | None = None, overlapping: bool = True
    ) -> "BPETokenizer":
        """Learn exactly `size` tokens from sequences that are never cut.

        Args:
            sequences: 1-D integer arrays of any length, or the rows of a 2-D array; pairs do not cross sequences.
            size: dictionary size d.
            alphabet: number of symbols, for the alphabet 0..alphabet-1; None takes the symbols seen in training.
            overlapping: whether 000 counts the pair 00 twice, as in `train`; else as often as it can be merged.

        Returns:
            The tokenizer.

        Raises:
            ValueError: as `train`.

        Example:
            >>> BPETokenizer.train_whole([[0, 0, 0, 0, 1, 0, 1, 0, 1]], size=3, overlapping=False).merges
            ((0, 1),)
        """
        data, symbols = training_data(sequences, size, alphabet)
        indexed = [np.searchsorted(symbols, sequence) for sequence in data]
        merges = learn_merges(indexed, len(symbols), size, overlapping=overlapping)
        if len(symbols) + len(merges) != size:
            raise too_few_tokens(size, len(symbols) + len(merges))
        return cls.from_merges(symbols, merges)

    @classmethod
    def from_merges(cls, alphabet: Sequence[int], merges: Sequence[Merge]) -> "BPETokenizer":
        """The dictionary and the encoder of given rules.

        Args:
            alphabet: the A symbols, sorted; they get the ids 0..A-1.
            merges: the i-th rule joins a left and a right token, both with ids below A + i, to the token A + i.

        Returns:
            The tokenizer.

        Raises:
            ValueError: if a rule uses a token that does not exist yet, or makes a string that exists already, or the
                alphabet is not sorted, distinct and of at most 65,534 symbols.

        Example:
            >>> tokenizer = BPETokenizer.from_merges((0, 1), [(0, 1), (2, 2)])
            >>> tokenizer.vocabulary[2:], tokenizer.encode([0, 1, 0, 1, 0]).tolist()
            (((0, 1), (0, 1, 0, 1)), [3, 0])
        """
        symbols = tuple(alphabet)
        if not symbols or symbols[0] < 0 or symbols != tuple(sorted(set(symbols))):
            raise ValueError(f"alphabet: got {symbols}; expected sorted, distinct symbols, none negative")
        strings = letters(len(symbols))
        for i, pair in enumerate(merges):
            if not 0 <= min(pair) <= max(pair) < len(strings):
                raise ValueError(f"merges: got {tuple(pair)} as rule {i}; expected ids in 0..{len(strings) - 1}")
            strings.append(strings[pair[0]] + strings[pair[1]])
        if len(set(strings)) != len(strings):
            raise ValueError("merges: got two rules that make the same string; expected distinct tokens")
        ranks = {string: i for i, string in enumerate(strings)}
        pairs = [(strings[left], strings[right]) for left, right in merges]
        return cls(Engine(models.BPE(vocab=ranks, merges=pairs)), symbols)

    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        """The learned rules in order, as pairs of ids."""
        ids = self._engine.get_vocab()
        pairs = json.loads(self._engine.to_str())["model"]["merges"]
        return tuple((ids[left], ids[right]) for left, right in pairs)

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self._encode_batch([sequence])[0]

    def _encode_batch(self, sequences: list[NDArray[np.int64]]) -> list[Ids]:
        texts = [as_text(self._codes[sequence]) for sequence in sequences]
        return [np.array(found.ids, dtype=np.int32) for found in self._engine.encode_batch_fast(texts)]
