"""Packing: no token lost, segments and positions right, documents whole where they must be, refusals."""

import numpy as np
import pytest

from experiments.training.packing import pack

WHOLE = ("first_fit", "best_fit")


def documents(seed=0, count=60, longest=11):
    """Documents of awkward lengths, tokens never 0 and each token once."""
    lengths = np.random.default_rng(seed).integers(0, longest + 1, count)
    return np.split(np.arange(1, lengths.sum() + 1), np.cumsum(lengths)[:-1])


def segments(rows):
    """The tokens of every segment of every row, in order."""
    for tokens, ids in zip(rows["tokens"], rows["segment_ids"], strict=True):
        for segment in range(1, ids.max() + 1):
            yield tokens[ids == segment].tolist()


@pytest.mark.parametrize("length", [1, 3, 11, 64, 1000])
def test_concat_then_split_keeps_every_token_in_order_and_pads_the_last_row_only(length):
    rows = pack(documents(), length)
    everything = np.concatenate(documents())
    np.testing.assert_array_equal(rows["tokens"][rows["mask"]], everything)
    assert rows["tokens"].shape == (-(-len(everything) // length), length)
    assert rows["mask"][:-1].all()


@pytest.mark.parametrize("strategy", WHOLE)
@pytest.mark.parametrize(("length", "bins"), [(11, 1), (12, 3), (64, 256)])
def test_documents_that_fit_stay_whole(strategy, length, bins):
    rows = pack(documents(), length, strategy=strategy, num_packing_bins=bins)
    expected = [document.tolist() for document in documents() if len(document)]
    assert sorted(segments(rows)) == sorted(expected)
    assert rows["mask"].any(axis=1).all()


@pytest.mark.parametrize("strategy", ["concat_then_split", *WHOLE])
def test_segments_count_from_one_positions_from_zero_and_padding_is_marked(strategy):
    rows = pack(documents(3), 13, strategy=strategy, pad_id=-7)
    assert {name: column.shape for name, column in rows.items()} == dict.fromkeys(
        ("tokens", "segment_ids", "positions", "mask"), rows["tokens"].shape
    )
    for tokens, ids, positions, mask in zip(*rows.values(), strict=True):
        real = mask.sum()
        assert mask[:real].all() and (tokens[real:] == -7).all() and (ids[real:] == 0).all()
        assert set(np.diff(ids[:real])) <= {0, 1} and ids[0] == 1
        starts = np.flatnonzero(np.diff(ids[:real], prepend=0))
        np.testing.assert_array_equal(
            positions[:real], np.arange(real) - np.repeat(starts, np.bincount(ids[:real])[1:])
        )


@pytest.mark.parametrize("strategy", ["concat_then_split", *WHOLE])
def test_packing_is_deterministic(strategy):
    one, two = (pack(iter(documents(5)), 16, strategy=strategy) for _ in range(2))
    for name, column in one.items():
        np.testing.assert_array_equal(column, two[name])


def test_best_fit_fills_the_fullest_row():
    made = [np.full(length, length) for length in (5, 6, 3, 4)]
    first, best = (pack(made, 9, strategy=strategy)["mask"].sum(axis=1).tolist() for strategy in WHOLE)
    assert first == [9, 9] or first == [8, 6, 4]
    assert best == [9, 9]


def test_the_widest_integer_type_holds_all_tokens():
    rows = pack([np.array([1], np.uint8), np.array([70000], np.int32)], 2)
    assert rows["tokens"].tolist() == [[1, 70000]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], 0), "length: got 0, expected at least 1"),
        (([[], []], 4), "documents: got no tokens"),
        (([], 4), "documents: got no tokens"),
        (([[1], [[2]]], 4), r"documents\[1\]: got shape \(1, 1\), expected one axis"),
        (([[1], [0.5]], 4), r"documents\[1\]: got float64, expected integers"),
    ],
)
def test_refusals_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(*arguments)


def test_refusals_of_the_strategy():
    with pytest.raises(ValueError, match=r"documents\[1\]: got 5 tokens, expected at most 4"):
        pack([[1], [1] * 5], 4, strategy="best_fit")
    with pytest.raises(ValueError, match="strategy: got 'worst_fit', expected concat_then_split"):
        pack([[1]], 4, strategy="worst_fit")
    with pytest.raises(ValueError, match="num_packing_bins: got 0"):
        pack([[1]], 4, strategy="first_fit", num_packing_bins=0)
