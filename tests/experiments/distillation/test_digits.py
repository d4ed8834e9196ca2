"""Parts, transfer sets and orders of the digits."""

import numpy as np
import pytest

from experiments.distillation.digits import FitConfig, digit_parts, read_network, schedule, transfer_rows


def test_no_image_is_in_two_parts():
    parts = digit_parts()
    images = np.concatenate([part.images.reshape(len(part), -1) for part in parts[:3]])
    assert len(images) == 1797
    # a few images occur twice in the data set itself
    assert len(np.unique(images, axis=0)) == 1797


def test_a_transfer_set_has_its_classes_in_equal_numbers_and_a_smaller_one_lacks_one_class_only():
    labels = digit_parts().train.labels
    rows = transfer_rows(labels, 43, seed=5)
    counts = np.bincount(labels[rows], minlength=10)
    assert counts.sum() == 43 and set(counts) == {4, 5} and len(set(rows)) == 43
    left = transfer_rows(labels, 43, seed=5, without=7)
    assert set(rows) - set(left) == {row for row in rows if labels[row] == 7}
    assert list(transfer_rows(labels, 43, seed=6)) != list(rows)
    with pytest.raises(ValueError, match="count: got 795, expected at most"):
        transfer_rows(labels, 795, seed=0)


def test_every_row_comes_once_in_each_round():
    rows = np.array([3, 5, 8, 13, 21])
    order = schedule(rows, FitConfig(steps=7, batch_size=5), seed=2)
    assert all(sorted(batch) == rows.tolist() for batch in order)
    flat = schedule(rows, FitConfig(steps=5, batch_size=3), seed=2).reshape(-1)
    assert all(sorted(flat[start : start + 5]) == rows.tolist() for start in (0, 5, 10))


@pytest.mark.parametrize("name", ["mlp", "mlp-", "mlp-0", "cnn-16", "mlp-16-x", "conv-1.5"])
def test_names_of_no_network_are_refused(name):
    with pytest.raises(ValueError, match=f"student: got '{name}', expected mlp or conv"):
        read_network(name, "student")
