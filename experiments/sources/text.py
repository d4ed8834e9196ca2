"""Text that needs no download: the standard library's documentation topics and its sources; and folders of text files.

A corpus is a tuple of documents with a content hash. Its text depends on the Python version, so the hash is recorded
with every result. Held-out parts consist of whole documents.
"""

import hashlib
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.errors import UserError

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_TEXT_SUFFIXES = {".txt", ".raw", ".tokens"}
_DOCUMENT = 10_000  # characters after which the text of a folder is cut, at a line end, so that a split has pieces


@dataclass(frozen=True)
class Corpus:
    """Documents of plain text.

    Args:
        name: what the documents are.
        documents: their text.

    Raises:
        ValueError: if there is no text.

    Example:
        >>> corpus = Corpus("two lines", ("abba", "cab"))
        >>> corpus.alphabet, [sequence.tolist() for sequence in corpus.characters()]
        ('abc', [[0, 1, 1, 0], [2, 0, 1]])
    """

    name: str
    documents: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse an empty corpus."""
        if not any(self.documents):
            raise ValueError(f"documents: got no text for {self.name!r}; expected at least one character")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the documents in order, each preceded by its length in bytes."""
        digest = hashlib.sha256()
        for document in self.documents:
            data = document.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    @cached_property
    def alphabet(self) -> str:
        """The distinct characters, sorted."""
        return "".join(sorted(set().union(*self.documents)))

    @property
    def size(self) -> int:
        """Number of characters."""
        return sum(map(len, self.documents))

    def bytes(self) -> list[NDArray[np.uint8]]:
        """One array of UTF-8 bytes per document."""
        return [np.frombuffer(document.encode(), dtype=np.uint8) for document in self.documents]

    def characters(self, alphabet: str | None = None) -> list[NDArray[np.int32]]:
        """One array of positions in `alphabet` per document.

        Args:
            alphabet: sorted distinct characters; None takes the corpus's own.

        Returns:
            The arrays.

        Raises:
            ValueError: if a document contains a character that is not in the alphabet.
        """
        return [encode_characters(document, alphabet or self.alphabet) for document in self.documents]

    def restricted_to(self, alphabet: str) -> "Corpus":
        """The same documents without the characters outside `alphabet`.

        Args:
            alphabet: the characters to keep.

        Returns:
            The reduced corpus.
        """
        foreign = dict.fromkeys(map(ord, set(self.alphabet) - set(alphabet)))
        return Corpus(self.name, tuple(document.translate(foreign) for document in self.documents))

    def head(self, characters: int) -> "Corpus":
        """The first documents, as many as do not exceed a number of characters together, and at least one.

        Args:
            characters: the limit.

        Returns:
            The shorter corpus.
        """
        count = int(np.searchsorted(np.cumsum([len(text) for text in self.documents]), characters, side="right"))
        return Corpus(self.name, self.documents[: max(count, 1)])

    def split(self, fold: int, folds: int = 5) -> tuple["Corpus", "Corpus"]:
        """Hold out one of several disjoint parts, by document.

        From the longest document to the shortest, each goes to the part that is smallest so far. So every document is
        in exactly one part (empty ones in none), and the sizes of two parts differ by at most the longest document.
        Copies of one document count as one: no text is in the training part and in the held-out part.

        Args:
            fold: which part is held out, 0 .. folds - 1.
            folds: number of parts, at least 2.

        Returns:
            (training part, held-out part), each in the original order.

        Raises:
            ValueError: if there is no such part, or there are fewer different documents than parts.

        Example:
            >>> train, test = Corpus("letters", tuple("abcdefghij")).split(fold=1)
            >>> len(train.documents), test.documents
            (8, ('b', 'g'))
        """
        if folds < 2:
            raise ValueError(f"folds: got {folds}; expected 2 or more")
        if not 0 <= fold < folds:
            raise ValueError(f"fold: got {fold}; expected 0..{folds - 1}")
        part = self._parts(folds)
        if len(part) < folds:
            raise ValueError(
                f"documents: got {len(part)} different ones in {self.name!r}; expected at least one for each of "
                f"{folds} folds"
            )
        train = tuple(text for text in self.documents if part.get(text) not in (fold, None))
        test = tuple(text for text in self.documents if part.get(text) == fold)
        return Corpus(f"{self.name}, training part", train), Corpus(f"{self.name}, held-out part", test)

    def _parts(self, count: int) -> dict[str, int]:
        """Document -> number of its part, for documents that are not empty."""
        lengths = {text: len(text) * copies for text, copies in Counter(self.documents).items() if text}
        part, sizes = {}, [0] * count
        for text in sorted(lengths, key=lambda text: (-lengths[text], text)):
            part[text] = sizes.index(min(sizes))
            sizes[part[text]] += lengths[text]
        return part


