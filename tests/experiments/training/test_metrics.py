"""Metrics: each (split, step) once and in order, through resumes and kills, in a file and in segments alike."""

import itertools
import json
import math
import sys
from array import array

import numpy as np
import pytest

from experiments.files import as_path
from experiments.training import metrics
from experiments.training.metrics import MetricsLog, read_rows


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path):
    """A folder on this machine, then one on an object store."""
    if request.param == "gs":
        request.getfixturevalue("store")
        return as_path("gs://bucket/runs/a/train")
    return tmp_path / "deep" / "train"


def value(step: int) -> float:
    """A loss that is sometimes not finite, and that differs from step to step."""
    return {3: math.nan, 8: math.inf, 13: -math.inf}.get(step, step / 7)


def log(writer: MetricsLog, first: int, last: int) -> None:
    """The rows of updates first to last in the loop's order: evaluation after n updates, then the n-th update's own."""
    for step in range(first, last + 1):
        if step % 4 == 0:
            writer.write(step, "eval", {"accuracy": step / 100})
        if step > 0:
            writer.write(step, "train", {"loss": value(step), **({"late": -float(step)} if step > 6 else {})})
        if step in (3, 8, 13):
            skipped = {"leaf": f"params.{step}", "first_example": step * 2**40, "examples": 16}
            writer.write(step, "skipped", skipped)


def resume(folder, step: int, last: int, **options) -> MetricsLog:
    """Go on behind the checkpoint of `step`, which holds the metrics of its own update; it was evaluated already."""
    writer = MetricsLog(folder, step, resumed=True, **options)
    before = writer.write
    writer.write = lambda n, split, values: None if (n, split) == (step, "eval") else before(n, split, values)
    log(writer, step, last)
    del writer.write
    return writer


def expected(last: int, splits=("train", "eval", "skipped")) -> list[dict]:
    """What is in the metrics after `last` updates, by an independent path."""
    rows = []
    for step, split in itertools.product(range(last + 1), ("eval", "train", "skipped")):
        if split == "train" and step > 0:
            rows.append({"step": step, "split": split, "loss": value(step)} | ({"late": -step} if step > 6 else {}))
        elif split == "eval" and step % 4 == 0:
            rows.append({"step": step, "split": split, "accuracy": step / 100})
        elif split == "skipped" and step in (3, 8, 13):
            rows.append(
                {"step": step, "split": split, "leaf": f"params.{step}", "first_example": step << 40, "examples": 16}
            )
    return [row for row in rows if row["split"] in splits]


def same(found, wanted) -> None:
    """Equal rows in equal order; NaN equals NaN."""
    assert [repr(sorted(row.items())) for row in found] == [
        repr(sorted({k: float(v) if k == "late" else v for k, v in row.items()}.items())) for row in wanted
    ]


@pytest.mark.parametrize("stops", [[], [9], [1, 2, 3], [4, 8, 8, 12], [13, 13, 3], [16], [7, 0, 5]])
def test_each_step_is_logged_once_whatever_was_interrupted(folder, stops):
    """Each process goes four updates beyond its checkpoint before it is killed, or to the end."""
    writer = MetricsLog(folder)
    log(writer, 0, min(stops[0] + 4, 16) if stops else 16)
    writer.flush()
    for step, after in itertools.zip_longest(stops, stops[1:]):
        writer = resume(folder, step, 16 if after is None else max(step, min(after + 4, 16)))
        writer.flush()
    writer.close()
    same(read_rows(folder), expected(16))
    for split in ("train", "eval", "skipped"):
        np.testing.assert_equal(writer.columns(split), columns_of(expected(16, (split,))))
        np.testing.assert_equal(MetricsLog(folder, 17, resumed=True).columns(split), writer.columns(split))


def columns_of(rows: list[dict]) -> dict[str, np.ndarray]:
    """Rows as arrays by name, NaN where a name is missing."""
    names = dict.fromkeys(name for row in rows for name in row if name != "split")
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}


