"""WikiText-103 from its three original files or as TFDS prepares it, and GPT-2's tokenizer from its file, all checked.

The files are `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens`: text in which words are separated by
blanks, rare ones replaced by `<unk>` (Merity et al., arXiv 1609.07843). TFDS has no builder of its own for them, but
one for data sets of Hugging Face's library; where that library is installed, which this project does not ask for,

    tfds build huggingface:wikitext/wikitext-103-v1 --file_format=array_record --data_dir=DIR

prepares a folder DIR/huggingface__wikitext/.../1.0.0 that is read here without it and without TensorFlow. There an
example is a line, and "" stands for a blank one. **That was tried on generated lines only.**
"""

import json
import re
from pathlib import Path

from experiments.errors import UserError
from experiments.sources.text import Corpus
from experiments.training.recording import recorder

WORDS = {"train": 103_227_021, "valid": 217_646, "test": 245_569}
"""Published numbers of words; the end of a line counts as one."""
GPT2_TOKENS = 50_257
_ARTICLE = re.compile(r"^(?= = [^=\n])", re.MULTILINE)
END_OF_TEXT = "<|endoftext|>"
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
        folder: with the three files, or with what TFDS has prepared.

    Returns:
        "train", "valid" and "test".

    Raises:
        UserError: a file is absent, or is not that part of WikiText-103.
    """
    if recorder() is not None:
        from experiments.planning import stand_ins

        return {part: Corpus(f"WikiText-103, {part}", _articles(text)) for part, text in stand_ins.wikitext().items()}
    folder = Path(folder)
    if (folder / "dataset_info.json").exists():
        return {part: _checked(_prepared(folder, part), f"{folder}, {part}", part) for part in WORDS}
    files = {part: folder / f"wiki.{part}.tokens" for part in WORDS}
    return {part: _checked(_text(path), str(path), part) for part, path in files.items()}


def _prepared(folder: Path, part: str) -> str:
    """Text of a part as TFDS has prepared it."""
    import tensorflow_datasets as tfds

    try:
        lines = tfds.builder_from_directory(folder).as_data_source({"valid": "validation"}.get(part, part))
        return "".join(lines[i]["text"].decode("utf-8") or " \n" for i in range(len(lines)))
    except Exception as error:  # TFDS raises whatever its registry, its formats or the file system raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{folder} is no WikiText-103 in TFDS's array_record format ({reason}); {_ELSEWHERE}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        raise UserError(f"no file {path}: WikiText-103 is wiki.train.tokens and so on; {_ELSEWHERE}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason})") from None


def _checked(text: str, path: str, part: str) -> Corpus:
    """The articles of a text that is that part."""
    if not (title := _ARTICLE.search(text)) or text[: title.start()].strip():
        raise UserError(f"{path} does not begin with the title of an article, ' = Title = '")
    corpus = Corpus(f"WikiText-103, {part}", _articles(text))
    if (words := count_words(corpus)) != WORDS[part]:
        raise UserError(f"{path} has {words} words, ends of lines included, expected the {WORDS[part]} of WikiText-103")
    return corpus


def _articles(text: str) -> tuple[str, ...]:
    return tuple(filter(None, _ARTICLE.split(text)))


def read_gpt2_tokenizer(path: str | Path) -> str:
    """GPT-2's tokenizer: byte-level BPE with 50,257 tokens.

    Args:
        path: of its `tokenizer.json`, in the format of Hugging Face's tokenizers.

    Returns:
        The JSON.

    Raises:
        UserError: there is no such file, or it holds another tokenizer.
    """
    if recorder() is not None:
        from experiments.planning import stand_ins

        return stand_ins.gpt2_tokenizer()
    from tokenizers import Tokenizer

    try:
        text = Path(path).read_text("utf-8")
        tokenizer, described = Tokenizer.from_str(text), json.loads(text)
    except OSError:
        told = "GPT-2's tokenizer.json is needed there; with an empty path, one is trained on the training part"
        raise UserError(f"no file {path}: {told}") from None
    except Exception as error:  # what the Rust library raises is a plain Exception
        raise UserError(f"{path} is no tokenizer.json ({str(error).splitlines()[0][:100]})") from None
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT)
    kind = described.get("pre_tokenizer") or {}
    found = tokenizer.encode(_KNOWN_TEXT).ids
    if (size, end) != (GPT2_TOKENS, GPT2_TOKENS - 1) or kind.get("type") != "ByteLevel" or found != _KNOWN_TOKENS:
        raise UserError(
            f"{path}: got {size} tokens, {_KNOWN_TEXT!r} as {found[:8]}, expected GPT-2's byte-level {GPT2_TOKENS}, "
            f"with {_KNOWN_TOKENS}"
        )
    return text
