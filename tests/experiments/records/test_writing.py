"""Shards are whole or absent, the same bytes whoever writes them, and only those that are missing are written again."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.records.manifest import MANIFEST, read_manifest
from experiments.records.source import Records
from experiments.records.tokens import TokenRows
from experiments.records.verify import verify
from experiments.records.writing import PREPARATION, write
from tests.experiments.object_store import stored_at_gs
from tests.experiments.records.conftest import byte_rows, texts

ROOT = Path(__file__).resolve().parents[3]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(folder):
    """The text of all rows, one behind the other."""
    source = Records(folder)
    rows = [source[index] for index in range(len(source))]
    return "".join(bytes(row["tokens"][row["segment_ids"] > 0]).decode() for row in rows)


def test_the_text_comes_back_and_the_manifest_counts_it(tmp_path):
    manifest = write(tmp_path, byte_rows())
    text = "".join(texts())
    assert manifest is not None and decoded(tmp_path) == text
    assert manifest.counts["tokens"] == len(text) and manifest == read_manifest(tmp_path) == verify(tmp_path)
    names = [f"demo-{number:05d}-of-00004" for number in range(4)]
    expected = [MANIFEST, PREPARATION, *(f"{name}.{end}" for name in names for end in ("array_record", "json"))]
    assert sorted(contents(tmp_path)) == sorted(expected)


def test_a_part_without_text_is_an_empty_shard(tmp_path):
    manifest = write(tmp_path, byte_rows(shards=9, count=3))
    assert manifest is not None and 0 in [shard.records for shard in manifest.shards]
    assert decoded(tmp_path) == "".join(texts(count=3)) and verify(tmp_path) == manifest


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(tmp_path):
    lines = []
    write(tmp_path / "one", byte_rows())
    write(tmp_path / "two", byte_rows(), processes=2, report=lines.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(lines) == 4 and all("tokens" in line for line in lines)


def test_what_is_missing_or_torn_is_written_again_and_nothing_else(tmp_path):
    write(tmp_path, byte_rows())
    whole = contents(tmp_path)
    names = [f"demo-{number:05d}-of-00004" for number in range(4)]
    (tmp_path / f"{names[0]}.array_record").unlink()
    (tmp_path / f"{names[1]}.json").unlink()
    (tmp_path / f"{names[2]}.array_record").write_bytes(whole[f"{names[2]}.array_record"][:-1])
    (tmp_path / MANIFEST).unlink()
    lines = []
    write(tmp_path, byte_rows(), report=lines.append)
    assert [line.partition(".")[0] for line in lines] == names[:3]
    assert contents(tmp_path) == whole
    write(tmp_path, byte_rows(), report=lines.append)
    assert len(lines) == 3


def test_parts_of_a_cluster_write_their_own_shards_and_the_last_one_the_manifest(tmp_path, monkeypatch):
    write(tmp_path / "alone", byte_rows(shards=5))
    monkeypatch.setenv("LIGHTNET_PROCESSES", "2")
    for part, written in (("1", [1, 3]), ("0", [0, 2, 4])):
        lines = []
        monkeypatch.setenv("LIGHTNET_PROCESS", part)
        manifest = write(tmp_path / "shared", byte_rows(shards=5), report=lines.append)
        assert [int(line[5:10]) for line in lines] == written
        assert (manifest is None) == (part == "1") == (not (tmp_path / "shared" / MANIFEST).exists())
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")
    monkeypatch.setenv("LIGHTNET_PROCESS", "2")
    with pytest.raises(UserError, match="LIGHTNET_PROCESS: got 2 of LIGHTNET_PROCESSES 2"):
        write(tmp_path / "shared", byte_rows(shards=5))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (byte_rows(length=17), "with another length: 16, not 17; take another folder"),
        (byte_rows(shards=3), "with another shards: 4, not 3"),
        (byte_rows(seed=1), "with another source_sha256"),
    ],
)
def test_a_folder_of_another_preparation_is_refused(tmp_path, other, message):
    write(tmp_path, byte_rows())
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        write(tmp_path, other)
    assert contents(tmp_path) == before
    (tmp_path / PREPARATION).unlink()
    with pytest.raises(UserError, match=f"holds shards, but no {PREPARATION}"):
        write(tmp_path, byte_rows())


@dataclass(frozen=True)
class Failing(TokenRows):
    """A job whose third shard has a mistake in it, or ends its process."""

    how: str = "mistake"

    def records(self, shard):
        """The rows, up to one."""
        for number, row in enumerate(super().records(shard)):
            if shard == 2 and number == 3:
                if self.how == "mistake":
                    raise UserError("line 7 is no text")
                os.kill(os.getpid(), signal.SIGKILL)
            yield row


def failing(how):
    job = byte_rows()
    return Failing(job.name, job.documents, job.tokenization, job.length, job.shards, how)


def test_a_mistake_leaves_nothing_of_its_shard(tmp_path):
    with pytest.raises(UserError, match="^line 7 is no text$"):
        write(tmp_path, failing("mistake"))
    assert sorted(
        path.name for path in tmp_path.iterdir() if path.suffix == ".array_record" or path.name[0] == "."
    ) == [
        "demo-00000-of-00004.array_record",
        "demo-00001-of-00004.array_record",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "message"), [("mistake", "^line 7 is no text$"), ("kill", "ended with status -9")])
def test_a_process_that_fails_is_told_and_the_others_shards_stay(tmp_path, how, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "a", failing(how), processes=2)
    assert (
        not (tmp_path / "a" / MANIFEST).exists() and not (tmp_path / "a" / "demo-00002-of-00004.array_record").exists()
    )
    write(tmp_path / "a", byte_rows())
    write(tmp_path / "b", byte_rows())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_writer_leaves_no_half_shard_and_is_continued(tmp_path, processes):
    program = """
        import sys, time
        from experiments.records import writing
        from experiments.records.tokens import TokenRows
        from tests.experiments.records.test_writing import Slow, byte_rows
        if __name__ == "__main__":
            job = byte_rows()
            slow = Slow(job.name, job.documents, job.tokenization, job.length, job.shards)
            writing.write(sys.argv[1], slow, int(sys.argv[2]), lambda line: print(line, flush=True))
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    folder = tmp_path / "killed"
    command = [sys.executable, str(script), str(folder), str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline().startswith("demo-0000")
        while not list(folder.glob(".*.tmp")):
            time.sleep(0.01)
        writer.kill()
    write(tmp_path / "whole", byte_rows())
    whole = contents(tmp_path / "whole")
    deadline = time.monotonic() + 60
    while processes > 1 and any(str(folder) in line for line in running()) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = contents(folder)
    assert MANIFEST not in left and 1 <= sum(name.endswith(".array_record") for name in left) < 4
    assert all(whole[name] == content for name, content in left.items() if not name.startswith("."))
    lines = []
    write(folder, byte_rows(), report=lines.append)
    assert 1 <= len(lines) < 4 and contents(folder) == whole
    assert verify(folder) == read_manifest(folder)


@dataclass(frozen=True)
class Slow(TokenRows):
    """A job that takes its time over a shard, so that it is killed in the middle of one."""

    def records(self, shard):
        """The rows; the second half of a shard takes longer than the test."""
        rows = list(super().records(shard))
        for number, row in enumerate(rows):
            if shard >= 2 and 2 * number >= len(rows):
                time.sleep(60)
            yield row


def running():
    """Processes that have the demo's folder open or were started for it."""
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            yield from (os.readlink(entry) for entry in (path.parent / "fd").iterdir())
        except OSError:
            continue


def test_a_bucket_gets_the_same_files_by_one_upload_each(tmp_path, monkeypatch):
    write(tmp_path, byte_rows())
    with stored_at_gs(monkeypatch) as store:
        manifest = write("gs://bucket/rows", byte_rows())
        assert {name.rpartition("/")[2]: content for name, content in store.objects.items()} == contents(tmp_path)
        assert store.puts[-1] == f"bucket/rows/{MANIFEST}" and len(store.puts) == len(set(store.puts))
        assert manifest == read_manifest("gs://bucket/rows")
        store.remove("bucket/rows/demo-00001-of-00004.array_record")
        write("gs://bucket/rows", byte_rows())
        assert store.puts[-3].endswith("demo-00001-of-00004.array_record")
