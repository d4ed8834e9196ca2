"""Reading: every record by its index, from disk and from a bucket; nothing that is not what the manifest says."""

import pickle

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.records import source as source_module
from experiments.records.manifest import MANIFEST
from experiments.records.source import Records
from experiments.records.verify import verify
from experiments.records.writing import write
from tests.experiments.object_store import stored_at_gs
from tests.experiments.records.conftest import byte_rows


@pytest.fixture
def folder(tmp_path):
    """Five shards."""
    write(tmp_path / "rows", byte_rows(shards=5))
    return tmp_path / "rows"


def expected(shards=range(5)):
    job = byte_rows(shards=5)
    return [row for shard in shards for row in job.records(shard)]


def assert_equal(source, rows):
    assert len(source) == len(rows)
    for index in np.random.default_rng(0).permutation(len(rows)):
        found = source[index]
        assert set(found) == set(rows[index])
        for name, array in rows[index].items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_records_are_found_by_index_also_in_a_copy_of_another_process(folder):
    source = Records(folder)
    assert_equal(source, expected())
    assert_equal(pickle.loads(pickle.dumps(source)), expected())
    assert_equal(source.only([3, 1]), expected([3, 1]))
    for index in (-1, len(source)):
        with pytest.raises(IndexError, match=f"index: got {index}"):
            source[index]
    with pytest.raises(UserError, match="expected some of 5"):
        Records(folder, [5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damage_is_one_line(folder):
    shard = folder / "demo-00002-of-00005.array_record"
    whole = shard.read_bytes()
    flip(shard)
    for read in (Records, verify):
        with pytest.raises(UserError, match=r"demo-00002.* is damaged: it does not have the SHA-256 of the manifest"):
            read(folder)
    Records(folder, [0, 1])  # of other shards
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"has {len(whole) - 1} bytes, and the manifest says {len(whole)}"):
        Records(folder, check=False)
    shard.unlink()
    with pytest.raises(UserError, match="does not exist, and the manifest names it"):
        Records(folder)


def test_damage_that_was_not_looked_for_is_told_when_it_is_met(folder):
    shard = folder / "demo-00002-of-00005.array_record"
    content = bytearray(shard.read_bytes())
    place = content.find(b"segment_ids")
    content[:] = bytes(len(content)) if place < 0 else content[:place] + bytes(len(content) - place)
    shard.write_bytes(content)
    with pytest.raises(UserError, match="demo-00002.* is damaged at record"):
        list(map(Records(folder, [2], check=False).__getitem__, range(len(expected([2])))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"length": 16', '"length": 32'), "damaged: its content does not have its SHA-256"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has the format 2, expected 1"),
        (lambda text: "[]", "is damaged: it is no manifest of records"),
        (lambda text: text[:50], "is damaged"),
    ],
)
def test_another_manifest_is_refused(folder, change, message):
    path = folder / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        verify(folder)


def test_without_a_manifest_there_is_nothing_to_read(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="is no finished folder of records: it has no manifest.json"):
        Records(folder)


def test_verify_reads_what_a_manifest_that_agrees_with_itself_says_wrongly(folder, monkeypatch):
    write(folder.parent / "other", byte_rows(shards=5))
    job = byte_rows(shards=5)
    monkeypatch.setattr(type(job), "count", lambda self, record: {"tokens": 1, "segments": 1})
    write(folder.parent / "wrong", job)
    with pytest.raises(UserError, match="its records have .*, and the manifest says"):
        verify(folder.parent / "wrong")


def test_shards_of_a_bucket_are_fetched_when_they_are_needed_and_checked(tmp_path, monkeypatch):
    with stored_at_gs(monkeypatch):
        write("gs://bucket/rows", byte_rows(shards=5))
        fetched = []
        original = source_module.fetched
        monkeypatch.setattr(
            source_module, "fetched", lambda path, shard: (fetched.append(shard.file), original(path, shard))[1]
        )
        source = Records("gs://bucket/rows")
        assert fetched == [] and not (tmp_path / "cache").exists()
        rows = expected([4])
        assert_equal(source.only([4]), rows)
        assert fetched == ["demo-00004-of-00005.array_record"] and len(list((tmp_path / "cache").iterdir())) == 1
        assert_equal(source, expected())
        assert len(list((tmp_path / "cache").iterdir())) == 5
        # What is in the cache is not fetched again, also where the bucket is gone.
        opened = Records("gs://bucket/rows")
        monkeypatch.setattr(type(opened.folder), "open", None)
        assert_equal(opened, expected())


def test_a_damaged_shard_of_a_bucket_is_refused_and_not_kept(tmp_path, monkeypatch):
    with stored_at_gs(monkeypatch) as store:
        write("gs://bucket/rows", byte_rows(shards=5))
        name = "bucket/rows/demo-00000-of-00005.array_record"
        store.put(name, store.objects[name][::-1])
        source = Records("gs://bucket/rows")
        with pytest.raises(UserError, match=r"gs://bucket/rows/demo-00000.* is damaged: it does not have the SHA-256"):
            source[0]
        assert list((tmp_path / "cache").iterdir()) == []
