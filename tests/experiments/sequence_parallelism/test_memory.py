"""Counted memory against a count by hand, and how devices share it."""

from dataclasses import replace

import pytest

from experiments.errors import UserError
from experiments.sequence_parallelism import maximum_sizes
from experiments.sequence_parallelism.compiled import Point, planned
from experiments.sequence_parallelism.memory import BYTES, Shape, largest, step_of
from tests.experiments.result_run import check_run

SHAPE = Shape(num_layers=1, width=24, num_heads=4, vocab_size=62, rank=6)


def numbers(shape, method, length):
    return sum(array.numbers for array in step_of(method, shape).kept if (array.batch, array.length) == (1, length))


def test_a_block_of_softmax_attention_keeps_what_products_norms_and_the_activation_are_given():
    deeper = replace(SHAPE, num_layers=2)
    per_token = numbers(deeper, "tensor", 1) - numbers(SHAPE, "tensor", 1)
    # Two norms and their outputs, queries, keys, values, what is read, and the hidden layer before and behind.
    by_hand = (4 + 4 + 2 * 4) * SHAPE.width
    assert by_hand <= per_token <= by_hand + 3 * SHAPE.num_heads  # and a few numbers of each softmax
    # The exponentials of a softmax and what they are divided into.
    assert numbers(deeper, "tensor", 2) - numbers(SHAPE, "tensor", 2) == 2 * SHAPE.num_heads


def test_what_devices_share():
    dense = step_of("ring, scores kept", SHAPE)
    states = dense.bytes(0, 64)
    d = SHAPE.width
    weights = 62 * d + 62 + 12 * d * d + 3 * d  # embedding and bias, products, norms
    assert sum(array.numbers for array in dense.state) == weights
    assert states == pytest.approx(4 * BYTES * weights, rel=1e-3)  # gradient and Adam's averages, and a few scalars
    # All that grows with the batch is shared by the devices of a sequence, weights are not.
    assert dense.bytes(8, 64, sequence=4) - states == pytest.approx((dense.bytes(8, 64) - states) / 4, rel=1e-3)
    kept = dense.bytes(8, 64, tensor=2) - dense.bytes(0, 64, tensor=2)
    assert (dense.bytes(8, 64) - states) / 2 < kept < dense.bytes(8, 64) - states
    assert states / 2 < dense.bytes(0, 64, tensor=2) < 0.6 * states


@pytest.mark.slow
def test_only_kept_scores_grow_with_the_square_of_the_length():
    for method, expected in {"ring": 1, "lightnet": 1, "linformer": 1, "ring, scores kept": 2}.items():
        assert max(array.length for array in step_of(method, SHAPE).kept) == expected, method


def test_an_unknown_method():
    with pytest.raises(ValueError, match="method: got 'pipeline'"):
        step_of("pipeline", SHAPE)


def test_the_largest_that_fits():
    assert [largest(lambda n, most=most: n <= most) for most in (0, 1, 5, 8)] == [0, 1, 5, 8]


def test_tensor_parallelism_stops_at_the_heads():
    used = [maximum_sizes.split("tensor", devices, 12)["tensor"] for devices in (1, 5, 8, 12, 64)]
    assert used == [1, 4, 6, 12, 12]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_the_compiler_plans():
    shape = Shape(num_layers=1, width=128, num_heads=2, vocab_size=256)
    # On one device there is no ring.
    points = [Point("ring", shape, 8, 1024, sequence=count) for count in (2, 4)]
    for point, bytes in zip(points, planned(points), strict=True):
        counted = step_of("ring", shape).bytes(8, 1024, sequence=point.sequence)
        assert counted == pytest.approx(bytes, rel=0.3), point


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_is_compared_with_one_device_has_one_and_a_token_fits(tmp_path):
    smoke = maximum_sizes.PRESETS["smoke"]
    with pytest.raises(ValueError, match=r"devices: got \(8, 64\), expected 1 and larger"):
        replace(smoke, devices=(8, 64))
    wide = replace(smoke, shape=replace(smoke.shape, vocab_size=12 * 10**6))
    with pytest.raises(UserError, match="gibibytes: got 1, in which not every method has room"):
        maximum_sizes.run(replace(wide, gibibytes=1), tmp_path)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(maximum_sizes, maximum_sizes.PRESETS["smoke"], tmp_path, absent={"counted-memory"})
    table = result.tables["largest"]
    assert min(table["batch"]) > 0 and max(table["used"]) == 64
