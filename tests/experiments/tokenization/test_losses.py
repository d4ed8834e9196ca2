"""Losses: counts, smoothing, the first token, and the identities between them."""

import math

import jax
import numpy as np
import pytest

from experiments.sources import SwitchingSource
from experiments.sources.markov import entropy
from experiments.tokenization import BPETokenizer, CharacterTokenizer, GreedyTokenizer, LZWTokenizer, Tokenizer
from experiments.tokenization.losses import NGram, held_out_loss, plug_in_loss
from experiments.tokenization.theory import log_probability

GENERATOR = np.random.default_rng(17)


def probability_by_definition(train: list, context: tuple, token: int, size: int, alpha: float) -> float:
    length = len(context)
    windows = [tuple(s[i : i + length + 1]) for s in train for i in range(len(s) - length)]
    seen = sum(window == (*context, token) for window in windows)
    total = sum(window[:-1] == context for window in windows)
    return (seen + alpha) / (total + alpha * size)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_log_probability_follows_the_definition(order: int, alpha: float) -> None:
    train = [GENERATOR.integers(0, 3, n).tolist() for n in (0, 1, 2, 9, 60)]
    test = [GENERATOR.integers(0, 4, n).tolist() for n in (0, 1, 2, 3, 25)]
    expected = sum(
        math.log(probability_by_definition(train, tuple(s[max(0, i - order + 1) : i]), s[i], 4, alpha))
        for s in test
        for i in range(len(s))
    )
    assert math.isclose(NGram.fit(train, 4, order, alpha).log_probability(test), expected, rel_tol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_probabilities_sum_to_one(order: int, alpha: float) -> None:
    """Over all strings of a length the context of which was seen."""
    train = [np.tile([0, 1, 2, 1, 0, 2, 2, 0, 0, 1, 1], 3)]
    model = NGram.fit(train, 3, order, alpha)
    strings = np.stack(np.meshgrid(*[np.arange(3)] * order, indexing="ij"), -1).reshape(-1, order)
    assert math.isclose(sum(math.exp(model.log_probability([s])) for s in strings), 1.0, abs_tol=1e-12)


def test_unigram_plug_in_is_entropy_over_mean_length() -> None:
    text = GENERATOR.integers(0, 2, 5000)
    tokenizer = LZWTokenizer.train([text], 60)
    ids = tokenizer.encode(text)
    frequencies = np.bincount(ids, minlength=len(tokenizer)) / len(ids)
    loss = plug_in_loss([ids], size=len(tokenizer), order=1, symbols=len(text))
    assert math.isclose(loss, entropy(frequencies) / float(frequencies @ tokenizer.lengths), rel_tol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_in_sample_is_below_any_other_fit(order: int) -> None:
    a, b = GENERATOR.integers(0, 5, (2, 3, 400))
    in_sample = plug_in_loss(list(b), size=5, order=order, symbols=b.size)
    for alpha in (0.01, 0.5, 10.0):
        assert in_sample <= held_out_loss(list(a), list(b), size=5, order=order, alpha=alpha, symbols=b.size)
    assert plug_in_loss(list(b), size=5, order=2, symbols=b.size) <= plug_in_loss(
        list(b), size=5, order=1, symbols=b.size
    )


def test_unseen_tokens_without_smoothing_cost_infinity() -> None:
    assert NGram.fit([[0, 0]], 2, 1, 0.0).log_probability([[1]]) == -math.inf
    assert NGram.fit([[0, 0]], 2, 2, 0.0).log_probability([[1, 0]]) == -math.inf
    assert NGram.fit([], 2, 1, 0.0).log_probability([[1]]) == -math.inf
    assert NGram.fit([], 4, 1, 2.0).log_probability([[1]]) == math.log(1 / 4)


def test_uniform_model_costs_the_log_of_the_dictionary() -> None:
    loss = held_out_loss([], [[0, 1, 2]], size=8, order=1, alpha=1.0, symbols=9)
    assert math.isclose(loss, math.log(8) * 3 / 9)


def test_laplace_estimate_improves_with_data() -> None:
    """KL(Q || Q_hat) falls with the number of tokens, on average over draws, like (d - 1) / 2n once n is large."""
    law = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])

    def divergence(n: int, seed: int) -> float:
        model = NGram.fit([np.random.default_rng(seed).choice(5, n, p=law)], size=5, order=1, alpha=1.0)
        return float(sum(q * (math.log(q) - model.log_probability([[token]])) for token, q in enumerate(law)))

    draws = np.array([[divergence(n, seed) for seed in range(200)] for n in (10, 100, 1000, 10_000)])
    means = draws.mean(axis=1)
    assert draws.min() > 0
    assert all(np.diff(means) < 0)
    assert abs(means[-1] - 2 / 10_000) < 4 * draws[-1].std() / math.sqrt(200)


