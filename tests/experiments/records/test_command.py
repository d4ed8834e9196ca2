"""`data prepare`, `verify` and `bench` from the command line; mistakes are one line."""

import json

import pytest

from experiments.records.manifest import read_manifest
from tests.experiments.object_store import stored_at_gs
from tests.experiments.records.conftest import texts


@pytest.fixture
def prepared(call, tmp_path):
    """A folder of rows of a file's lines."""
    (tmp_path / "text.txt").write_text("\n".join(texts()))
    words = ("--out", tmp_path / "rows", "--length", 8, "--shards", 3, "--documents", "line")
    status, out, err = call("data", "prepare", tmp_path / "text.txt", *words)
    assert (status, err) == (0, "")
    assert f"prepared: {tmp_path / 'rows'}: " in out and "text-txt-00002-of-00003.array_record: " in out
    return tmp_path / "rows"


def test_what_was_prepared_is_whole(call, prepared):
    status, out, _ = call("data", "verify", prepared)
    tokens = len("".join(texts()))
    assert status == 0 and out.startswith(f"whole: {prepared}: 3 shards, ") and f", {tokens} tokens" in out
    about = read_manifest(prepared).about
    assert (about["length"], about["tokenizer"], about["source"]) == (8, "bytes", "text.txt (1 files, by line)")
    (prepared / "text-txt-00001-of-00003.array_record").write_bytes(b"")
    status, out, err = call("data", "verify", prepared)
    assert (status, out, len(err.splitlines())) == (2, "", 1) and err.startswith("error: ")


def test_a_tokenizer_is_kept_beside_the_rows(call, tmp_path):
    from experiments import language
    from experiments.sources import Corpus

    trained = language.vocabulary(260, Corpus("text", texts())).tokenizer or ""
    (tmp_path / "made.json").write_text(trained)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts()))
    words = ("--out", tmp_path / "rows", "--tokenizer", tmp_path / "made.json", "--field", "body", "--name", "demo")
    status, out, err = call("data", "prepare", tmp_path / "text.jsonl", *words, "--length", 8, "--shards", 2)
    assert (status, err) == (0, "") and "demo-00001-of-00002.array_record: " in out
    assert (tmp_path / "rows" / "tokenizer.json").read_text() == trained
    assert read_manifest(tmp_path / "rows").about["tokenizer"] == "tokenizer.json"


def test_bench_writes_what_it_prints(call, prepared, tmp_path):
    words = ("--seconds", 0.02, "--batch_size", 4, "--out", tmp_path / "bench")
    status, out, err = call("data", "bench", prepared, *words)
    assert (status, err) == (0, "") and "training order, on the device" in out
    record = json.loads((tmp_path / "bench" / "result.json").read_text())
    assert record["sha256"] == read_manifest(prepared).sha256 and record["settings"]["batch_size"] == 4
    assert [one["way"] for one in record["speed"]] == [
        "in order, cold",
        "in order, warm",
        "training order, on the device",
    ]
    for one in record["speed"]:
        assert one["rows"] > 0 and one["tokens_per_second"] == pytest.approx(8 * one["rows_per_second"])
        assert one["rows_per_second"] == pytest.approx(one["rows"] / one["seconds"])


def test_everything_works_in_a_bucket_and_bench_leaves_nothing_in_the_cache(call, tmp_path, monkeypatch):
    with stored_at_gs(monkeypatch) as store:
        store.put("bucket/texts/a.txt", "\n".join(texts()).encode())
        words = ("--out", "gs://bucket/rows", "--length", 8, "--shards", 2, "--documents", "line")
        assert call("data", "prepare", "gs://bucket/texts/a.txt", *words)[0] == 0
        status, _, err = call("data", "bench", "gs://bucket/rows", "--seconds", 0.02, "--out", tmp_path / "bench")
        assert (status, err) == (0, "") and not (tmp_path / "cache").exists()
        status, out, err = call("data", "verify", "gs://bucket/rows")
        assert (status, err) == (0, "") and out.startswith("whole: gs://bucket/rows: 2 shards, ")
        assert len(list((tmp_path / "cache").iterdir())) == 2


def test_files_without_text_make_no_rows_and_it_is_said(call, tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n")
    words = ("--documents", "line", "--shards", 1, "--out", tmp_path / "rows")
    status, _, err = call("data", "prepare", tmp_path / "a.txt", *words)
    assert status == 2 and err.startswith(f"error: {tmp_path / 'a.txt'}: no text in it; ")
    status, _, err = call("data", "bench", tmp_path / "rows", "--out", tmp_path / "bench")
    assert (status, err) == (2, f"error: {tmp_path / 'rows'} has no rows of tokens\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the action is missing; there is: prepare, teacher, verify, bench"),
        (("prepair",), "unknown action 'prepair'; nearest: prepare"),
        (("prepare", "documentation"), "--out is missing: the folder of the shards"),
        (("prepare", "--out", "rows"), "SOURCE is missing"),
        (("prepare", "documentation", "--out", "rows", "--shards", "0"), "--shards: got 0, expected 1 to 99999"),
        (("prepare", "documentation", "--out", "rows", "--name", "a/b"), "--name: got 'a/b', expected letters"),
        (("prepare", "nowhere.txt", "--out", "rows"), "unknown source 'nowhere.txt'"),
        (("verify", "nowhere"), "nowhere is no finished folder of records: it has no manifest.json"),
        (("bench", "nowhere", "--seconds", "0"), "--seconds: got 0.0, expected a time above 0"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("data", *words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["prepare", "teacher", "verify", "bench"])
def test_help_of_every_action_is_at_most_100_columns(call, action):
    status, out, err = call("data", action, "--help")
    assert (status, err) == (0, "") and "usage:" in out and max(map(len, out.splitlines())) <= 100
