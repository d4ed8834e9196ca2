"""WikiText-103 and GPT-2's tokenizer: what is read, and what is refused."""

import json

import pytest

from experiments.errors import UserError
from experiments.sources import wikitext
from experiments.sources.wikitext import count_words, read_gpt2_tokenizer, read_wikitext
from tests.experiments.sources.made_up_wikitext import (
    gpt2_like_tokenizer,
    prepare_wikitext,
    write_tokenizer,
    write_wikitext,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path / "text"))
    return tmp_path / "text"


def test_parts_are_read_whole_with_a_document_per_article(folder):
    parts = read_wikitext(folder)
    assert list(parts) == ["train", "valid", "test"]
    for name, corpus in parts.items():
        assert "".join(corpus.documents) == (folder / f"wiki.{name}.tokens").read_text("utf-8")
        titles = [document.split("\n")[0] for document in corpus.documents[1:]]
        assert titles == [f" = Article {name} {number} = " for number in range(4)]
        assert count_words(corpus) == wikitext.WORDS[name]


def test_text_of_another_length_is_refused(folder, monkeypatch):
    path = folder / "wiki.valid.tokens"
    path.write_text(path.read_text("utf-8") + " more \n", "utf-8")
    words = wikitext.WORDS["valid"]
    with pytest.raises(UserError, match=rf"wiki.valid.tokens has {words + 2} words, .* expected the {words} of"):
        read_wikitext(folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b" \n Article without a title \n", "does not begin with the title of an article"),
        (b" \n = = Section = = \n text \n", "does not begin with the title of an article"),
        (b"text before \n = Article = \n", "does not begin with the title of an article"),
        (b" = \xff = \n", "is not UTF-8"),
        (b"", "does not begin"),
    ],
)
def test_files_of_another_format_are_refused(folder, content, told):
    (folder / "wiki.test.tokens").write_bytes(content)
    with pytest.raises(UserError, match=f"wiki.test.tokens {told}"):
        read_wikitext(folder)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no file .*wiki.train.tokens: .* lightnet/causal_lm, needs no files"):
        read_wikitext(tmp_path)


def test_the_published_numbers_of_words_are_known():
    assert wikitext.WORDS == {"train": 103_227_021, "valid": 217_646, "test": 245_569}


def test_gpt2s_tokenizer_is_recognised(tmp_path):
    text = read_gpt2_tokenizer(write_tokenizer(tmp_path / "tokenizer.json"))
    assert json.loads(text) == json.loads(json.dumps(gpt2_like_tokenizer()))


def _fewer_tokens():
    model = gpt2_like_tokenizer()["model"]
    *others, (a, b) = model["merges"]
    return {"model": model | {"vocab": {k: v for k, v in model["vocab"].items() if k != a + b}, "merges": others}}


def _other_numbers():
    model = gpt2_like_tokenizer()["model"]
    swapped = {"!": model["vocab"][","], ",": model["vocab"]["!"]}
    return {"model": model | {"vocab": model["vocab"] | swapped}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (_fewer_tokens, "got 50256 tokens"),
        (_other_numbers, r"'Hello, world!' as \[15496, 0, 995, 11\], expected GPT-2's"),
        (lambda: {"pre_tokenizer": {"type": "Whitespace"}}, "expected GPT-2's byte-level 50257"),
        (lambda: {"model": {"type": "none"}}, "is no tokenizer.json"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, changes, told):
    with pytest.raises(UserError, match=told) as caught:
        read_gpt2_tokenizer(write_tokenizer(tmp_path / "tokenizer.json", **changes()))
    assert "\n" not in str(caught.value)


def test_an_absent_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="no file .*tokenizer.json: GPT-2's tokenizer.json is needed there"):
        read_gpt2_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="is no tokenizer.json"):
        read_gpt2_tokenizer(tmp_path / "tokenizer.json")


def test_what_tfds_has_prepared_reads_as_the_files_do(tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path / "text"))
    prepared = prepare_wikitext(tmp_path / "text", tmp_path / "tfds")
    expected, found = read_wikitext(tmp_path / "text"), read_wikitext(prepared)
    assert {part: corpus.sha256 for part, corpus in found.items()} == {p: c.sha256 for p, c in expected.items()}
    assert found["valid"].documents == expected["valid"].documents
    monkeypatch.setitem(wikitext.WORDS, "valid", 7)
    with pytest.raises(UserError, match="valid has .* words"):
        read_wikitext(prepared)


def test_lines_in_another_order_or_of_another_format_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path / "text"))
    with pytest.raises(UserError, match="does not begin with the title of an article"):
        read_wikitext(prepare_wikitext(tmp_path / "text", tmp_path / "tfds", shuffled=True))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="is no WikiText-103 in TFDS's array_record format"):
        read_wikitext(tmp_path)
