"""The One Billion Word Benchmark (LM1B) through TensorFlow Datasets: its sentences, joined to documents.

It is downloaded and prepared once, which needs TensorFlow, in any environment:

    tfds build lm1b --file_format=array_record --data_dir=DIR

Reading it needs no TensorFlow. The sentences are shuffled news, tokenized by words and separated by blanks.
"""

from typing import Any

from experiments.errors import UserError
from experiments.sources.text import Corpus
from experiments.training.data import tfds_source

NAME = "lm1b"
EXAMPLES = {"train": 30_301_028, "test": 306_688}
DOCUMENT = 10_000
"""Characters after which a document ends, at the end of a sentence."""
_ELSEWHERE = (
    "Python's documentation in tokenization/text_tokenizers; to prepare it, with TensorFlow installed: "
    "tfds build lm1b --file_format=array_record"
)


def load_billion_words(split: str, data_dir: str | None = None) -> Any:
    """Sentences of a split, by random access.

    Args:
        split: "train" or "test".
        data_dir: where TFDS's data sets are prepared; None is TFDS's default.

    Returns:
        A source of {"text": bytes}.

    Raises:
        UserError: the data set is not prepared, or it is not the whole one.
    """
    source = tfds_source(NAME, split, data_dir, embedded=_ELSEWHERE)
    if len(source) != EXAMPLES[split]:
        raise UserError(f"{NAME} ({split}): got {len(source)} examples, expected {EXAMPLES[split]}; prepare it again")
    if set(source[0]) != {"text"} or not isinstance(source[0]["text"], bytes):
        raise UserError(f"{NAME} ({split}): got the fields {', '.join(source[0])}, expected text, of bytes")
    return source


def read_sentences(source: Any, first: int, characters: int, name: str) -> tuple[Corpus, int]:
    """Whole sentences from one on, until there are so many characters.

    Args:
        source: of `load_billion_words`.
        first: number of the first sentence.
        characters: how many there shall be, line ends included.
        name: of the corpus.

    Returns:
        Documents of `DOCUMENT` characters or a sentence more, the last one shorter, one sentence per line; and the
        number of the sentence after the last.

    Raises:
        UserError: there are not so many.
    """
    documents, lines, length, total, number = [], [], 0, 0, first
    while total < characters:
        if number >= len(source):
            raise UserError(f"{NAME}: got {total} characters from sentence {first} on, expected {characters}")
        lines.append(source[number]["text"].decode() + "\n")
        length, total, number = length + len(lines[-1]), total + len(lines[-1]), number + 1
        if length >= DOCUMENT:
            documents.append("".join(lines))
            lines, length = [], 0
    return Corpus(name, (*documents, "".join(lines)) if lines else tuple(documents)), number