def encode_characters(text: str, alphabet: str) -> NDArray[np.int32]:
    """Characters as positions in a sorted alphabet.

    Args:
        text: any text.
        alphabet: distinct characters in increasing order.

    Returns:
        (len(text),) int32.

    Raises:
        ValueError: if a character is not in the alphabet.

    Example:
        >>> encode_characters("cab", "abc").tolist()
        [2, 0, 1]
    """
    known = np.frombuffer(alphabet.encode("utf-32-le"), dtype=np.uint32)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    index = np.minimum(np.searchsorted(known, points), max(len(known) - 1, 0))
    wrong = np.flatnonzero(known[index] != points) if len(known) else np.arange(len(points))
    if len(wrong):
        raise ValueError(f"text: got the character {text[wrong[0]]!r}; expected one of the {len(known)} known ones")
    return index.astype(np.int32)


def documentation() -> Corpus:
    """The documentation topics that ship with Python (what `help("LAMBDA")` prints), about 0.45 million characters.

    Returns:
        One document per topic, sorted by name.

    Example:
        >>> documentation().size > 300_000
        True
    """
    from pydoc_data.topics import topics

    return Corpus("Python documentation topics", tuple(topics[name] for name in sorted(topics)))


def standard_library() -> Corpus:
    """The sources of Python's standard library without its tests, about 12 million characters.

    Returns:
        One document per .py file, sorted by path. Files that the installation generates are left out.

    Raises:
        UserError: if this Python was installed without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if _is_library(path.relative_to(root))]
    documents = tuple(filter(None, (path.read_text("utf-8", "replace") for path in files)))
    if not documents:
        raise UserError("this Python has no standard library sources; the embedded alternative is `documentation`")
    return Corpus("Python standard library sources", documents)


def read_folder(folder: str | Path) -> Corpus:
    """Plain text files (.txt, .raw, .tokens, UTF-8) of a folder and its subfolders, in order of their paths.

    Texts are cut at the first line end after 10,000 characters; each piece is a document.

    Args:
        folder: where the files lie, for example the unpacked `wikitext-103-raw`.

    Returns:
        The corpus.

    Raises:
        UserError: if the folder is absent, or holds no text; the line names the embedded alternative.
    """
    root = Path(folder)
    alternative = 'the embedded alternative needs no files: text "documentation" or "standard_library"'
    if not root.is_dir():
        raise UserError(f"no folder {str(folder)!r} with text files; {alternative}")
    files = sorted(path for path in root.rglob("*") if path.suffix in _TEXT_SUFFIXES and path.is_file())
    try:
        documents = tuple(piece for path in files for piece in _pieces(path.read_text("utf-8")))
    except UnicodeDecodeError as error:
        raise UserError(f"a text file in {str(folder)!r} is not UTF-8 ({error.reason}); {alternative}") from None
    if not documents:
        raise UserError(f"no text in {str(folder)!r} (looked for {', '.join(sorted(_TEXT_SUFFIXES))}); {alternative}")
    return Corpus(root.name, documents)


def _is_library(path: Path) -> bool:
    return not _NOT_LIBRARY & set(path.parts) and not path.name.startswith("_sysconfigdata")


def _pieces(text: str) -> Sequence[str]:
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + _DOCUMENT - 1) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces
