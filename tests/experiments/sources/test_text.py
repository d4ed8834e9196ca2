"""Embedded text: content, hashes, splits; folders of text files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.sources.text import Corpus, documentation, encode_characters, read_folder, standard_library


def test_documentation() -> None:
    corpus = documentation()
    assert len(corpus.documents) > 50
    assert "lambda" in "".join(corpus.documents)
    assert corpus.sha256 == documentation().sha256
    assert sum(map(len, corpus.bytes())) >= corpus.size
    np.testing.assert_array_equal(np.concatenate(corpus.characters()).max(), len(corpus.alphabet) - 1)


def test_characters_and_bytes_return_the_text() -> None:
    corpus = Corpus("mixed", ("naïve ∑", "", "𝛼b"))
    alphabet = corpus.alphabet
    assert ["".join(alphabet[i] for i in document) for document in corpus.characters()] == list(corpus.documents)
    assert [document.tobytes().decode() for document in corpus.bytes()] == list(corpus.documents)


def test_foreign_characters() -> None:
    with pytest.raises(ValueError, match="text: got the character 'z'"):
        encode_characters("abz", "abc")
    with pytest.raises(ValueError, match="text: got the character 'a'"):
        encode_characters("a", "")
    assert Corpus("x", ("abz", "zz")).restricted_to("ab").documents == ("ab", "")


def test_hash_sees_where_documents_end() -> None:
    assert Corpus("x", ("ab", "c")).sha256 != Corpus("x", ("a", "bc")).sha256
    assert Corpus("x", ("ab", "c")).sha256 != Corpus("x", ("c", "ab")).sha256


@pytest.mark.parametrize("seed", range(4))
def test_split_is_by_document_and_deterministic(seed: int) -> None:
    corpus = documentation()
    train, test = corpus.split(0.2, seed)
    assert (train, test) == corpus.split(0.2, seed)
    assert sorted(train.documents + test.documents) == sorted(corpus.documents)
    assert 0.2 <= test.size / corpus.size < 0.45
    assert corpus.split(0.2, seed + 1)[1] != test


def test_split_always_leaves_two_parts() -> None:
    for share in (0.01, 0.5, 0.99):
        train, test = Corpus("two", ("a", "bb")).split(share)
        assert train.documents and test.documents
    with pytest.raises(ValueError, match="at least two"):
        Corpus("one", ("a",)).split()
    with pytest.raises(ValueError, match="held_out: got 1"):
        Corpus("two", ("a", "b")).split(1)


def test_head() -> None:
    corpus = Corpus("x", ("aa", "bbb", "c"))
    assert [corpus.head(n).documents for n in (1, 2, 5, 100)] == [("aa",), ("aa",), ("aa", "bbb"), ("aa", "bbb", "c")]


def test_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="got no text"):
        Corpus("nothing", ("", ""))


def test_standard_library_sources() -> None:
    corpus = standard_library()
    assert corpus.size > 1_000_000
    assert any("def dataclass(" in document for document in corpus.documents)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "test.txt").write_text("short\n", encoding="utf-8")
    (tmp_path / "a.raw").write_text("line of text\n" * 2000, encoding="utf-8")
    (tmp_path / "ignored.bin").write_bytes(b"\xff\xfe")
    corpus = read_folder(tmp_path)
    assert "".join(corpus.documents) == "line of text\n" * 2000 + "short\n"
    assert len(corpus.documents) == 4
    assert all(document.endswith("\n") for document in corpus.documents)


def test_folder_problems_name_the_embedded_alternative(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embedded alternative"):
        read_folder(tmp_path / "absent")
    with pytest.raises(UserError, match="embedded alternative"):
        read_folder(tmp_path)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not UTF-8"):
        read_folder(tmp_path)


def test_reading_text_does_not_import_jax() -> None:
    code = "import sys; from experiments.sources import documentation; documentation(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
