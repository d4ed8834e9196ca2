"""The order of training: every record once per epoch, a pure function of seed and index, shards of one's own."""

import itertools

import grain
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.records import source as source_module
from experiments.records.order import in_training_order
from experiments.records.source import Records
from experiments.records.writing import write
from experiments.training.data import Share, data_hash
from tests.experiments.records.conftest import byte_rows

BATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards of different sizes."""
    folder = tmp_path_factory.mktemp("rows")
    write(folder, byte_rows(length=8))
    return folder


def identity(row):
    assert row["tokens"].dtype == row["segment_ids"].dtype == np.int32
    return row["tokens"].tobytes() + row["segment_ids"].tobytes()


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_every_lane_has_each_of_its_records_once_per_epoch(folder, lanes):
    data = in_training_order(folder, seed=3, batch_size=BATCH, lanes=lanes)
    each = BATCH // lanes
    for lane, shards in enumerate(np.split(np.arange(4), lanes)):
        records = Records(folder, shards.tolist())
        expected = sorted(records[i]["tokens"].astype(np.int32).tobytes() for i in range(len(records)))
        places = (batch * BATCH + lane * each + row for batch in itertools.count() for row in range(each))
        first, second = ([data[next(places)]["tokens"].tobytes() for _ in expected] for _ in range(2))
        assert sorted(first) == sorted(second) == expected and first != second != expected


def test_the_order_depends_on_the_seed_and_the_lanes_and_is_told_by_the_hash(folder):
    def made(**settings):
        return in_training_order(folder, **{"seed": 0, "batch_size": BATCH, "lanes": 2, **settings})

    reference = made()
    assert [identity(reference[i]) for i in range(40)] == [identity(made()[i]) for i in range(40)]
    assert data_hash(reference) == data_hash(made())
    others = [made(seed=1), made(lanes=4), made(lanes=1), made(batch_size=16), made(shards=[0, 1])]
    assert len({data_hash(data) for data in (reference, *others)}) == 6
    for other in others:
        assert [identity(reference[i]) for i in range(40)] != [identity(other[i]) for i in range(40)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_their_own_shards_and_together_the_same_batches(folder, processes, monkeypatch):
    opened: dict[int, set[str]] = {process: set() for process in range(processes)}
    now = 0
    original = source_module._opened
    monkeypatch.setattr(
        source_module, "_opened", lambda path, shard: (opened[now].add(shard.file), original(path, shard))[1]
    )
    found = {}
    for now in range(processes):
        data = in_training_order(folder, seed=5, batch_size=BATCH, lanes=4)
        data_hash(data)
        rows = np.split(np.arange(BATCH), processes)[now].tolist()
        share = Share(data, BATCH, rows, position=3 * BATCH)
        for index in range(12 * len(rows)):
            batch, row = divmod(index, len(rows))
            found[batch * BATCH + rows[row]] = identity(share[index])
    mine = [set(files) for files in opened.values()]
    whole = in_training_order(folder, seed=5, batch_size=BATCH, lanes=4)
    assert found == {i: identity(whole[3 * BATCH + i]) for i in range(12 * BATCH)}
    assert all(len(files) == 4 // processes for files in mine)
    assert all(not one & two for one, two in itertools.combinations(mine, 2))


@pytest.mark.parametrize(("lanes", "batch_size"), [(3, 6), (4, 6), (0, 8), (8, 8)])
def test_lanes_divide_shards_and_batch(folder, lanes, batch_size):
    with pytest.raises(UserError, match=f"lanes: got {lanes}, expected a divisor of 4 shards and of a batch of"):
        in_training_order(folder, seed=0, batch_size=batch_size, lanes=lanes)


def test_grain_reads_the_same_in_threads(folder):
    data = in_training_order(folder, seed=1, batch_size=BATCH, lanes=2)
    read = data.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
    for index, row in zip(range(200), read, strict=False):
        assert identity(row) == identity(data[index])
