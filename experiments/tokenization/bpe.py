"""Byte-pair encoding through Hugging Face `tokenizers`, over arbitrary symbols instead of text.

Symbols are mapped to private-use characters; there is no normaliser, no pre-tokeniser and no special token. The trainer
is quadratic in the length of one string, so training text is cut into chunks of 512 symbols: pairs across a cut are not
counted, one in 512. Encoding is not chunked.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer as Engine
from tokenizers import models, trainers

from experiments.tokenization.tokenizer import Ids, Tokenizer, training_data

CHUNK = 512
_SHORT_CODES, _LONG_CODES = 0xE000, 0xF0000  # private-use areas with 6,400 and 65,534 characters
_LARGEST_ALPHABET = 65_534


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
        base = _base(len(symbols))
        strings = sorted(engine.get_vocab().items(), key=lambda entry: entry[1])
        super().__init__(tuple(symbols[ord(character) - base] for character in string) for string, _ in strings)
        self._engine = engine
        self._codes = np.zeros(symbols[-1] + 1, dtype="<u4")
        self._codes[list(symbols)] = base + np.arange(len(symbols), dtype=np.uint32)

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
        if len(symbols) > _LARGEST_ALPHABET:
            raise ValueError(f"alphabet: got {len(symbols)} symbols; expected at most {_LARGEST_ALPHABET}")
        base = _base(len(symbols))
        engine = Engine(models.BPE())
        letters = [chr(base + i) for i in range(len(symbols))]
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, special_tokens=[], show_progress=False)
        engine.train_from_iterator(_chunks(data, np.array(symbols), base), trainer)
        if engine.get_vocab_size() != size:
            raise ValueError(
                f"size: got {size}, but the training text gives only {engine.get_vocab_size()} tokens; "
                "expected a smaller dictionary or a longer text"
            )
        return cls(engine, symbols)

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self._encode_batch([sequence])[0]

    def _encode_batch(self, sequences: list[NDArray[np.int64]]) -> list[Ids]:
        texts = [_text(self._codes[sequence]) for sequence in sequences]
        return [np.array(found.ids, dtype=np.int32) for found in self._engine.encode_batch_fast(texts)]


def _base(symbols: int) -> int:
    return _SHORT_CODES if symbols <= 6400 else _LONG_CODES


def _chunks(data: list[NDArray[np.int64]], symbols: NDArray[np.int64], base: int) -> Iterator[str]:
    for sequence in data:
        text = _text(base + np.searchsorted(symbols, sequence))
        yield from (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))


def _text(codes: NDArray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le")
