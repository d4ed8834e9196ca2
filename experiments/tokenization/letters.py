"""Symbols as private-use characters, which is how the engine of Hugging Face `tokenizers` gets to see them.

Its trainers are quadratic or worse in the length of one string, so training text is cut into chunks of 512 symbols.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK = 512
_SHORT_CODES, _LONG_CODES = 0xE000, 0xF0000  # private-use areas with 6,400 and 65,534 characters
_LARGEST_ALPHABET = 65_534


def first_letter(alphabet: int) -> int:
    """Code point of the first of A letters.

    Args:
        alphabet: A.

    Returns:
        The code point; the others follow it.

    Raises:
        ValueError: if there are more than 65,534 symbols.

    Example:
        >>> hex(first_letter(2))
        '0xe000'
    """
    if alphabet > _LARGEST_ALPHABET:
        raise ValueError(f"alphabet: got {alphabet} symbols; expected at most {_LARGEST_ALPHABET}")
    return _SHORT_CODES if alphabet <= 6400 else _LONG_CODES


def letters(alphabet: int) -> list[str]:
    """The A letters.

    Args:
        alphabet: A.

    Returns:
        Characters in the order of the symbols.

    Raises:
        ValueError: as `first_letter`.
    """
    return [chr(first_letter(alphabet) + i) for i in range(alphabet)]


def letter_codes(symbols: Sequence[int]) -> NDArray[np.uint32]:
    """Code point of each symbol.

    Args:
        symbols: the alphabet, sorted.

    Returns:
        (largest symbol + 1,); 0 for numbers that are no symbol.

    Raises:
        ValueError: as `first_letter`.
    """
    codes = np.zeros(symbols[-1] + 1, dtype="<u4")
    codes[list(symbols)] = first_letter(len(symbols)) + np.arange(len(symbols), dtype=np.uint32)
    return codes


def as_text(codes: NDArray[np.uint32]) -> str:
    """The string with these code points.

    Args:
        codes: (n,).

    Returns:
        n characters.
    """
    return codes.astype("<u4").tobytes().decode("utf-32-le")


def as_symbols(text: str, symbols: Sequence[int]) -> tuple[int, ...]:
    """The symbols that a string of letters stands for.

    Args:
        text: letters.
        symbols: the alphabet, sorted.

    Returns:
        One symbol per letter.

    Example:
        >>> as_symbols(letters(3)[2] + letters(3)[0], (4, 5, 9))
        (9, 4)
    """
    base = first_letter(len(symbols))
    return tuple(symbols[ord(letter) - base] for letter in text)


def chunks(data: Sequence[NDArray[np.int64]], symbols: Sequence[int]) -> Iterator[str]:
    """Training text for the engine, in chunks of 512 letters.

    Args:
        data: sequences over the alphabet.
        symbols: the alphabet, sorted.

    Returns:
        Strings.
    """
    codes = letter_codes(symbols)
    for sequence in data:
        text = as_text(codes[sequence])
        yield from (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))
