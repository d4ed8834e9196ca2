"""The unigram tokenizer: exactly as many tokens as asked for, none too long, the most likely encoding."""

import numpy as np
import pytest

from experiments.tokenization import UnigramTokenizer
from tests.experiments.tokenization.made_up import switching_text

GENERATOR = np.random.default_rng(41)


@pytest.mark.parametrize(("alphabet", "size"), [(2, 2), (2, 3), (2, 20), (5, 5), (5, 40)])
def test_size_and_alphabet(alphabet: int, size: int) -> None:
    """The engine's trainer never ends where size is the alphabet's, and on such a text returns one token too few."""
    tokenizer = UnigramTokenizer.train(GENERATOR.integers(0, alphabet, (3, 600)), size, alphabet=alphabet)
    assert len(tokenizer) == size
    assert tokenizer.alphabet == tuple(range(alphabet))


def test_symbols_never_seen_have_a_token() -> None:
    for text in ([0, 1] * 100, GENERATOR.integers(0, 2, 900)):
        for size in (5, 6, 8):
            tokenizer = UnigramTokenizer.train([text], size, alphabet=4)
            assert len(tokenizer) == size
            assert tokenizer.decode(tokenizer.encode([3, 2, 0, 1])).tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("size", [5, 6, 8, 9])
def test_rare_symbols_survive_the_cut(size: int) -> None:
    """Asked for `size`, the engine returns one token too few; asked for more, it ranks the symbols 2 and 3 last."""
    text = GENERATOR.integers(0, 2, (3, 600))
    text[0, [7, 14]] = 2, 3
    tokenizer = UnigramTokenizer.train(text, size)
    assert len(tokenizer) == size
    assert tokenizer.alphabet == (0, 1, 2, 3)


@pytest.mark.parametrize("longest", [2, 3, 16])
def test_tokens_are_no_longer_than_allowed(longest: int) -> None:
    tokenizer = UnigramTokenizer.train([switching_text(0.05, 3000)], 4, longest=longest)
    assert 1 < tokenizer.lengths.max() <= longest


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="size: got 50, but the training text gives only"):
        UnigramTokenizer.train([[0, 1, 0, 1]], 50)
    with pytest.raises(ValueError, match="longest: got 1"):
        UnigramTokenizer.train([[0, 1, 0, 1]], 2, longest=1)
