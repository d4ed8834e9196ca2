"""LZW: the parse of definition 4.4 and its token budget."""

import numpy as np
import pytest

from experiments.tokenization import LZWTokenizer

GENERATOR = np.random.default_rng(11)


def parse_by_definition(text: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shortest prefix of the rest that is not yet a token; an unfinished tail is dropped."""
    tokens: list[tuple[int, ...]] = []
    while True:
        length = next((n for n in range(1, len(text) + 1) if text[:n] not in tokens), None)
        if length is None:
            return tokens
        tokens.append(text[:length])
        text = text[length:]


def test_vector() -> None:
    assert LZWTokenizer.train([[0, 1, 0, 0, 1, 1, 1]], 100).vocabulary == ((0,), (1,), (0, 0), (1, 1))


@pytest.mark.parametrize("alphabet", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 33, 500])
def test_parse_follows_the_definition(alphabet: int, length: int) -> None:
    text = GENERATOR.integers(0, alphabet, length)
    expected = parse_by_definition(tuple(text.tolist()))
    found = LZWTokenizer.train([text], 10_000).vocabulary
    assert list(found[: len(expected)]) == expected
    assert all(len(token) == 1 for token in found[len(expected) :])
    assert len(found) <= length


@pytest.mark.parametrize("size", [4, 5, 9, 30, 10_000])
def test_budget_counts_single_symbols(size: int) -> None:
    text = np.concatenate([np.zeros(300, dtype=int), GENERATOR.integers(0, 3, 300)])
    tokenizer = LZWTokenizer.train([text], size, alphabet=4)
    assert len(tokenizer) <= size
    assert tokenizer.alphabet == (0, 1, 2, 3)
    assert size > 100 or len(tokenizer) == size
    assert tokenizer.prefix_closed
    assert set(tokenizer.vocabulary) >= {token[:-1] for token in tokenizer.vocabulary if len(token) > 1}


def test_a_smaller_budget_is_the_beginning_of_a_larger() -> None:
    # Both symbols are found at once: one that the parse misses comes last, so that it is elsewhere for another budget.
    text = [[0, 1, *GENERATOR.integers(0, 2, 3000)]]
    large = LZWTokenizer.train(text, 200).vocabulary
    for size in (2, 3, 10, 57):
        assert LZWTokenizer.train(text, size).vocabulary == large[:size]


def test_tokens_do_not_cross_sequences() -> None:
    assert LZWTokenizer.train([[0], [0], [0, 1]], 100).vocabulary == ((0,), (0, 1), (1,))


def test_training_rows_of_an_array_and_a_list_agree() -> None:
    rows = GENERATOR.integers(0, 3, (5, 40))
    assert LZWTokenizer.train(rows, 50).vocabulary == LZWTokenizer.train([r.tolist() for r in rows], 50).vocabulary


def test_prefix_training_reads_nothing_else() -> None:
    for length in (2, 3, 50, 400):
        text = GENERATOR.integers(0, 2, 400)
        tokenizer = LZWTokenizer.train_on_prefix(text, length, alphabet=2)
        expected = parse_by_definition(tuple(text[:length].tolist()))
        assert list(tokenizer.vocabulary[: len(expected)]) == expected
        assert len(tokenizer) <= length


@pytest.mark.parametrize(("length", "message"), [(0, "length: got 0"), (4, "length: got 4; expected 1..3")])
def test_a_prefix_lies_in_the_text(length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LZWTokenizer.train_on_prefix([0, 1, 1], length)
