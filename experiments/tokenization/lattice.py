"""Encoders that minimise a total over the tokens, with any dictionary: fewest tokens, or most likely under a unigram.

The cheapest way to write the first j symbols is

    C[0] = 0,    C[j] = min over tokens t that end the first j symbols of C[j - |t|] + w(t),

with w = 1 for the minimal encoder (arXiv 2404.08335, definition E.1) and w(t) = -log Q(t) for the Viterbi encoder
(Kudo, "Subword Regularization", arXiv 1804.10959). The tokens that end at a position are those of the state of the
Aho-Corasick automaton of the dictionary (Communications of the ACM 18(6), 1975): one look-up per symbol.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import add, itemgetter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.tokenization.tokenizer import Ids, Tokenizer
from experiments.tokenization.trie import Table, Trie


class LatticeTokenizer(Tokenizer):
    """Any dictionary that contains the single symbols, with the encoder that minimises the sum of the token weights.

    Among equally cheap encodings it takes the one whose last token is longest, then the one before it, and so on.

    Args:
        vocabulary: the tokens; every symbol that occurs in one must be a token by itself.
        weights: w of each token, finite.

    Raises:
        ValueError: if a symbol is missing as a token, or there is not one finite weight per token.

    Example:
        >>> LatticeTokenizer([(0,), (1,), (0, 1)], [1.0, 1.0, 3.0]).encode([0, 1]).tolist()
        [0, 1]
    """

    def __init__(self, vocabulary: Iterable[Sequence[int]], weights: ArrayLike) -> None:
        """Check that encoding is total and the weights are numbers."""
        super().__init__(vocabulary)
        self._trie = Trie.of(self.vocabulary)
        self.weights = _finite(weights, "weights", len(self))

    @cached_property
    def _automaton(self) -> "SuffixAutomaton":
        return SuffixAutomaton(self._trie)

    @cached_property
    def _arriving(self) -> Table[tuple]:
        """For each state: a getter of C[j - |t|], and w(t), for the tokens t that end there."""

        def arriving(state: int) -> tuple:
            tokens = self._candidates(state)
            # A token given twice makes itemgetter return a tuple where there is one token only.
            twice = (*tokens, tokens[-1])
            lengths, weights = self.lengths[list(twice)], self.weights[list(twice)]
            return itemgetter(*(-lengths).tolist()), weights.tolist()

        return Table(arriving)

    def _candidates(self, state: int) -> Sequence[int]:
        """The tokens among which the last one may be chosen, longest first."""
        return self._automaton.ending[state]

    def _encode(self, sequence: NDArray[np.int64]) -> Ids:
        return self._traced(*self._cheapest(self._trie.indices(sequence)))

    def _cheapest(self, symbols: list[int]) -> tuple[list[float], list[int]]:
        """C[0], C[1], ... and the states of the automaton."""
        onward, arriving = self._automaton.onward, self._arriving
        costs, states = [0.0], [0]
        keep_cost, keep_state = costs.append, states.append
        state = 0
        for symbol in symbols:
            state = onward[state + symbol]
            before, weights = arriving[state]
            keep_cost(min(map(add, before(costs), weights)))
            keep_state(state)
        return costs, states

    def _traced(self, costs: list[float], states: list[int]) -> Ids:
        """The tokens of the cheapest path, from its end back."""
        ids: list[int] = []
        position = len(costs) - 1
        lengths, weights = self.lengths.tolist(), self.weights.tolist()
        while position:
            token = next(
                token
                for token in self._candidates(states[position])
                if costs[position - lengths[token]] + weights[token] == costs[position]
            )
            ids.append(token)
            position -= lengths[token]
        return np.array(ids[::-1], dtype=np.int32)


class MinimalTokenizer(LatticeTokenizer):
    """Any dictionary that contains the single symbols, with as few tokens as possible.

    The definition leaves ties open, and they matter: with ten BPE tokens of the order-2 switching source the best
    unigram's loss depends on them by 0.02 nats. Here they go to the longest last token.

    Args:
        vocabulary: the tokens; every symbol that occurs in one must be a token by itself.

    Raises:
        ValueError: if a symbol is missing as a token: encoding would not be total.

    Example:
        >>> MinimalTokenizer([(0,), (1,), (0, 1), (1, 1, 1)]).encode([0, 1, 1, 1]).tolist()
        [0, 3]
    """

    def __init__(self, vocabulary: Iterable[Sequence[int]]) -> None:
        """Give every token the weight 1."""
        tokens = list(vocabulary)
        super().__init__(tokens, np.ones(len(tokens)))

    def _candidates(self, state: int) -> Sequence[int]:
        # If every prefix of a token is a token then C never falls, so the longest token leaves the least.
        ending = self._automaton.ending[state]
        return ending[:1] if self._trie.prefix_closed else ending

    def _cheapest(self, symbols: list[int]) -> tuple[list[float], list[int]]:
        # All weights are equal: the minimum first, then one addition.
        onward, arriving = self._automaton.onward, self._arriving
        costs, states = [0.0], [0]
        keep_cost, keep_state = costs.append, states.append
        state = 0
        for symbol in symbols:
            state = onward[state + symbol]
            keep_cost(min(arriving[state][0](costs)) + 1.0)
            keep_state(state)
        return costs, states


class ViterbiTokenizer(LatticeTokenizer):
    """Any dictionary that contains the single symbols, with the encoding that is most likely under a unigram Q.

    Args:
        vocabulary: the tokens; every symbol that occurs in one must be a token by itself.
        log_probabilities: log Q of each token in nats, finite: smooth the frequencies of tokens never seen.

    Raises:
        ValueError: if a symbol is missing as a token, or there is not one finite log probability per token.

    Example:
        >>> tokenizer = ViterbiTokenizer([(0,), (1,), (0, 1)], np.log([0.6, 0.39, 0.01]))
        >>> tokenizer.encode([0, 1]).tolist()
        [0, 1]
    """

    def __init__(self, vocabulary: Iterable[Sequence[int]], log_probabilities: ArrayLike) -> None:
        """Weigh every token by -log Q."""
        tokens = list(vocabulary)
        self.log_probabilities = _finite(log_probabilities, "log_probabilities", len(tokens))
        super().__init__(tokens, -self.log_probabilities)


def _finite(values: ArrayLike, name: str, tokens: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (tokens,):
        raise ValueError(f"{name}: got shape {array.shape}; expected ({tokens},), one number per token")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got {array[~np.isfinite(array)][0]}; expected finite numbers")
    return array


class SuffixAutomaton:
    """The Aho-Corasick automaton of a dictionary: its state is the longest end of the text that begins a token.

    Args:
        trie: the dictionary; its nodes are the states.

    Example:
        >>> automaton = SuffixAutomaton(Trie.of([(0,), (1,), (0, 1, 0), (1, 0)]))
        >>> state = 0
        >>> for symbol in [0, 1, 0, 1]:
        ...     state = automaton.onward[state + symbol]
        >>> automaton.ending[state]
        [1]
    """

    def __init__(self, trie: Trie) -> None:
        """Tabulate, for each state, the state of the longest proper end, and the tokens that end there."""
        self._trie = trie
        self._shorter: dict[int, int] = {0: 0}
        self.onward: Table[int] = Table(self._onward)
        self.onward.update(trie.children)
        self.ending: dict[int, list[int]] = {0: []}  # longest first
        alphabet = len(trie.alphabet)
        for key, node in trie.by_depth():
            symbol = key % alphabet
            parent = key - symbol
            shorter = self.onward[self._shorter[parent] + symbol] if parent else 0
            own = [trie.token_at[node]] if node in trie.token_at else []
            self._shorter[node] = shorter
            self.ending[node] = own + self.ending[shorter] if own else self.ending[shorter]

    def _onward(self, key: int) -> int:
        symbol = key % len(self._trie.alphabet)
        state = key - symbol
        while state + symbol not in self._trie.children:
            state = self._shorter[state]
        return self._trie.children[state + symbol]