@pytest.fixture(scope="module")
def texts() -> tuple[SwitchingSource, list[np.ndarray]]:
    source = SwitchingSource(2, 0.8, 0.8)
    return source, [np.asarray(source.sample(jax.random.key(i), (20, 10_000))) for i in range(3)]


def tokenizers(text: np.ndarray) -> list[Tokenizer]:
    bpe = [BPETokenizer.train(text, size) for size in (4, 10, 50)]
    return [CharacterTokenizer.train(text), *bpe, GreedyTokenizer(bpe[-1].vocabulary), LZWTokenizer.train(text, 100)]


def test_no_tokenizer_beats_the_source(texts: tuple) -> None:
    """Loss minus the source's own code length of the same text is positive, up to 3 standard errors over rows."""
    source, (train, fit, test) = texts
    oracle = -log_probability(source, test) / test.shape[1]
    for tokenizer in tokenizers(train):
        for order in (1, 2):
            model = NGram.fit(tokenizer.encode_batch(fit), len(tokenizer), order, 0.1)
            losses = [-model.log_probability([ids]) / test.shape[1] for ids in tokenizer.encode_batch(test)]
            redundancy = np.array(losses) - oracle
            error = redundancy.std() / math.sqrt(len(redundancy))
            assert redundancy.mean() > -3 * error, (type(tokenizer), order)


def test_tokens_score_a_part_of_all_strings(texts: tuple) -> None:
    """Q o enc scores a string by its one encoding, and not by others that decode to it: over all strings with the same
    number of tokens the scores sum to at most 1. The score of a string is the product of those of its tokens."""
    _, (train, _, _) = texts
    strings = np.stack(np.meshgrid(*[np.arange(2)] * 8, indexing="ij"), -1).reshape(-1, 8)
    for tokenizer in tokenizers(train):
        ids = tokenizer.encode_batch(strings)
        counts = np.array([len(row) for row in ids])
        for order in (1, 2):
            model = NGram.fit(tokenizer.encode_batch(train[:3]), len(tokenizer), order, 0.5)
            scores = np.array([model.log_probability([row]) for row in ids])
            assert all(np.exp(scores[counts == count]).sum() <= 1 + 1e-9 for count in set(counts.tolist()))
            begins = [model.log_probability([ids[37][:i]]) for i in range(len(ids[37]) + 1)]
            assert math.isclose(np.diff(begins).sum(), scores[37], rel_tol=1e-9)


def test_held_out_bigram_is_not_worse_than_unigram(texts: tuple) -> None:
    _, (train, fit, test) = texts
    for tokenizer in tokenizers(train):
        unigram, bigram = (
            held_out_loss(
                *(tokenizer.encode_batch(text) for text in (fit, test)),
                size=len(tokenizer),
                order=order,
                alpha=0.1,
                symbols=test.size,
            )
            for order in (1, 2)
        )
        assert bigram < unigram + 0.01


def test_character_losses_of_the_order_2_source(texts: tuple) -> None:
    """Adjacent characters are independent, so a bigram is no better than a unigram; a trigram is optimal."""
    source, (_, fit, test) = texts
    losses = [held_out_loss(fit, test, size=2, order=k, alpha=0.1, symbols=test.size) for k in (1, 2, 3)]
    oracle = -log_probability(source, test).sum() / test.size
    standard_error = math.log(4) * 0.4 / math.sqrt(test.size)
    assert abs(losses[0] - source.unigram_entropy()) < 1e-4
    assert abs(losses[1] - source.unigram_entropy()) < 1e-4
    assert abs(losses[2] - oracle) < 1e-3
    assert abs(losses[2] - source.entropy_rate()) < 4 * standard_error + 1e-3


def test_arguments_are_checked() -> None:
    for arguments, message in [
        ((2, 0, 0.1), "order: got 0"),
        ((2, 1, -0.1), "alpha: got -0.1"),
        ((2, 1, math.nan), "alpha: got nan"),
        ((2, 1, math.inf), "alpha: got inf"),
        ((0, 1, 0.1), "size: got 0"),
        ((3000, 6, 0.1), "order: got 6 with 3000 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            NGram.fit([[0, 1]], *arguments)
    with pytest.raises(ValueError, match=r"ids 0..2; expected ids in 0..1"):
        NGram.fit([[0, 2]], 2, 1, 0.1)
    with pytest.raises(ValueError, match=r"ids -1"):
        NGram.fit([[0]], 2, 1, 0.1).log_probability([[-1]])
    with pytest.raises(ValueError, match="symbols: got 0"):
        held_out_loss([[0]], [[0]], size=1, order=1, alpha=0.1, symbols=0)
