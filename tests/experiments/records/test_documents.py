"""Documents in parts: together they are all, once and in order, however many parts; files, buckets, TFDS."""

import json

import pytest

from experiments.errors import UserError
from experiments.records.documents import find_documents
from experiments.sources.text import documentation
from tests.experiments.object_store import stored_at_gs

LINES = ("one", "", "two words", "dreißig", "x" * 70, "  ", "last without an end")


def together(found, parts):
    return [document for number in range(parts) for document in found.part(number, parts)]


def write_texts(folder):
    """Files of both kinds, an empty one and one that is no text."""
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(LINES), encoding="utf-8")
    (folder / "b" / "c.jsonl").write_text("".join(json.dumps({"text": f"{i} é\n"}) + "\n" for i in range(9)))
    (folder / "b" / "d.raw").write_text("a\nb\n")
    (folder / "e.txt").touch()
    (folder / "notes.md").write_text("not text")


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 16, 200, 1000])
@pytest.mark.parametrize("unit", ["file", "line"])
def test_parts_of_text_files_are_the_whole(tmp_path, parts, unit):
    write_texts(tmp_path)
    of_json = [f"{i} é\n" for i in range(9)]
    expected = {"file": ["\n".join(LINES), *of_json, "a\nb\n"]}
    expected["line"] = [*(line for line in LINES if line.strip()), *of_json, "a", "b"]
    assert together(find_documents(str(tmp_path), unit=unit), parts) == expected[unit]


def test_a_file_and_a_pattern(tmp_path):
    write_texts(tmp_path)
    assert together(find_documents(str(tmp_path / "b" / "d.raw")), 3) == ["a\nb\n"]
    assert len(together(find_documents(str(tmp_path / "*.txt"), unit="line"), 4)) == 5
    whole, copied = find_documents(str(tmp_path)), tmp_path / "copy"
    write_texts(copied)
    assert find_documents(str(copied)).sha256 == whole.sha256  # which was listed before the copies were there
    one, two = (find_documents(str(path)).sha256 for path in (copied, copied / "a.txt"))
    (copied / "b" / "d.raw").write_text("a\nB\n")
    assert one != two and find_documents(str(copied)).sha256 != one


def test_files_of_a_bucket(monkeypatch):
    with stored_at_gs(monkeypatch) as store:
        store.put("bucket/texts/a.txt", b"one\ntwo\n")
        store.put("bucket/texts/b.txt", b"three")
        for source in ("gs://bucket/texts", "gs://bucket/texts/*.txt"):
            assert together(find_documents(source, unit="line"), 3) == ["one", "two", "three"]


def test_embedded_text_and_its_parts():
    assert together(find_documents("documentation"), 7) == list(documentation().documents)
    assert find_documents("documentation").sha256 == documentation().sha256


def test_a_data_set_of_tfds_by_name_and_by_folder(tmp_path, monkeypatch):
    from tests.experiments.sources.made_up_billion_words import COUNTS, prepare, sentence

    prepare(tmp_path)
    (built,) = tmp_path.glob("lm1b/*")
    expected = [sentence("test", i) for i in range(COUNTS["test"])]
    found = find_documents(f"tfds:{built}", split="test")
    assert sorted(together(found, 7)) == sorted(expected)
    assert together(found, 7) == together(found, 1)
    assert found.sha256 != find_documents(f"tfds:{built}", split="test[1:]").sha256
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="no text in the field 'sentence'; an example has: text"):
        together(find_documents(f"tfds:{built}", split="test", field="sentence"), 1)
    with pytest.raises(UserError, match="cannot be read"):
        together(find_documents(f"tfds:{built}", split="dev"), 1)


def test_articles_of_wikitext(tmp_path, monkeypatch):
    from experiments.sources import wikitext
    from tests.experiments.sources.made_up_wikitext import write_wikitext

    monkeypatch.setattr(wikitext, "WORDS", write_wikitext(tmp_path))
    articles = wikitext.read_wikitext(tmp_path)["valid"].documents
    assert together(find_documents(f"wikitext103:{tmp_path}", split="valid"), 3) == list(articles) and len(articles) > 3
    with pytest.raises(UserError, match="unknown split 'dev'; there is: train, valid, test"):
        together(find_documents(f"wikitext103:{tmp_path}", split="dev"), 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("standard_libary", "unknown source 'standard_libary'; nearest: standard_library, and no such path"),
        ("tfds:no_such_set", "'no_such_set' .train. is not in .* alternative is standard_library or documentation"),
        ("wikitext103:nowhere", "no file nowhere/wiki.train.tokens"),
        ("*.nothing", "no text in .*nothing"),
    ],
)
def test_what_is_not_there_is_one_line(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        together(find_documents(source), 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"{", "a line is no JSON"),
        (b'{"body": "x"}', "no text in the field 'text'"),
        (b'{"text": "a\\ud800"}', "a line has text that UTF-8 has no bytes for"),
    ],
)
def test_what_is_no_text_names_the_file(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"a.jsonl.*{message}"):
        together(find_documents(str(tmp_path)), 1)
