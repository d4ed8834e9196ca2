"""Digit images: format, hash and split."""

import numpy as np
import pytest

from experiments.sources import load_digits


def test_format() -> None:
    digits = load_digits()
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0.0, 1.0)
    assert digits.labels.dtype == np.int32
    assert set(digits.labels.tolist()) == set(range(10))
    assert len(digits.sha256) == 64


def test_split() -> None:
    digits = load_digits()
    train, test = digits.split(0.25, seed=3)
    again = digits.split(0.25, seed=3)
    assert (len(train), len(test)) == (1348, 449)
    assert (train.sha256, test.sha256) == (again[0].sha256, again[1].sha256)
    assert digits.split(0.25, seed=4)[1].sha256 != test.sha256
    pixels = np.concatenate([train.images, test.images]).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(np.sort(pixels), np.sort(digits.images.sum(axis=(1, 2, 3))))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1e-5])
def test_split_leaves_two_parts(share: float) -> None:
    with pytest.raises(ValueError, match="held_out"):
        load_digits().split(share)
