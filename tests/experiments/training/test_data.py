"""Data: order, position, shares of processes, workers."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing

import grain
import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.training.data import DeviceBatches, Share, examples, local_rows
from experiments.training.packing import pack

ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def numbers(count=10):
    """One column that names its rows."""
    return {"x": np.arange(count)}


def order(data, start, stop):
    """What stands in the order at [start, stop)."""
    return np.stack([data[index]["x"] for index in range(start, stop)])


def test_every_epoch_has_each_row_once_in_another_order():
    first, second = np.split(order(examples(numbers(), seed=0), 0, 20), 2)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) and list(first) != list(range(10))


def test_order_is_a_pure_function_of_seed_and_index():
    one, two, other = (examples(numbers(100), seed=seed) for seed in (4, 4, 5))
    for index in [731, 0, 99, 100, 7, 10**9]:
        assert one[index]["x"] == two[index]["x"]
    assert not np.array_equal(order(one, 0, 24), order(other, 0, 24))


def test_unshuffled_keeps_the_order_of_the_source():
    np.testing.assert_array_equal(order(examples(numbers(), seed=0, shuffle=False), 8, 12), [8, 9, 0, 1])


def test_a_dataset_is_a_source_too():
    mapped = grain.MapDataset.source(np.arange(5)).map(lambda x: {"x": 10 * x})
    assert sorted(order(examples(mapped, seed=1), 5, 10)) == [0, 10, 20, 30, 40]


def read(data, batch_size, position, count):
    """The next `count` batches behind a position, and the position behind them."""
    with closing(DeviceBatches(data, batch_size, ONE_DEVICE, position)) as stream:
        batches = [jax.device_get(next(stream)) for _ in range(count)]
        return batches, json.loads(json.dumps(stream.position))


# Epochs of 10 examples end inside batches of 4, and a position need not be a multiple of 4.
@pytest.mark.parametrize("position", range(23))
def test_any_position_goes_on_with_the_same_order(position):
    batches, behind = read(examples(numbers(), seed=1), 4, position, 3)
    expected = order(examples(numbers(), seed=1), position, position + 12)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), expected)
    assert behind == position + 12


@pytest.mark.parametrize("position", range(9))
def test_any_position_goes_on_with_the_same_packed_rows(position):
    documents = np.split(np.arange(1, 41), [3, 9, 10, 17, 30])
    whole, _ = read(examples(pack(documents, 6), seed=3), 1, 0, 12)
    rest, _ = read(examples(pack(documents, 6), seed=3), 3, position, 1)
    for row in range(3):
        jax.tree.map(np.testing.assert_array_equal, whole[position + row], jax.tree.map(lambda x: x[[row]], rest[0]))  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 9, 10, 13])
def test_workers_read_the_same_order_from_any_position_and_are_gone_after(position):
    data = examples(numbers() | {"y": np.arange(40.0).reshape(10, 4)}, seed=1)
    stream = DeviceBatches(data, 4, ONE_DEVICE, position, workers=2)
    batches = [jax.device_get(next(stream)) for _ in range(6)]
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert not multiprocessing.active_children()
    jax.tree.map(np.testing.assert_array_equal, (batches, stream.position), read(data, 4, position, 6))


def split(batch_size, processes, devices_each=2):
    """Rows of each of several processes whose devices stand in the order of the batch."""
    pieces = np.arange(batch_size).reshape(processes, devices_each, -1)
    return [local_rows([(slice(piece[0], piece[-1] + 1),) for piece in group], batch_size) for group in pieces]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("position", [0, 5, 24])
def test_processes_read_disjoint_rows_whose_union_is_the_global_batch(processes, position):
    data = examples(numbers(13), seed=2)
    shares = [Share(data, 8, rows.tolist(), position) for rows in split(8, processes)]
    for batch in range(4):
        local = [[share[batch * (8 // processes) + row]["x"] for row in range(8 // processes)] for share in shares]
        begin = position + 8 * batch
        np.testing.assert_array_equal(np.concatenate(local), order(data, begin, begin + 8))


def test_another_number_of_processes_continues_the_same_order():
    data, position, seen = examples(numbers(13), seed=2), 0, []
    for processes in (2, 4, 1):
        shares = [Share(data, 8, rows.tolist(), position) for rows in split(8, processes)]
        seen += [share[row]["x"] for share in shares for row in range(8 // processes)]
        position += 8
    np.testing.assert_array_equal(seen, order(data, 0, 24))


def test_rows_of_permuted_and_repeated_devices_are_ascending_and_distinct():
    indices = [(slice(6, 8),), (slice(0, 2),), (slice(6, 8),)]
    assert local_rows(indices, 8).tolist() == [0, 1, 6, 7]
    assert local_rows([(slice(None),)], 3).tolist() == [0, 1, 2]


TWO_PROCESSES = """
    import sys
    from contextlib import closing
    import jax, numpy as np
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from experiments.training.data import DeviceBatches, examples
    from experiments.training.validation import validation

    # Devices 0-3 are of process 0: "tensor" spans both processes in one mesh, rows are scattered in the other.
    for places in ([[0, 4], [5, 1], [6, 2], [3, 7]], [[0, 1], [4, 5], [2, 3], [6, 7]]):
        mesh = Mesh(np.array(jax.devices())[places].reshape(2, 2, 2), ("data", "fsdp", "tensor"))
        sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        data = examples({"x": np.arange(13), "y": np.ones((13, 3))}, seed=2)
        with closing(DeviceBatches(data, 8, sharding, 5)) as stream:
            for begin in (5, 13):
                batch = next(stream)["x"]
                for shard in batch.addressable_shards:
                    expected = [data[begin + i]["x"] for i in range(8)[shard.index[0]]]
                    np.testing.assert_array_equal(shard.data, expected)
        with jax.set_mesh(mesh):
            mean = validation(lambda w, b: {"m": w * b["x"]}, {"x": np.arange(13.0)}, 6)
            assert mean(jax.numpy.array(2.0)) == {"m": 12.0}
    print("ok")
