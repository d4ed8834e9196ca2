"""A file is whole or absent, whatever fails; JSON survives numbers that are not finite."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.files import (
    as_path,
    atomic_write_bytes,
    is_object_store,
    make_folder,
    read_json,
    replace_folder,
    to_plain,
    write_json,
)


def no_space(*_arguments, **_keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, broken, before):
    path = tmp_path / "result.json"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(os, broken, no_space)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write_bytes(path, b"new" * 1000)
    assert caught.value.filename == str(path)
    assert [item.name for item in tmp_path.iterdir()] == ([] if before is None else ["result.json"])
    assert before is None or path.read_bytes() == before


def test_a_write_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *arguments, name=name, original=original: (order.append(name), original(*arguments))[1]
        )
    atomic_write_bytes(tmp_path / "a", b"1")
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_json_round_trip_of_awkward_values(tmp_path):
    value = {
        "numbers": [0, 1.5, True, None, math.inf, -math.inf],
        "array": np.float32([[1, 2], [3, 4]]),
        "scalar": np.int64(7),
        "tuple": (1, (2,)),
        "text": 'Gauß "quoted"\n',
        "empty": {"list": [], "dict": {}},
        "records": [{"a": 1}, {"b": [2, 3]}],
    }
    write_json(tmp_path / "a.json", value)
    back = read_json(tmp_path / "a.json")
    assert back["numbers"] == value["numbers"]
    assert back["array"] == [[1.0, 2.0], [3.0, 4.0]]
    assert back["tuple"] == [1, [2]] and back["text"] == value["text"] and back["empty"] == value["empty"]
    assert back["records"] == value["records"] and back["scalar"] == 7
    strict = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert strict["numbers"][-1] == "-Infinity"


def test_json_keeps_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": [np.nan, 1.0]})
    assert math.isnan(read_json(tmp_path / "a.json")["x"][0])


@pytest.mark.parametrize("value", [object(), {1: "a"}, {"f": len}, {"set": {1}}])
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(TypeError):
        to_plain(value)


@pytest.mark.parametrize("content", ["", '{"a": ', "\x00\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(path)


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(UserError, match="file is a file, and a folder is needed"):
            make_folder(path)
    assert make_folder(tmp_path / "a" / "b") == Path(tmp_path / "a" / "b")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "cpu"
    replace_folder(folder, {"a": b"1", "b": b"2"})
    replace_folder(folder, {"a": b"3"})
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a", b"3")]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("survive", range(4))
def test_a_folder_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, survive):
    """Two files and two renames of folders: whichever fails, the old files are there and nothing else is."""
    folder = tmp_path / "cpu"
    replace_folder(folder, {"a": b"1", "b": b"2"})
    original, calls = os.replace, []

    def fill(*arguments):
        calls.append(arguments)
        if len(calls) == survive + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill)
        with pytest.raises(OSError, match="No space left"):
            replace_folder(folder, {"a": b"3", "b": b"4"})
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == [("a", b"1"), ("b", b"2")]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("path", ["runs", "/a/b", ".", "a:b", "a:/b", "~/x", "1:/2", "file name/c"])
def test_paths_of_this_machine_stay_what_they_are(path):
    assert as_path(path) == as_path(as_path(path)) == Path(path) and type(as_path(path)) is type(Path())
    assert not is_object_store(as_path(path))


@pytest.mark.parametrize(
    "path", ["gs:/bucket/x", Path("gs://bucket/x"), "s3:/b", "ftp://host/x", "http://host", "gsx://b"]
)
def test_what_is_no_address_of_a_store_is_refused_and_makes_no_folder(path):
    with pytest.raises(UserError, match=r"no address of an object store; write \w\w://b|on no known object store"):
        as_path(path)


def test_a_store_whose_package_is_missing_is_refused(monkeypatch):
    import fsspec

    def absent(_scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(UserError, match="gs://bucket/x cannot be opened: Please install gcsfs"):
        as_path("gs://bucket/x")
