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


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_disjoint_and_cover_the_corpus(folds: int) -> None:
    corpus = documentation()
    parts = [corpus.split(fold, folds) for fold in range(folds)]
    assert parts == [corpus.split(fold, folds) for fold in range(folds)]
    assert sorted(text for _, test in parts for text in test.documents) == sorted(corpus.documents)
    for train, test in parts:
        assert not set(train.documents) & set(test.documents)
        for part in (train, test):
            assert [text for text in corpus.documents if text in set(part.documents)] == list(part.documents)


@pytest.mark.parametrize("folds", [2, 5, 7])
@pytest.mark.parametrize("seed", range(3))
def test_fold_sizes_differ_by_at_most_the_longest_document(folds: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, [3, 40, 4000][seed], 60).tolist()
    corpus = Corpus("lengths", tuple(chr(97 + i) * length for i, length in enumerate(lengths)))
    sizes = [corpus.split(fold, folds)[1].size for fold in range(folds)]
    assert sum(sizes) == corpus.size
    assert max(sizes) - min(sizes) <= max(lengths)


def test_copies_of_a_document_stay_together() -> None:
    corpus = Corpus("copies", ("a", "b", "a", "", "a", "b", "c"))
    parts = [corpus.split(fold, 3)[1].documents for fold in range(3)]
    assert parts == [("a", "a", "a"), ("b", "b"), ("c",)]
    assert corpus.split(0, 2)[0].documents == ("b", "b", "c")


def test_split_always_leaves_two_parts() -> None:
    corpus = Corpus("three with text", ("a", "", "bb", "", "ccc"))
    for folds in (2, 3):
        for fold in range(folds):
            assert all(part.size > 0 for part in corpus.split(fold, folds))
    with pytest.raises(ValueError, match="documents: got 3 different ones .*each of 4 folds"):
        corpus.split(0, 4)
    for fold in (-1, 3):
        with pytest.raises(ValueError, match=f"fold: got {fold}; expected 0..2"):
            corpus.split(fold, 3)
    with pytest.raises(ValueError, match="folds: got 1"):
        corpus.split(0, 1)


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