@pytest.mark.parametrize("every", [1, 5])
def test_a_kill_after_any_flush_loses_only_what_was_not_flushed(folder, every):
    for killed in range(1, 12):
        writer = MetricsLog(folder)
        for step in range(1, killed + 1):
            writer.write(step, "train", {"loss": value(step)})
            if step % every == 0:
                writer.flush()
        steps = [row["step"] for row in read_rows(folder)]
        assert steps == list(range(1, killed - killed % every + 1))


def test_a_new_training_forgets_the_old_one(folder):
    for _ in range(2):
        writer = MetricsLog(folder)
        log(writer, 0, 9)
        writer.flush()
        writer.sync()
    same(read_rows(folder), expected(9))
    assert MetricsLog(folder).columns("train") == {} and list(read_rows(folder)) == []


def test_there_are_no_rows_where_nothing_was_logged(folder):
    assert list(read_rows(folder)) == []
    assert MetricsLog(folder, 5, resumed=True).columns("eval") == {}


@pytest.mark.parametrize(
    "torn", [b'{"step": 10, "split": "tr', b"\x00\xff\xfe", b"[]\n", b"7", b'"NaN"', b"{}\n", b"\n"]
)
def test_a_torn_end_is_dropped(folder, torn):
    writer = MetricsLog(folder)
    log(writer, 0, 9)
    writer.close()
    path = as_path(list(contents(folder))[-1])
    path.write_bytes(path.read_bytes() + torn)
    same(read_rows(folder), expected(9))
    resume(folder, 7, 11).close()
    same(read_rows(folder), expected(11))


def test_lines_that_were_written_twice_count_once(folder):
    """As when a write failed half-way, and was repeated when the log was closed."""
    writer = MetricsLog(folder)
    log(writer, 0, 9)
    writer.close()
    path = as_path(list(contents(folder))[-1])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:6], lines[6][:9], *lines[4:]]))
    rows = list(read_rows(folder))
    same(rows, [row for row in expected(9) if row in rows])
    assert len(rows) >= len(lines) - 1


def test_a_folder_that_was_copied_from_a_store_or_to_one_goes_on(store, tmp_path):
    there = as_path("gs://bucket/train")
    writer = MetricsLog(there)
    log(writer, 0, 5)
    writer.flush()
    log(writer, 6, 10)
    writer.close()
    for name in store.names():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.objects[name])
    here = tmp_path / "bucket" / "train"
    same(read_rows(here), expected(10))
    resume(here, 6, 12).close()
    same(read_rows(here), expected(12))
    again = as_path("gs://bucket/again")
    (again / "metrics.jsonl").write_bytes((here / "metrics.jsonl").read_bytes())
    resume(again, 9, 14).close()
    same(read_rows(again), expected(14))
    assert not (again / "metrics.jsonl").exists()


def test_segments_are_written_once_each_and_replaced_by_one_on_resume(store):
    folder = as_path("gs://bucket/train")
    writer = MetricsLog(folder)
    for step in range(1, 6):
        writer.write(step, "train", {"loss": 0.0})
        writer.sync()
        writer.sync()  # nothing new, so no empty object
    writer.close()
    writer = MetricsLog(folder, 3, resumed=True)
    writer.write(3, "train", {"loss": 0.0})
    writer.close()
    names = [name.removeprefix("bucket/train/metrics/") for name in store.puts]
    numbers = ["00000000-all", *(f"{n:08d}" for n in range(1, 6)), "00000006-all", "00000007"]
    assert names == [f"{number}.jsonl" for number in numbers]
    assert store.names() == store.puts[-2:]


