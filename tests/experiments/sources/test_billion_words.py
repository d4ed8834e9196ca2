"""LM1B as TFDS prepares it, read from generated sentences."""

import sys

import pytest

from experiments.errors import UserError
from experiments.sources import billion_words
from experiments.sources.billion_words import DOCUMENT, load_billion_words, read_sentences
from tests.experiments.sources.made_up_billion_words import COUNTS, prepare, sentence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def train(folder, monkeypatch):
    monkeypatch.setattr(billion_words, "EXAMPLES", COUNTS)
    return load_billion_words("train", folder)


def test_sentences_are_read_without_tensorflow_whole_and_once(train):
    assert len(train) == COUNTS["train"] and "tensorflow" not in sys.modules
    known = {sentence("train", i) for i in range(COUNTS["train"])}
    first, after = read_sentences(train, 0, 2 * DOCUMENT, "one")
    second, end = read_sentences(train, after, 500, "two")
    lines = "".join(first.documents + second.documents).splitlines()
    assert len(lines) == end and set(lines) <= known
    assert 2 * DOCUMENT <= first.size < 2 * DOCUMENT + 300 and len(first.documents) == 2
    assert all(len(document) >= DOCUMENT and document.endswith(" .\n") for document in first.documents)
    assert any("naïve" in document for document in first.documents)


def test_too_few_sentences_are_told(train):
    with pytest.raises(UserError, match=r"lm1b: got \d+ characters from sentence 1400 on, expected 1000000"):
        read_sentences(train, 1400, 1_000_000, "all")


def test_a_part_of_the_data_set_is_refused(folder):
    with pytest.raises(UserError, match="got 600 examples, expected 306688; prepare it again"):
        load_billion_words("test", folder)
