"""WikiText-103 from its three original files, and GPT-2's tokenizer from its file, both checked.

TFDS has no WikiText-103 that can be read without TensorFlow, so it is read from a folder with `wiki.train.tokens`,
`wiki.valid.tokens` and `wiki.test.tokens`: text in which words are separated by blanks, rare ones replaced by `<unk>`
(Merity et al., arXiv 1609.07843).
"""

import json
import re
from pathlib import Path

from experiments.errors import UserError
from experiments.sources.text import Corpus

WORDS = {"train": 103_227_021, "valid": 217_646, "test": 245_569}
"""Published numbers of words; the end of a line counts as one."""
GPT2_TOKENS = 50_257
_ARTICLE = re.compile(r"^(?= = [^=\n])", re.MULTILINE)
_END_OF_TEXT = "<|endoftext|>"
_KNOWN_TEXT, _KNOWN_TOKENS = "Hello, world!", [15496, 11, 995, 0]
_ELSEWHERE = "the embedded alternative, lightnet/causal_lm, needs no files"


def count_words(corpus: Corpus) -> int:
    """Words that perplexities of WikiText are per: what blanks separate, and each end of a line.

    Args:
        corpus: any text.

    Returns:
        Their number.

    Example:
        >>> count_words(Corpus("two lines", (" = A = \\n", " b c . \\n")))
        8
    """
    return sum(len(document.split()) + document.count("\n") for document in corpus.documents)


def read_wikitext(folder: str | Path) -> dict[str, Corpus]:
    """The three parts, a document per article.

    Args:
        folder: with the three files.

    Returns:
        "train", "valid" and "test".

    Raises:
        UserError: a file is absent, or is not that part of WikiText-103.
    """
    return {part: _read(Path(folder) / f"wiki.{part}.tokens", part) for part in WORDS}


def _read(path: Path, part: str) -> Corpus:
    try:
        text = path.read_text("utf-8")
    except OSError:
        raise UserError(f"no file {path}: WikiText-103 is wiki.train.tokens and so on; {_ELSEWHERE}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason})") from None
    if not (title := _ARTICLE.search(text)) or text[: title.start()].strip():
        raise UserError(f"{path} does not begin with the title of an article, ' = Title = '")
    corpus = Corpus(f"WikiText-103, {part}", tuple(filter(None, _ARTICLE.split(text))))
    if (words := count_words(corpus)) != WORDS[part]:
        raise UserError(f"{path} has {words} words, ends of lines included, expected the {WORDS[part]} of WikiText-103")
    return corpus


def read_gpt2_tokenizer(path: str | Path) -> str:
    """GPT-2's tokenizer: byte-level BPE with 50,257 tokens.

    Args:
        path: of its `tokenizer.json`, in the format of Hugging Face's tokenizers.

    Returns:
        The JSON.

    Raises:
        UserError: there is no such file, or it holds another tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        text = Path(path).read_text("utf-8")
        tokenizer, described = Tokenizer.from_str(text), json.loads(text)
    except OSError:
        told = "GPT-2's tokenizer.json is needed there; with an empty path, one is trained on the training part"
        raise UserError(f"no file {path}: {told}") from None
    except Exception as error:  # what the Rust library raises is a plain Exception
        raise UserError(f"{path} is no tokenizer.json ({str(error).splitlines()[0][:100]})") from None
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(_END_OF_TEXT)
    kind = described.get("pre_tokenizer") or {}
    found = tokenizer.encode(_KNOWN_TEXT).ids
    if (size, end) != (GPT2_TOKENS, GPT2_TOKENS - 1) or kind.get("type") != "ByteLevel" or found != _KNOWN_TOKENS:
        raise UserError(
            f"{path}: got {size} tokens, {_KNOWN_TEXT!r} as {found[:8]}, expected GPT-2's byte-level {GPT2_TOKENS}, "
            f"with {_KNOWN_TOKENS}"
        )
    return text
