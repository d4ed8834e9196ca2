"""Losses that are known from an independent computation, in nats per symbol, to 0.003.

Each was computed from one random training text of 200,000 symbols (BPE) or 400,000 (LZW). Which dictionary that gave is
not known, and with few tokens dictionaries differ from text to text by more than the tolerance. So the known
value has to be that of a training text drawn here, or within the range of several.
"""

import jax
import numpy as np
import pytest

from experiments.sources import SwitchingSource
from experiments.tokenization import BPETokenizer, GreedyTokenizer, LZWTokenizer, MinimalTokenizer
from experiments.tokenization.exact import exact_losses
from experiments.tokenization.losses import held_out_loss, plug_in_loss
from experiments.tokenization.theory import block_loss

TOLERANCE = 0.003
SECOND, FIRST, RARE = SwitchingSource(2, 0.8, 0.8), SwitchingSource(1, 0.8, 0.8), SwitchingSource(1, 0.05, 0.05)


def training_texts(source: SwitchingSource, count: int, symbols: int) -> list[np.ndarray]:
    return [row[None] for row in np.asarray(source.sample(jax.random.key(0), (count, symbols)))]


def rows_of_512(source: SwitchingSource, seed: int, rows: int) -> np.ndarray:
    """Text that is encoded row by row, each as long as the pieces that BPE is trained on."""
    return np.asarray(source.sample(jax.random.key(seed), (rows, 512)))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_merged_tokens_of_the_second_order_source() -> None:
    """Unigram, in which four tokens are worse than none; bigram in-sample over the rows joined to one text, on as many
    symbols as the known losses were computed from, on which the bias of the latter depends."""
    train, test = training_texts(SECOND, 1, 200_000)[0], rows_of_512(SECOND, 91, 977)
    known = {4: (0.7571, 0.5082), 7: (0.6172, 0.5115), 10: (0.5675, 0.5125), 20: (0.5516, 0.5132)}
    known |= {50: (0.5410, 0.5118), 100: (0.5395, 0.5047), 200: (0.5387, 0.485), 500: (0.5401, 0.436)}
    known |= {1000: (0.5406, 0.388)}
    for size, losses in known.items():
        ids = BPETokenizer.train(train, size, alphabet=2).encode_batch(test)
        unigram = plug_in_loss(ids, size=size, order=1, symbols=test.size)
        bigram = plug_in_loss([np.concatenate(ids)], size=size, order=2, symbols=test.size)
        assert abs(unigram - losses[0]) < TOLERANCE, (size, unigram)
        assert abs(bigram - losses[1]) < TOLERANCE, (size, bigram)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "losses"),
    [
        (FIRST, {4: 0.6054, 7: 0.5576, 10: 0.5457, 20: 0.5408, 100: 0.5381}),
        (RARE, {10: 0.3176, 100: 0.2466, 1000: 0.2424}),
    ],
)
def test_merged_tokens_of_first_order_sources(source: SwitchingSource, losses: dict[int, float]) -> None:
    """Held out."""
    train = training_texts(source, 1, 200_000)[0]
    fit, test = rows_of_512(source, 90, 1000), rows_of_512(source, 91, 1000)
    for size, known in losses.items():
        tokenizer = BPETokenizer.train(train, size, alphabet=2)
        ids = [tokenizer.encode_batch(rows) for rows in (fit, test)]
        loss = held_out_loss(*ids, size=size, order=1, alpha=0.1, symbols=test.size)
        assert abs(loss - known) < TOLERANCE, (size, loss)


@pytest.mark.slow
def test_a_bigram_with_few_counts() -> None:
    """Over 500 tokens it falls below the entropy rate in-sample, and is above it held out."""
    tokenizer = BPETokenizer.train(training_texts(SECOND, 1, 200_000)[0], 500, alphabet=2)
    fit, test = (tokenizer.encode_batch(rows_of_512(SECOND, seed, 800)) for seed in (90, 91))
    in_sample = plug_in_loss(test, size=500, order=2, symbols=800 * 512)
    held_out = held_out_loss(fit, test, size=500, order=2, alpha=0.1, symbols=800 * 512)
    assert in_sample < SECOND.entropy_rate() - 0.03 < SECOND.entropy_rate() + 0.03 < held_out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "losses"),
    [
        (SECOND, {4: 0.8798, 7: 0.7038, 10: 0.6783, 20: 0.6196, 50: 0.6054, 100: 0.5785, 200: 0.5681, 500: 0.5585}),
        (SECOND, {1000: 0.5493}),
        (FIRST, {4: 0.5350, 10: 0.6131, 20: 0.5614, 100: 0.5513, 1000: 0.5314}),
        (RARE, {10: 0.2975, 100: 0.2347, 1000: 0.2202}),
    ],
)
def test_unigram_over_lzw_tokens(source: SwitchingSource, losses: dict[int, float]) -> None:
    """Exact for a dictionary; those of few tokens differ by up to 0.2 nats, and the known values are in the range."""
    texts = training_texts(source, 24, 20_000)
    for size, known in losses.items():
        found = [exact_losses(LZWTokenizer.train(text, size, alphabet=2), source).unigram for text in texts]
        assert min(found) - TOLERANCE < known < max(found) + TOLERANCE, (size, found)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_greedy_encoding_with_merged_dictionaries() -> None:
    """Exact for a dictionary; from 20 tokens on they differ, and the known values lie within their range."""
    texts = training_texts(SECOND, 4, 200_000)
    for size, known in {4: 0.7538, 7: 0.6103, 10: 0.5576, 20: 0.5403, 50: 0.5641, 100: 0.5666, 200: 0.5618}.items():
        tokenizers = [GreedyTokenizer(BPETokenizer.train(text, size, alphabet=2).vocabulary) for text in texts]
        found = [exact_losses(tokenizer, SECOND).unigram for tokenizer in tokenizers]
        assert min(found) - TOLERANCE < known < max(found) + TOLERANCE, (size, found)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_minimal_encoding_with_merged_dictionaries() -> None:
    """As above, in-sample. With ten tokens the ties decide: 0.5807 is that of the shortest first token, ours go to the
    longest last one (`test_lattice`)."""
    texts = training_texts(SECOND, 2, 200_000)
    fresh = np.asarray(SECOND.sample(jax.random.key(91), (1, 200_000)))[0]
    for size, known in {7: 0.6159, 20: 0.5547, 100: 0.5397}.items():
        found = []
        for text in texts:
            ids = MinimalTokenizer(BPETokenizer.train(text, size, alphabet=2).vocabulary).encode(fresh)
            found.append(plug_in_loss([ids], size=size, order=1, symbols=len(fresh)))
        assert min(found) - TOLERANCE < known < max(found) + TOLERANCE, (size, found)


def test_blocks() -> None:
    """The closed form, with r = floor(log2 d)."""
    known = {
        SECOND: {1: 0.6931, 2: 0.6931, 3: 0.6291, 4: 0.5971, 5: 0.5777, 6: 0.5647, 7: 0.5559, 8: 0.5486, 9: 0.5435},
        RARE: {3: 0.3641, 6: 0.2817, 9: 0.2543},
    }
    for source, losses in known.items():
        assert all(abs(block_loss(source, r) - loss) < TOLERANCE for r, loss in losses.items())
