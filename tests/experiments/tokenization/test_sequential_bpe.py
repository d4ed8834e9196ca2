"""Sequential BPE: one rule per text at most, log d occurrences at least, two encoders."""

import math

import numpy as np
import pytest

from experiments.tokenization import BPETokenizer, GreedyTokenizer, SequentialBPETokenizer, SplitTokenizer
from experiments.tokenization.sequential_bpe import learn_sequentially
from tests.experiments.tokenization.made_up import merge, pair_counts, random_sequence, switching_text

GENERATOR = np.random.default_rng(31)


@pytest.mark.parametrize("overlapping", [True, False])
def test_rules_follow_the_algorithm(overlapping: bool) -> None:
    size = 40
    texts = [random_sequence(GENERATOR, 3, 120) for _ in range(size)]
    expected: list[tuple[int, int]] = []
    for text in texts:
        tokens = text.tolist()
        for token, rule in enumerate(expected, start=3):
            tokens = merge(tokens, rule, token)
        counts = pair_counts(tokens, overlapping)
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=(0, 0))
        if counts[best] >= math.log(size):
            expected.append(best)
    assert 3 < len(expected) < len(texts) - 3
    assert learn_sequentially(texts, 3, size, overlapping=overlapping) == expected
    tokenizer = SequentialBPETokenizer.train(texts, size, epsilon=0.5, overlapping=overlapping)
    assert list(tokenizer.merges) == expected


def test_a_single_text_is_cut_and_a_rest_dropped() -> None:
    text = GENERATOR.integers(0, 2, 25 * 60 + 24)
    cut = SequentialBPETokenizer.train(text[: 25 * 60].reshape(25, 60), 25, epsilon=0.5)
    assert SequentialBPETokenizer.train([text], 25, epsilon=0.5).merges == cut.merges


def test_dictionary_never_outgrows_its_size() -> None:
    texts = np.tile(GENERATOR.integers(0, 2, 400), (10, 1))
    assert len(SequentialBPETokenizer.train(texts, 10, epsilon=0.5)) == 10


@pytest.mark.parametrize("epsilon", [0.05, 0.95])
def test_small_dictionaries_are_split_and_large_ones_greedy(epsilon: float) -> None:
    size = 100
    tokenizer = SequentialBPETokenizer.train([switching_text(0.8, size**2)], size, epsilon=epsilon)
    assert tokenizer.threshold == pytest.approx(epsilon * size / (2 * math.log(8)))
    bpe = BPETokenizer.from_merges((0, 1), tokenizer.merges)
    small = len(tokenizer) < tokenizer.threshold
    assert small == (epsilon == 0.95)
    same = SplitTokenizer(bpe, size) if small else GreedyTokenizer(bpe.vocabulary)
    sequence = switching_text(0.8, 5000, seed=1)
    np.testing.assert_array_equal(tokenizer.encode(sequence), same.encode(sequence))


@pytest.mark.parametrize("p", [0.1, 0.8])
def test_five_hundred_tokens_are_allowed_and_few_are_found(p: float) -> None:
    """A quarter of a million symbols teach some twenty tokens: log d occurrences in d symbols are many."""
    tokenizer = SequentialBPETokenizer.train([switching_text(p, 250_000)], 500, epsilon=0.5)
    assert 15 <= len(tokenizer) <= 32


@pytest.mark.parametrize(
    ("sequences", "epsilon", "message"),
    [
        ([[0, 1, 0]], 0.5, "sequences: got one text of 3 symbols; expected 5 texts, or one of at least 5 symbols"),
        ([[0, 1], [1, 0]], 0.5, "sequences: got 2 texts"),
        ([[0, 1] * 9], 0.0, "epsilon: got 0.0"),
        ([[0, 1] * 9], 1.0, "epsilon: got 1.0"),
        ([[0, 1] * 9], math.nan, "epsilon: got nan"),
    ],
)
def test_arguments_are_checked(sequences: list[list[int]], epsilon: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialBPETokenizer.train(sequences, 5, epsilon=epsilon)


@pytest.mark.parametrize("overlapping", [True, False])
def test_more_rules_never_make_the_most_frequent_pair_more_frequent(overlapping: bool) -> None:
    """Appendix B: an occurrence of a pair with a new token contains one of a pair that was there before."""
    for _ in range(300):
        alphabet = int(GENERATOR.integers(1, 4))
        tokens = random_sequence(GENERATOR, alphabet).tolist()
        most = max(pair_counts(tokens, overlapping).values(), default=0)
        for new in range(alphabet, alphabet + 6):
            tokens = merge(tokens, (int(GENERATOR.integers(new)), int(GENERATOR.integers(new))), new)
            before, most = most, max(pair_counts(tokens, overlapping).values(), default=0)
            assert most <= before