@pytest.mark.parametrize("survive", range(8))
def test_a_kill_while_a_resume_replaces_the_segments_loses_none(store, monkeypatch, survive):
    folder = as_path("gs://bucket/train")
    writer = MetricsLog(folder)
    for step in range(0, 12, 2):
        log(writer, step, step + 1)
        writer.flush()
    calls = []

    def killed(original):
        def change(*arguments):
            calls.append(arguments)
            if len(calls) > survive:
                raise KeyboardInterrupt
            original(*arguments)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", killed(store.put))
        patch.setattr(store, "remove", killed(store.remove))
        with pytest.raises(KeyboardInterrupt):
            resume(folder, 8, 10).flush()
    kept = [row for row in expected(11) if row["step"] < 8 or (row["step"], row["split"]) == (8, "eval")]
    same(read_rows(folder), kept if survive else expected(11))
    resume(folder, 8, 13).close()
    same(read_rows(folder), expected(13))


def test_a_reader_is_not_confused_by_a_resume_beside_it(store, monkeypatch):
    """Segments that it has listed are replaced before it fetches them."""
    folder = as_path("gs://bucket/train")
    writer = MetricsLog(folder)
    log(writer, 0, 9)
    writer.close()
    original, meanwhile = metrics._segments, []

    def listed(path):
        found = original(path)
        if not meanwhile:
            meanwhile.append(True)
            resume(folder, 5, 11).close()
        return found

    monkeypatch.setattr(metrics, "_segments", listed)
    same(read_rows(folder), expected(11))


def test_another_process_keeps_the_history_and_writes_nothing(folder, request):
    writer = MetricsLog(folder)
    log(writer, 0, 9)
    writer.close()
    snapshot = contents(folder)
    other = resume(folder, 5, 16, writes=False)
    other.flush()
    other.sync()
    other.close()
    assert contents(folder) == snapshot
    np.testing.assert_equal(other.columns("train"), columns_of(expected(16, ("train",))))
    resume(folder, 5, 11).close()  # the first process has gone on already when the other one begins
    late = resume(folder, 5, 16, writes=False)
    np.testing.assert_equal(late.columns("eval"), columns_of(expected(16, ("eval",))))


def test_another_process_makes_no_folder(tmp_path):
    MetricsLog(tmp_path / "new", writes=False).close()
    assert list(tmp_path.iterdir()) == []


def contents(folder) -> dict[str, bytes]:
    """Files that hold metrics."""
    paths = [path for path in (folder / "metrics.jsonl", *sorted((folder / "metrics").glob("*"))) if path.exists()]
    return {str(path): path.read_bytes() for path in paths}


def test_every_line_is_json_for_every_reader(folder):
    writer = MetricsLog(folder)
    log(writer, 0, 16)
    writer.close()
    for content in contents(folder).values():
        for line in content.decode().splitlines():
            json.loads(line, parse_constant=pytest.fail)


def test_rows_are_written_after_a_while_and_later_on_a_store(folder, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    writer, every = MetricsLog(folder), 30.0 if "://" in str(folder) else 2.0
    for step, (seconds, rows) in enumerate([(every, 0), (every + 0.5, 2), (2 * every, 2), (2 * every + 1, 4)], 1):
        clock[0] = seconds
        writer.write(step, "train", {"loss": 0.0})
        assert len(list(read_rows(folder))) == rows


def test_tensorboard_is_for_local_folders_and_the_writing_process(folder):
    MetricsLog(folder).close()
    assert (folder / "tensorboard").exists() == ("://" not in str(folder))


def test_a_million_updates_fit_into_memory(folder):
    """Eight bytes for a number; a dictionary for a row takes more than 200."""
    writer = MetricsLog(folder, writes=False)
    for step in range(1, 10_001):
        writer.write(step, "train", {"loss": 0.5 + step, "rate": 1.0 / step})
    held = writer._splits["train"]._values.values()
    assert all(isinstance(column, array) for column in held)
    assert sum(map(sys.getsizeof, held)) < 1.3 * 3 * 8 * 10_000
    assert writer._unwritten == []
