"""Exact losses of n-grams over greedy tokens on a Markov source, without sampling.

With a prefix-closed dictionary (LZW, characters) the greedy encoder never steps back: a token ends at the first symbol
that does not continue it in the trie. Let b be the last max(k, 1) symbols up to and including the first symbol of a
token. Then b decides the law of that token and of the next b, so the token boundaries form a Markov chain on A**k
states. Its stationary law mu gives

    Q_MLE(t) = sum_b mu(b) P(t | b),    J(t, u) = sum_{b, b'} mu(b) P(t, b' | b) P(u | b'),

the limits of the token and token-pair frequencies, and from them min_Q L = H(Q_MLE) / E|t| over unigrams and
(H(J) - H(Q_MLE)) / E|t| over bigrams, in nats per source symbol (arXiv 2404.08335, section 2 and remark A.2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.sources.markov import MarkovSource, entropy, stationary_distribution
from experiments.sources.switching import SwitchingSource
from experiments.tokenization.greedy import GreedyTokenizer
from experiments.tokenization.tokenizer import Token


@dataclass(frozen=True)
class ExactLosses:
    """Least losses of models over the tokens of a text without end.

    Args:
        unigram: nats per source symbol of the best unigram over tokens.
        bigram: nats per source symbol of the best bigram over tokens.
        symbols_per_token: mean token length.
        frequencies: Q_MLE, (d,).
    """

    unigram: float
    bigram: float
    symbols_per_token: float
    frequencies: NDArray[np.float64]


def exact_losses(tokenizer: GreedyTokenizer, source: MarkovSource | SwitchingSource) -> ExactLosses:
    """Losses of the best unigram and the best bigram over greedy tokens.

    Args:
        tokenizer: greedy, prefix-closed, over the symbols 0..A-1 of the source.
        source: the text's law.

    Returns:
        The losses.

    Raises:
        ValueError: if the dictionary is not prefix-closed, or its alphabet is not the source's.

    Example:
        >>> source = SwitchingSource(order=2, p=0.8, q=0.8)
        >>> losses = exact_losses(GreedyTokenizer([(0,), (1,)]), source)
        >>> round(losses.unigram, 6), round(losses.bigram, 6)
        (0.693147, 0.693147)
    """
    if not tokenizer.prefix_closed:
        raise ValueError("tokenizer: got a dictionary that is not prefix-closed; expected every prefix to be a token")
    if tokenizer.alphabet != tuple(range(source.alphabet)):
        raise ValueError(f"tokenizer: got the alphabet {tokenizer.alphabet}; expected 0..{source.alphabet - 1}")
    emitted, arriving = _boundary_flows(tokenizer, _rows(source))
    frequencies = arriving.sum(axis=1)
    joint = arriving @ emitted
    length = float(frequencies @ tokenizer.lengths)
    return ExactLosses(
        unigram=entropy(frequencies) / length,
        bigram=(entropy(joint) - entropy(frequencies)) / length,
        symbols_per_token=length,
        frequencies=frequencies,
    )


def _rows(source: MarkovSource | SwitchingSource) -> NDArray[np.float64]:
    """Transition rows (A**k, A) of the source, an i.i.d. source seen as one of order 1."""
    alphabet = source.alphabet
    return np.broadcast_to(source.kernel, (alphabet,) * (max(source.order, 1) + 1)).reshape(-1, alphabet)


def _boundary_flows(
    tokenizer: GreedyTokenizer, rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(t | b) as (states, d), and the stationary flow sum_b mu(b) P(t, b' | b) as (d, states)."""
    starts, tokens, ends, weights = _emissions(tokenizer, rows)
    states, size = len(rows), len(tokenizer)
    transition = np.zeros((states, states))
    np.add.at(transition, (starts, ends), weights)
    boundary = stationary_distribution(transition)
    emitted, arriving = np.zeros((states, size)), np.zeros((size, states))
    np.add.at(emitted, (starts, tokens), weights)
    np.add.at(arriving, (tokens, ends), boundary[starts] * weights)
    return emitted, arriving


def _emissions(tokenizer: GreedyTokenizer, rows: NDArray[np.float64]) -> tuple[NDArray, ...]:
    """All (b, token, b') with their probability P(token, b' | b), found by walking the dictionary."""
    states, alphabet = rows.shape
    ids = {token: i for i, token in enumerate(tokenizer.vocabulary)}
    begin = np.arange(states)
    # For each token: the boundary states that it can start from, the contexts at its end, and its probability.
    reach: dict[Token, tuple[NDArray, ...]] = {}
    for symbol in range(alphabet):
        first = begin[symbol::alphabet]
        reach[(symbol,)] = (first, first, np.ones(len(first)))
    parts = []
    for token in sorted(tokenizer.vocabulary, key=len):
        start, context, weight = reach.pop(token)
        for symbol in range(alphabet):
            after = (context * alphabet + symbol) % states
            onward = weight * rows[context, symbol]
            longer = (*token, symbol)
            if longer in ids:
                reach[longer] = (start, after, onward)
            else:
                parts.append((start, np.full(len(start), ids[token]), after, onward))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