"""


def run_python(code, *arguments, **options):
    """Start a Python program of this environment."""
    words = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


@pytest.mark.slow
def test_two_processes_hand_their_rows_to_their_devices(free_port):
    started = [run_python(TWO_PROCESSES, str(free_port), str(index)) for index in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in started]
    assert all(output.endswith("ok\n") for output in outputs), "\n".join(outputs)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


READING = """
    import multiprocessing, sys
    import jax, numpy as np
    from experiments.training.data import DeviceBatches, examples

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stream = DeviceBatches(examples({"x": np.arange(10)}, seed=0), 4, sharding, workers=2)
    next(stream), next(stream)  # one from each
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    for _ in range(30):
        next(stream)
    print("read on", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_workers_outlive_a_signal_but_never_their_parent():
    parent = run_python(READING, stdin=subprocess.PIPE)
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            os.kill(worker, number)
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "read on\n"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    parent.communicate()


def alive(process_id):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Locked:
    """A source that cannot be sent to a process."""

    def __init__(self):
        self.lock = threading.Lock()

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": np.array(index)}


def test_a_source_that_cannot_be_sent_to_a_worker_is_refused_in_one_line():
    assert len(read(examples(Locked(), seed=0), 2, 0, 3)[0]) == 3
    with pytest.raises(UserError, match=r"^data cannot be sent to a worker \(.*lock.*\); set train.workers 0$"):
        DeviceBatches(examples(Locked(), seed=0), 2, ONE_DEVICE, workers=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: examples(numbers(), seed=0).to_iter_dataset(), "IterDataset, whose order is not a function of the"),
        (lambda: [1, 2], "got list, expected columns by name or a grain.MapDataset"),
        (lambda: examples(numbers(), seed=0).filter(lambda x: True), "some examples are dropped"),
        (lambda: examples([None], seed=0), "some examples are dropped"),
    ],
)
def test_what_has_no_order_of_examples_is_refused(data, message):
    with pytest.raises(UserError, match=message) as error, closing(DeviceBatches(data(), 2, ONE_DEVICE)) as stream:
        next(stream)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("length", "position", "whole"), [(10, 0, 2), (10, 3, 1), (3, 0, 0), (10, 12, 0)])
def test_data_that_ends_says_so_after_the_last_whole_batch(length, position, whole):
    ending = grain.MapDataset.source(np.arange(length))
    with closing(DeviceBatches(ending, 4, ONE_DEVICE, position)) as stream:
        for _ in range(whole):
            next(stream)
        with pytest.raises(UserError, match="the data ended before the last step"):
            next(stream)
        assert stream.position == position + 4 * whole


def test_columns_must_be_equally_long_and_not_empty():
    with pytest.raises(ValueError, match=r"columns: got lengths \{'x': 3, 'y': 2\}"):
        examples({"x": np.zeros(3), "y": np.zeros(2)}, seed=0)
    with pytest.raises(ValueError, match="source: got no examples"):
        examples({"x": np.zeros(0)}, seed=0)
