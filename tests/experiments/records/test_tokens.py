"""Tokens and rows: no token lost or invented, segments are documents, the same rows as Grain's packer makes."""

import numpy as np
import pytest

from experiments import language
from experiments.errors import UserError
from experiments.records.documents import EmbeddedText
from experiments.records.tokens import Tokenization, TokenRows, pack, prepared_tokenizer, read_tokenizer
from experiments.sources import Corpus
from experiments.training import packing
from tests.experiments.records.conftest import byte_rows


def documents(seed, count=60, longest=40):
    lengths = np.random.default_rng(seed).integers(0, longest + 1, count)
    return np.split(np.arange(1, lengths.sum() + 1), np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("length", [1, 2, 7, 16, 255, 256, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_rows_hold_every_token_once_in_order_and_segments_are_pieces_of_documents(length, seed):
    made = documents(seed)
    rows = list(pack(made, length, np.dtype(np.int32)))
    tokens, segments = (np.stack([row[name] for row in rows]) for name in ("tokens", "segment_ids"))
    np.testing.assert_array_equal(tokens[segments > 0], np.concatenate(made))
    assert (segments[:-1] > 0).all() and not tokens[segments == 0].any()
    begins = set(
        np.cumsum([0, *map(len, made)])[:-1].tolist()
    )  # tokens are 1, 2, ...: of a document that begins at i, i + 1
    for row, ids in zip(tokens, segments, strict=True):
        filled = int((ids > 0).sum())
        assert ids[0] == 1 and set(np.diff(ids[:filled])) <= {0, 1} and not ids[filled:].any()
        changes = np.flatnonzero(np.diff(ids[:filled])) + 1
        assert all(int(row[place]) - 1 in begins for place in changes)
        inside = np.setdiff1d(np.arange(1, filled), changes)
        assert not any(int(row[place]) - 1 in begins for place in inside)


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_rows_are_those_of_grains_packer(length):
    made = documents(7)
    rows, expected = list(pack(iter(made), length, np.dtype(np.int64))), packing.pack(made, length)
    for name in ("tokens", "segment_ids"):
        np.testing.assert_array_equal(np.stack([row[name] for row in rows]), expected[name])


def test_rows_are_not_written_over_while_they_are_used():
    rows = list(pack([np.arange(1, 10)], 3, np.dtype(np.uint8)))
    assert [row["tokens"].tolist() for row in rows] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_no_documents_give_no_rows_and_no_length_is_refused():
    assert list(pack([], 4, np.dtype(np.uint8))) == list(pack([np.array([], int)], 4, np.dtype(np.uint8))) == []
    with pytest.raises(ValueError, match="length: got 0, expected at least 1"):
        list(pack([], 0, np.dtype(np.uint8)))


def test_a_tokenizer_is_read_with_its_end_and_its_text_comes_back(tmp_path):
    from tokenizers import Tokenizer

    text = ("the café in the town\n" * 30, "a naïve 北京 token", "")
    trained = Tokenizer.from_str(language.vocabulary(300, Corpus("words", text)).tokenizer or "")
    trained.add_special_tokens(["<end>"])
    path = tmp_path / "tokenizer.json"
    trained.save(str(path))
    plain, ended = read_tokenizer(str(path)), read_tokenizer(str(path), "<end>")
    assert plain.vocab_size == ended.vocab_size == trained.get_vocab_size() and plain.dtype == np.uint16
    assert plain.sha256 == ended.sha256 != Tokenization(None).sha256
    for document, one, two in zip(text, plain.encode(text), ended.encode(iter(text)), strict=True):
        assert trained.decode(one.tolist()) == document
        assert two.tolist() == [*one.tolist(), trained.token_to_id("<end>")]


def test_the_tokenizer_of_a_folder_is_the_one_of_its_rows(tmp_path):
    tokenizer = language.vocabulary(260, Corpus("words", ("some text",))).tokenizer
    job = TokenRows("demo", EmbeddedText("documentation"), Tokenization(tokenizer), 16, 1)
    assert prepared_tokenizer(tmp_path, byte_rows().about) is None
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        prepared_tokenizer(tmp_path, job.about)
    (tmp_path / "tokenizer.json").write_text(job.files["tokenizer.json"])
    assert prepared_tokenizer(tmp_path, job.about) == tokenizer
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not the tokenizer that the rows were made with"):
        prepared_tokenizer(tmp_path, job.about)


def test_more_documents_than_one_batch_keep_their_order():
    made = [f"{number} " * (number % 3) for number in range(700)]
    assert [bytes(ids).decode() for ids in Tokenization(None).encode(made)] == made


@pytest.mark.parametrize(
    ("path", "end", "message"),
    [
        ("nowhere.json", "", "--tokenizer: no file nowhere.json; expected bytes, or the path of a tokenizer.json"),
        ("bytes", "<end>", "--end: got '<end>', but bytes have no such token"),
        (__file__, "", "is no tokenizer.json"),
    ],
)
def test_refusals(path, end, message):
    with pytest.raises(UserError, match=message):
        read_tokenizer(path, end)
