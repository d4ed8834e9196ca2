"""Encoders with least total weight: against all segmentations, and against the engine's Viterbi."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models

from experiments.tokenization import (
    BPETokenizer,
    GreedyTokenizer,
    LatticeTokenizer,
    LZWTokenizer,
    MinimalTokenizer,
    UnigramTokenizer,
    ViterbiTokenizer,
)
from experiments.tokenization.losses import plug_in_loss
from tests.experiments.tokenization.made_up import random_dictionary, random_sequence, switching_text

GENERATOR = np.random.default_rng(19)


def segmentations(sequence: Sequence[int], vocabulary: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """All ways to write a sequence."""
    if not len(sequence):
        yield []
    for i, token in enumerate(vocabulary):
        if tuple(sequence[: len(token)]) == token:
            yield from ([i, *rest] for rest in segmentations(sequence[len(token) :], vocabulary))


def test_no_segmentation_is_cheaper() -> None:
    for _ in range(150):
        alphabet = int(GENERATOR.integers(1, 4))
        vocabulary = random_dictionary(GENERATOR, alphabet)[:9]
        vocabulary += [(symbol,) for symbol in range(alphabet) if (symbol,) not in vocabulary]
        weights = GENERATOR.normal(size=len(vocabulary)) + 0.5  # negative ones, too
        sequence = GENERATOR.integers(0, alphabet, GENERATOR.integers(0, 13)).tolist()
        fewest = MinimalTokenizer(vocabulary).encode(sequence)
        cheapest = LatticeTokenizer(vocabulary, weights).encode(sequence)
        everything = list(segmentations(sequence, vocabulary))
        assert cheapest.tolist() in everything and fewest.tolist() in everything
        assert len(fewest) == min(map(len, everything))
        np.testing.assert_allclose(
            weights[cheapest].sum(), min(weights[ids].sum() for ids in everything), rtol=1e-12, atol=1e-12
        )


def test_minimal_needs_no_more_tokens_than_any_other_encoder() -> None:
    text = GENERATOR.integers(0, 3, (4, 500))
    bpe, lzw = BPETokenizer.train(text, 60), LZWTokenizer.train(text, 60)
    for tokenizer in (bpe, GreedyTokenizer(bpe.vocabulary), lzw):
        minimal = MinimalTokenizer(tokenizer.vocabulary)
        for _ in range(50):
            sequence = random_sequence(GENERATOR, 3)
            assert len(minimal.encode(sequence)) <= len(tokenizer.encode(sequence))


def test_minimal_is_the_lattice_with_weight_one() -> None:
    for prefix_closed in (False, True):
        for _ in range(50):
            vocabulary = random_dictionary(GENERATOR, 2)
            if prefix_closed:
                vocabulary = sorted({token[:n] for token in vocabulary for n in range(1, len(token) + 1)})
            minimal = MinimalTokenizer(vocabulary)
            lattice = LatticeTokenizer(vocabulary, np.ones(len(vocabulary)))
            sequence = random_sequence(GENERATOR, 2)
            np.testing.assert_array_equal(minimal.encode(sequence), lattice.encode(sequence))


def test_ties_decide_what_a_minimal_encoding_loses() -> None:
    """Ten BPE tokens of the order-2 source: the greedy encoding is a minimal one. Ties that go to the longest first
    token (ours, of the reversed text) lose as little as it, those that go to the longest last one 0.017 nats more."""
    tokens = ("0", "1", "00", "11", "1100", "100", "11001100", "110", "11100", "10")
    vocabulary = [tuple(map(int, token)) for token in tokens]
    text = switching_text(0.8, 60_000, order=2)
    greedy, last = GreedyTokenizer(vocabulary).encode(text), MinimalTokenizer(vocabulary).encode(text)
    first = MinimalTokenizer([token[::-1] for token in vocabulary]).encode(text[::-1])[::-1]
    assert len(greedy) == len(last) == len(first)
    losses = [plug_in_loss([ids], size=10, order=1, symbols=len(text)) for ids in (greedy, last, first)]
    assert abs(losses[2] - losses[0]) < 1e-3 < 0.015 < losses[1] - losses[0] < 0.02


def test_ties_go_to_the_longest_last_token() -> None:
    assert MinimalTokenizer([(0,), (0, 0), (0, 0, 0)]).encode([0, 0, 0, 0]).tolist() == [0, 2]


@pytest.mark.parametrize("alphabet", [2, 5])
def test_viterbi_scores_as_the_engine_does(alphabet: int) -> None:
    ours = UnigramTokenizer.train(GENERATOR.integers(0, alphabet, (4, 400)), 40)
    random = ViterbiTokenizer(ours.vocabulary, np.log(GENERATOR.dirichlet(np.ones(len(ours)))))
    for tokenizer in (ours, random):
        pieces = ["".join(chr(97 + symbol) for symbol in token) for token in tokenizer.vocabulary]
        engine = Engine(models.Unigram(list(zip(pieces, tokenizer.log_probabilities.tolist(), strict=True))))
        for length in (0, 1, 2, 50, 2000):
            sequence = GENERATOR.integers(0, alphabet, length)
            theirs = engine.encode("".join(chr(97 + symbol) for symbol in sequence)).ids
            scores = tokenizer.log_probabilities[tokenizer.encode(sequence)].sum()
            np.testing.assert_allclose(scores, tokenizer.log_probabilities[theirs].sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"got shape \(1,\); expected \(3,\)"),
        ([[1.0, 1.0, 1.0]], r"got shape \(1, 3\)"),
        ([], r"got shape \(0,\)"),
        ([1.0, np.nan, 1.0], "got nan; expected finite"),
        ([1.0, 1.0, -np.inf], "got -inf; expected finite"),
    ],
)
def test_weights_are_checked(weights: list, message: str) -> None:
    for kind, name in ((LatticeTokenizer, "weights"), (ViterbiTokenizer, "log_probabilities")):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            kind([(0,), (1,), (0, 1)], weights)


@pytest.mark.parametrize("kind", [MinimalTokenizer, lambda tokens: ViterbiTokenizer(tokens, np.zeros(len(tokens)))])
def test_single_symbols_are_needed(kind: type[MinimalTokenizer]) -> None:
    with pytest.raises(ValueError, match="the symbol 1 is part of a token"):
        kind([(0,), (0, 1)])
