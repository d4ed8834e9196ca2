"""Exact losses of n-grams over greedy tokens on a Markov source, without sampling.

The greedy encoder knows a token once the symbols read cannot be the beginning of a longer one. What it has read beyond
that token is still pending: a string r, the beginning of what follows. Let b = (r, c), c the last max(k, 1) symbols up
to the end of r. Then b decides the law of the next token and of the next b, so these pairs form a Markov chain. With
its stationary law mu,

    Q_MLE(t) = sum_b mu(b) P(t | b),    J(t, u) = sum_{b, b'} mu(b) P(t, b' | b) P(u | b'),

the limits of the token and token-pair frequencies, and from them min_Q L = H(Q_MLE) / E|t| over unigrams and
(H(J) - H(Q_MLE)) / E|t| over bigrams, in nats per source symbol (arXiv 2404.08335, section 2 and remark A.2). Longer
windows of tokens give k-grams. In a prefix-closed dictionary (LZW, characters) a pending string is a single symbol.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from experiments.sources.markov import entropy, stationary_distribution
from experiments.sources.source import Source
from experiments.tokenization.greedy import GreedyTokenizer
from experiments.tokenization.tokenizer import Token

_MOST_WINDOWS = 2**24


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


def exact_losses(tokenizer: GreedyTokenizer, source: Source) -> ExactLosses:
    """Losses of the best unigram and the best bigram over greedy tokens.

    Args:
        tokenizer: greedy, over the symbols 0..A-1 of the source.
        source: the text's law.

    Returns:
        The losses.

    Raises:
        ValueError: if the tokenizer is not greedy, or the alphabet of its dictionary is not the source's.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> source = SwitchingSource(order=2, p=0.8, q=0.8)
        >>> losses = exact_losses(GreedyTokenizer([(0,), (1,)]), source)
        >>> round(losses.unigram, 6), round(losses.bigram, 6)
        (0.693147, 0.693147)
    """
    _, emitted, arriving = _flows(tokenizer, source)
    frequencies = np.asarray(arriving.sum(axis=1)).ravel()
    joint = (arriving @ emitted).tocsr()
    length = float(frequencies @ tokenizer.lengths)
    return ExactLosses(
        unigram=entropy(frequencies) / length,
        bigram=(entropy(joint.data) - entropy(frequencies)) / length,
        symbols_per_token=length,
        frequencies=frequencies,
    )


def exact_kgram_loss(tokenizer: GreedyTokenizer, source: Source, order: int) -> float:
    """Loss of the best k-gram over greedy tokens.

    L = (H_k - H_{k-1}) / E|t|, H_k the entropy of k consecutive tokens; it falls with k, at most to the entropy rate.

    Args:
        tokenizer: as in `exact_losses`.
        source: the text's law.
        order: k, 1 for the unigram.

    Returns:
        Nats per source symbol.

    Raises:
        ValueError: as `exact_losses`, or if `order` < 1, or there are more than 2**24 windows of k tokens.

    Example:
        >>> from experiments.sources import SwitchingSource
        >>> round(exact_kgram_loss(GreedyTokenizer([(0,), (1,)]), SwitchingSource(order=2, p=0.8, q=0.8), 3), 6)
        0.500402
    """
    if order < 1:
        raise ValueError(f"order: got {order}; expected 1 or more")
    if len(tokenizer) ** order > _MOST_WINDOWS:
        raise ValueError(f"order: got {order} with {len(tokenizer)} tokens; expected at most {_MOST_WINDOWS} windows")
    (starts, tokens, ends, weights), emitted, flow = _flows(tokenizer, source)
    states, size = emitted.shape
    step = scipy.sparse.csr_matrix((weights, (starts, tokens * states + ends)), shape=(states, size * states))
    length = float(np.asarray(flow.sum(axis=1)).ravel() @ tokenizer.lengths)
    if order == 1:
        return entropy(np.asarray(flow.sum(axis=1))) / length
    for _ in range(order - 2):
        flow = (flow @ step).tocoo().reshape((-1, states)).tocsr()
        flow = flow[np.diff(flow.indptr) > 0]
    return (entropy((flow @ emitted).tocsr().data) - entropy(np.asarray(flow.sum(axis=1)))) / length


def _flows(
    tokenizer: GreedyTokenizer, source: Source
) -> tuple[tuple[NDArray, ...], scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """All (b, t, b') with P(t, b' | b); P(t | b) as (states, d); the flow sum_b mu(b) P(t, b' | b) as (d, states)."""
    if not isinstance(tokenizer, GreedyTokenizer):
        raise ValueError(f"tokenizer: got a {type(tokenizer).__name__}; expected a greedy one")
    if tokenizer.alphabet != tuple(range(source.alphabet)):
        raise ValueError(f"tokenizer: got the alphabet {tokenizer.alphabet}; expected 0..{source.alphabet - 1}")
    emissions, states = _emissions(tokenizer.vocabulary, source)
    starts, tokens, ends, weights = emissions
    boundary = stationary_distribution(scipy.sparse.coo_matrix((weights, (starts, ends)), shape=(states, states)))
    size = len(tokenizer)
    emitted = scipy.sparse.coo_matrix((weights, (starts, tokens)), shape=(states, size)).tocsr()
    arriving = scipy.sparse.coo_matrix((boundary[starts] * weights, (tokens, ends)), shape=(size, states)).tocsr()
    return emissions, emitted, arriving


class _Parse:
    """The greedy encoder as an automaton on strings: beginnings of tokens, and what can be pending after a token."""

    def __init__(self, vocabulary: Sequence[Token], alphabet: int) -> None:
        """List both, given the tokens and A."""
        self.ids = {token: i for i, token in enumerate(vocabulary)}
        beginnings = {token[:length] for token in vocabulary for length in range(1, len(token) + 1)}
        self.longest: dict[Token, Token] = {}
        for node in sorted(beginnings, key=len):
            self.longest[node] = node if node in self.ids else self.longest[node[:-1]]
        self.pending: set[Token] = set()
        for string in [(*node, symbol) for node in self.longest for symbol in range(alphabet)]:
            while string not in self.longest:
                string = self.cut(string)[1]
                self.pending.add(string)

    def cut(self, string: Token) -> tuple[int, Token]:
        """The first token of a string that is no beginning of a token, and what is left of the string."""
        known = next(length for length in range(len(string) - 1, 0, -1) if string[:length] in self.longest)
        token = self.longest[string[:known]]
        return self.ids[token], string[len(token) :]


class _States:
    """Numbers of the states (pending string, context): a context is only combined with strings that it ends in."""

    def __init__(self, pending: Iterable[Token], order: int, alphabet: int) -> None:
        """Number them, given the length of a context and A."""
        self.first: dict[Token, int] = {}
        self.multiple: dict[Token, int] = {}
        self.begin: dict[Token, tuple[NDArray, ...]] = {}
        self.count = 0
        for string in sorted(pending):
            last = string[-order:]
            self.first[string], self.multiple[string] = self.count, alphabet ** len(last)
            agreeing = np.arange(int(np.polyval(last, alphabet)), alphabet**order, alphabet ** len(last))
            self.begin[string] = (self.count + np.arange(len(agreeing)), agreeing, np.ones(len(agreeing)))
            self.count += len(agreeing)

    def number(self, string: Token, context: NDArray) -> NDArray:
        """State of a pending string in each of some contexts."""
        return self.first[string] + context // self.multiple[string]


def _emissions(vocabulary: Sequence[Token], source: Source) -> tuple[tuple[NDArray, ...], int]:
    """All (b, token, b') with their probability P(token, b' | b), and the number of states b."""
    alphabet, order = source.alphabet, max(source.order, 1)
    contexts = alphabet**order
    # An i.i.d. source is one of order 1 with equal rows.
    rows = np.broadcast_to(source.kernel, (alphabet,) * (order + 1)).reshape(contexts, alphabet)
    parse = _Parse(vocabulary, alphabet)
    states = _States(parse.pending, order, alphabet)
    parts = []

    def emit(string: Token, start: NDArray, context: NDArray, weight: NDArray) -> None:
        token, rest = parse.cut(string)
        parts.append((start, np.full(len(start), token), states.number(rest, context), weight))

    # For each beginning of a token: the states from which it can be reached, the contexts there, the probabilities.
    reach: dict[Token, list[tuple[NDArray, ...]]] = {node: [] for node in parse.longest}
    for string, begin in states.begin.items():
        if string in reach:
            reach[string].append(begin)
        else:
            emit(string, *begin)
    for node in parse.longest:
        found = reach.pop(node)
        if not found:
            continue
        start, context, weight = (np.concatenate(column) for column in zip(*found, strict=True))
        for symbol in range(alphabet):
            onward = (start, (context * alphabet + symbol) % contexts, weight * rows[context, symbol])
            longer = (*node, symbol)
            if longer in parse.longest:
                reach[longer].append(onward)
            else:
                emit(longer, *onward)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True)), states.count
