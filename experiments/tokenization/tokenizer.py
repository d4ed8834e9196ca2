"""The interface of every tokenizer: sequences of symbols to token ids and back, without loss.

A sequence is a 1-D array of non-negative integers (symbols). The alphabet is fixed at training time: the symbols
0..alphabet-1 when `alphabet` is given, else the symbols seen in training. A symbol outside it cannot be encoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int32]
Token = tuple[int, ...]

LARGEST_SYMBOL = 2**24 - 1
"""Tables over the alphabet have an entry for every number up to the largest symbol."""


class Tokenizer(ABC):
    """Dictionary, encoder and decoder with decode(encode(s)) == s for every sequence over the alphabet.

    Args:
        vocabulary: the symbols of each token; the position is the id. None empty; all distinct unless `distinct` is
            false for the class, as for one that tells the beginning of a word from its continuation.

    Raises:
        ValueError: if the vocabulary is empty, repeats a token or contains an empty one, or one of its symbols is no
            integer in 0..LARGEST_SYMBOL.
    """

    distinct: bool = True

    def __init__(self, vocabulary: Iterable[Sequence[int]]) -> None:
        """Check the vocabulary."""
        self.vocabulary: tuple[Token, ...] = tuple(map(_token, vocabulary))
        if not self.vocabulary or not all(self.vocabulary):
            raise ValueError("vocabulary: got an empty token or none at all; expected at least one, none empty")
        seen = set(chain.from_iterable(self.vocabulary))
        _check_range("vocabulary", min(seen), max(seen))
        if self.distinct and len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("vocabulary: got a token twice; expected distinct tokens")

    def __len__(self) -> int:
        """Dictionary size."""
        return len(self.vocabulary)

    @cached_property
    def alphabet(self) -> tuple[int, ...]:
        """The symbols that can be encoded, sorted."""
        return tuple(sorted({token[0] for token in self.vocabulary if len(token) == 1}))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of symbols of each token, (len(self),)."""
        return np.array([len(token) for token in self.vocabulary])

    def encode(self, sequence: ArrayLike) -> Ids:
        """Token ids of one sequence.

        Args:
            sequence: 1-D integers, possibly empty.

        Returns:
            ids, 1-D int32.

        Raises:
            ValueError: if the sequence is not 1-D integers, or contains a symbol outside the alphabet.
        """
        return self._encode(self._checked(sequence))

    def encode_batch(self, sequences: Iterable[ArrayLike]) -> list[Ids]:
        """Token ids of each sequence; tokens never cross from one sequence into the next.

        Args:
            sequences: 1-D integer arrays, or the rows of a 2-D array.

        Returns:
            One 1-D int32 array per sequence.

        Raises:
            ValueError: as `encode`.
        """
        return self._encode_batch([self._checked(sequence) for sequence in sequences])

    def decode(self, ids: ArrayLike) -> NDArray[np.int32]:
        """The symbols of a sequence of tokens.

        Args:
            ids: 1-D integers.

        Returns:
            symbols, 1-D int32.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        tokens = as_sequence(ids, "ids")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self):
            raise ValueError(f"ids: got {tokens.min()}..{tokens.max()}; expected ids in 0..{len(self) - 1}")
        return np.array(list(chain.from_iterable(self.vocabulary[i] for i in tokens.tolist())), dtype=np.int32)

    @abstractmethod
    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        """Token ids of a sequence known to lie in the alphabet."""

    def _encode_batch(self, sequences: list[NDArray[np.int64]]) -> list[Ids]:
        return [self._encode(sequence) for sequence in sequences]

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        known = np.zeros(max(self.alphabet, default=-1) + 1, dtype=bool)
        known[list(self.alphabet)] = True
        return known

    def _checked(self, sequence: ArrayLike) -> NDArray[np.int64]:
        symbols = as_sequence(sequence, "sequence")
        inside = (symbols >= 0) & (symbols < len(self._known))
        wrong = symbols[~inside] if not inside.all() else symbols[~self._known[symbols]]
        if wrong.size:
            raise ValueError(
                f"sequence: got the symbol {wrong[0]}; expected one of the {len(self.alphabet)} symbols "
                f"of the alphabet {_shown(self.alphabet)}"
            )
        return symbols


def as_sequence(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """A 1-D int64 array of what the caller gave.

    Args:
        values: 1-D integers; an empty list counts as such.
        name: argument name for the message.

    Returns:
        The array.

    Raises:
        ValueError: if it is not 1-D, or not of integers.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {array.shape}; expected one axis")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name}: got dtype {array.dtype}; expected integers")
    return array.astype(np.int64)


def training_data(
    sequences: Iterable[ArrayLike], size: int | None, alphabet: int | None
) -> tuple[list[NDArray[np.int64]], tuple[int, ...]]:
    """Checked training sequences and the alphabet that follows from them.

    Args:
        sequences: 1-D integer arrays, or the rows of a 2-D array; a single flat sequence counts as one.
        size: wanted number of tokens, None where there is no choice.
        alphabet: number of symbols, None for those seen in the sequences.

    Returns:
        The sequences, and the sorted symbols.

    Raises:
        ValueError: if a symbol is outside 0..LARGEST_SYMBOL or outside the alphabet, nothing was seen and no alphabet
            given, or the dictionary cannot even hold the single symbols.
    """
    if size is not None and not isinstance(size, int | np.integer):
        raise ValueError(f"size: got {size!r}; expected an integer")
    if alphabet is not None and not (isinstance(alphabet, int | np.integer) and 1 <= alphabet <= LARGEST_SYMBOL + 1):
        raise ValueError(f"alphabet: got {alphabet!r}; expected an integer from 1 to {LARGEST_SYMBOL + 1}")
    items: list[ArrayLike] = list(sequences)
    if items and all(np.ndim(item) == 0 for item in items):
        items = [np.array(items)]
    data = [as_sequence(item, "sequences") for item in items]
    seen = np.unique(np.concatenate([np.unique(sequence) for sequence in data])) if data else np.zeros(0, np.int64)
    if seen.size:
        _check_range("sequences", seen[0], seen[-1], LARGEST_SYMBOL if alphabet is None else alphabet - 1)
    symbols = tuple(seen.tolist()) if alphabet is None else tuple(range(alphabet))
    if not symbols:
        raise ValueError("sequences: got no symbol at all; expected at least one, or the argument `alphabet`")
    if size is not None and size < len(symbols):
        raise ValueError(f"size: got {size}; expected at least {len(symbols)}, the number of single symbols")
    return data, symbols


def too_few_tokens(size: int, found: int) -> ValueError:
    """The refusal of a dictionary size that the training text cannot fill.

    Args:
        size: what was asked for.
        found: how many tokens there are.

    Returns:
        The error to raise.
    """
    return ValueError(
        f"size: got {size}, but the training text gives only {found} tokens; "
        "expected a smaller dictionary or a longer text"
    )


def _token(symbols: Sequence[int]) -> Token:
    try:
        return tuple(map(index, symbols))
    except TypeError:
        raise ValueError(f"vocabulary: got the token {symbols!r}; expected a sequence of integers") from None


def _check_range(name: str, least: int, largest: int, limit: int = LARGEST_SYMBOL) -> None:
    if least < 0 or largest > limit:
        raise ValueError(f"{name}: got symbols {least}..{largest}; expected symbols in 0..{limit}")


def _shown(symbols: tuple[int, ...]) -> str:
    if len(symbols) <= 8:
        return "{" + ", ".join(map(str, symbols)) + "}"
    return f"{{{symbols[0]}, ..., {symbols[-1]}}}"
