"""Encoding chunk by chunk."""

import numpy as np
import pytest

from experiments.tokenization import BPETokenizer, SplitTokenizer
from tests.experiments.tokenization.made_up import random_sequence

GENERATOR = np.random.default_rng(29)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000])
def test_each_chunk_is_encoded_by_itself(length: int) -> None:
    bpe = BPETokenizer.train(GENERATOR.integers(0, 2, (4, 300)), 40)
    split = SplitTokenizer(bpe, length)
    assert split.vocabulary == bpe.vocabulary
    sequences = [random_sequence(GENERATOR, 2) for _ in range(30)]
    for sequence, found in zip(sequences, split.encode_batch(sequences), strict=True):
        chunks = [sequence[start : start + length] for start in range(0, len(sequence), length)]
        assert found.tolist() == [token for chunk in chunks for token in bpe.encode(chunk).tolist()]
        np.testing.assert_array_equal(split.encode(sequence), found)


def test_length_is_checked() -> None:
    with pytest.raises(ValueError, match="length: got 0"):
        SplitTokenizer(BPETokenizer.train([[0, 1, 0, 1]], 3), 0)
