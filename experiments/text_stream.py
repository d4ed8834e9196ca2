"""Tokens from text, and text from tokens that come one by one.

Importing this module imports no tokenizer.
"""

from __future__ import annotations

import codecs
from typing import Any, Protocol

from experiments.errors import UserError

_LONGEST_CHARACTER = 16  # tokens; a character has four bytes at most


class Decoder(Protocol):
    """Makes text of tokens that come one by one, each piece as soon as it is certain."""

    def push(self, token: int) -> str:
        """The text that is certain with one more token, often of that token alone; "" if there is none yet."""

    def finish(self) -> str:
        """What is left at the end."""


class ByteDecoder:
    """UTF-8, with the replacement character for what is none; ids from 256 on have no text.

    Example:
        >>> decoder = ByteDecoder()
        >>> [decoder.push(token) for token in "né".encode()], decoder.finish()
        (['n', '', 'é'], '')
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """See `Decoder`."""
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def finish(self) -> str:
        """See `Decoder`."""
        return self._decoder.decode(b"", final=True)


class TokenizerDecoder:
    """A Hugging Face tokenizer's text. Tokens that are part of no character for long are given up as they are."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._restart()

    def push(self, token: int) -> str:
        """See `Decoder`."""
        self._waiting.append(token)
        piece = self._stream.step(self._tokenizer, token)
        if piece is None:
            return self.finish() if len(self._waiting) == _LONGEST_CHARACTER else ""
        self._waiting.clear()
        return piece

    def finish(self) -> str:
        """See `Decoder`."""
        rest = self._tokenizer.decode(self._waiting, skip_special_tokens=False)
        self._restart()
        return rest

    def _restart(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(skip_special_tokens=False)
        self._waiting: list[int] = []


class Vocabulary:
    """What the tokens of a model are.

    Attributes:
        vocab_size: number of tokens.
        tokenizer: JSON of a Hugging Face tokenizer (`tokenizers.Tokenizer.to_str`); None reads bytes.
    """

    vocab_size: int
    tokenizer: str | None

    def encode(self, text: str) -> list[int]:
        """Text as tokens: its UTF-8 bytes, or what the tokenizer makes of it.

        Args:
            text: any; lone surrogates, as Python reads them for bytes that are no UTF-8, are these bytes again.

        Returns:
            Token ids.

        Raises:
            UserError: the model does not have one of the tokens.
        """
        data = text.encode("utf-8", "surrogateescape")
        if self.tokenizer is None:
            ids = list(data)
        else:
            ids = _tokenizer(self.tokenizer).encode(data.decode("utf-8", "replace")).ids
        if wrong := [token for token in ids if token >= self.vocab_size]:
            raise UserError(f"the text has the token {wrong[0]}, and the model only those below {self.vocab_size}")
        return ids

    def decoder(self) -> Decoder:
        """What makes text of tokens that come one by one."""
        return ByteDecoder() if self.tokenizer is None else TokenizerDecoder(_tokenizer(self.tokenizer))


def _tokenizer(text: str) -> Any:
    """The tokenizer that the JSON describes."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # it raises nothing narrower
        raise UserError(f"the model's tokenizer is damaged: {error}") from None
