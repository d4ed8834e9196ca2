"""Learning merges on a linked text, against merging written out."""

import numpy as np
import pytest

from experiments.tokenization.merges import apply_merge, learn_merges, most_frequent_pair
from tests.experiments.tokenization.made_up import merge, pair_counts, random_sequence, train_by_definition

GENERATOR = np.random.default_rng(23)


@pytest.mark.parametrize("overlapping", [True, False])
def test_learned_merges_follow_the_definition(overlapping: bool) -> None:
    for _ in range(60):
        alphabet = int(GENERATOR.integers(1, 4))
        texts = [random_sequence(GENERATOR, alphabet, 150) for _ in range(GENERATOR.integers(1, 4))]
        expected = train_by_definition([text.tolist() for text in texts], alphabet, alphabet + 12, overlapping)
        assert learn_merges(texts, alphabet, alphabet + 12, overlapping=overlapping) == expected


def test_the_two_ways_of_counting_differ_on_runs() -> None:
    text = np.array([0, 0, 0, 0, 1, 0, 1, 0, 1])
    assert learn_merges([text], 2, 3) == [(0, 0)]
    assert learn_merges([text], 2, 3, overlapping=False) == [(0, 1)]


@pytest.mark.parametrize("text", [[], [0], [0, 0], [0] * 7])
def test_short_texts(text: list[int]) -> None:
    assert learn_merges([np.array(text, dtype=int)], 1, 5) == train_by_definition([text], 1, 5)


def test_merges_make_distinct_strings() -> None:
    """Lemma B.4."""
    strings = ["0", "1"]
    for left, right in learn_merges([GENERATOR.integers(0, 2, 20_000)], 2, 800):
        strings.append(strings[left] + strings[right])
    assert len(set(strings)) == len(strings) == 800


def test_one_merge_and_one_count() -> None:
    for _ in range(200):
        alphabet = int(GENERATOR.integers(1, 4))
        text = random_sequence(GENERATOR, alphabet)
        pair = (int(GENERATOR.integers(alphabet)), int(GENERATOR.integers(alphabet)))
        assert apply_merge(text, pair, 9).tolist() == merge(text.tolist(), pair, 9)
        for overlapping in (True, False):
            counts = pair_counts(text.tolist(), overlapping)
            best = min(counts, key=lambda pair: (-counts[pair], pair), default=(0, 0))
            assert most_frequent_pair(text, overlapping=overlapping) == (best, counts[best])
