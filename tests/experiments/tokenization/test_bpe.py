"""BPE: the dictionary against a trainer written out, the encoder against the rules applied in order and tiktoken."""

import numpy as np
import pytest

from experiments.tokenization import BPETokenizer
from experiments.tokenization.losses import plug_in_loss
from tests.experiments.tokenization.made_up import merge, random_sequence, switching_text, train_by_definition

GENERATOR = np.random.default_rng(13)


@pytest.mark.parametrize("alphabet", [2, 4])
def test_training_and_encoding_follow_the_definition(alphabet: int) -> None:
    texts = GENERATOR.integers(0, alphabet, (6, 512)) * GENERATOR.integers(0, 2, (6, 512))
    tokenizer = BPETokenizer.train(texts, alphabet + 25, alphabet=alphabet)
    rules = train_by_definition(texts.tolist(), alphabet, len(tokenizer))
    strings: list[tuple[int, ...]] = [(symbol,) for symbol in range(alphabet)]
    for left, right in rules:
        strings.append(strings[left] + strings[right])
    assert list(tokenizer.vocabulary) == strings
    assert list(tokenizer.merges) == rules
    for length in (0, 1, 2, 50, 400):
        tokens = GENERATOR.integers(0, alphabet, length).tolist()
        found = tokenizer.encode(tokens).tolist()
        for new, rule in enumerate(rules, start=alphabet):
            tokens = merge(tokens, rule, new)
        assert found == tokens


def test_training_text_is_cut_into_chunks() -> None:
    text = GENERATOR.integers(0, 2, 512 * 3 + 100)
    cut = [text[start : start + 512] for start in range(0, len(text), 512)]
    assert BPETokenizer.train([text], 40).vocabulary == BPETokenizer.train(cut, 40).vocabulary


def test_a_smaller_dictionary_is_the_beginning_of_a_larger() -> None:
    text = GENERATOR.integers(0, 2, (2, 3000))
    large = BPETokenizer.train(text, 60).vocabulary
    for size in (2, 3, 31):
        assert BPETokenizer.train(text, size).vocabulary == large[:size]


def test_a_text_too_short_for_the_dictionary_is_refused() -> None:
    with pytest.raises(ValueError, match="size: got 50, but the training text gives only"):
        BPETokenizer.train([[0, 1, 0, 1]], 50)


@pytest.mark.parametrize("alphabet", [6400, 6401, 65_534])
def test_large_alphabets(alphabet: int) -> None:
    tokenizer = BPETokenizer.train([[0, alphabet - 1] * 3], alphabet + 1, alphabet=alphabet)
    assert tokenizer.vocabulary[-1] in {(0, alphabet - 1), (alphabet - 1, 0)}
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode([alphabet - 1, 0, 5])), [alphabet - 1, 0, 5])
    with pytest.raises(ValueError, match="alphabet: got 65535"):
        BPETokenizer.train([], 70_000, alphabet=65_535)


def test_long_sequence_is_encoded_whole() -> None:
    tokenizer = BPETokenizer.train(GENERATOR.integers(0, 2, (20, 512)), 50)
    text = GENERATOR.integers(0, 2, 300_000)
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(text)), text)


def test_given_rules_encode_as_learned_ones() -> None:
    learned = BPETokenizer.train(GENERATOR.integers(0, 3, (5, 300)), 60)
    given = BPETokenizer.from_merges(learned.alphabet, learned.merges)
    assert given.vocabulary == learned.vocabulary
    for _ in range(50):
        sequence = random_sequence(GENERATOR, 3)
        np.testing.assert_array_equal(given.encode(sequence), learned.encode(sequence))


def test_given_rules_over_a_sparse_alphabet() -> None:
    tokenizer = BPETokenizer.from_merges((4, 9), [(0, 1), (2, 0)])
    assert tokenizer.vocabulary == ((4,), (9,), (4, 9), (4, 9, 4))
    assert tokenizer.encode([4, 9, 4, 4, 9]).tolist() == [3, 2]
    assert BPETokenizer.from_merges((0, 1), []).encode([1, 0]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("alphabet", "merges", "message"),
    [
        ((), [], "alphabet: got"),
        ((1, 0), [], "alphabet: got"),
        ((0, 0), [], "alphabet: got"),
        ((-1, 0), [], "alphabet: got"),
        ((0, 1), [(0, 2)], "merges: got \\(0, 2\\) as rule 0; expected ids in 0..1"),
        ((0, 1), [(0, 1), (-1, 2)], "as rule 1; expected ids in 0..2"),
        ((0,), [(0, 0), (1, 0), (0, 1)], "two rules that make the same string"),
    ],
)
def test_rules_are_checked(alphabet: tuple[int, ...], merges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BPETokenizer.from_merges(alphabet, merges)


@pytest.mark.parametrize("alphabet", [2, 5])
def test_whole_training_is_the_engine_s_where_that_does_not_cut(alphabet: int) -> None:
    texts = [GENERATOR.integers(0, alphabet, length) for length in (512, 1, 0, 77, 511)]
    whole = BPETokenizer.train_whole(texts, alphabet + 60)
    assert whole.vocabulary == BPETokenizer.train(texts, alphabet + 60).vocabulary


def test_whole_training_counts_across_what_the_engine_cuts() -> None:
    text = switching_text(0.7, 3000)
    rules = train_by_definition([text.tolist()], 2, 60)
    assert list(BPETokenizer.train_whole([text], 60).merges) == rules != list(BPETokenizer.train([text], 60).merges)
    with pytest.raises(ValueError, match="size: got 50, but the training text gives only 4 tokens"):
        BPETokenizer.train_whole([[0, 1, 0, 1]], 50)


def test_pathological_text_teaches_no_runs() -> None:
    """Equation 4: on (01)^n (10)^n ..., typical for slow order-2 switching, BPE learns nothing for long runs."""
    slow = switching_text(1 / 9, 100_000, order=2)
    pathological = BPETokenizer.train_whole([np.tile([0, 1] * 9 + [1, 0] * 9, 300)], 12)
    typical = BPETokenizer.train_whole([switching_text(1 / 9, 20_000, order=2, seed=1)], 12)
    ids = [tokenizer.encode(slow) for tokenizer in (pathological, typical)]
    loss = [plug_in_loss([found], size=12, order=1, symbols=len(slow)) for found in ids]
    assert (pathological.lengths[ids[0]] == 1).mean() > 0.8
    assert loss[0] > 0.95 * np.log(2) and loss[1] < 0.8 * np.log(2)


def test_encoding_equals_tiktoken() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    for alphabet, size in ((2, 10), (2, 200), (7, 90)):
        ours = BPETokenizer.train_whole([GENERATOR.integers(0, alphabet, 4000)], size)
        ranks = {bytes(token): i for i, token in enumerate(ours.vocabulary)}
        theirs = tiktoken.Encoding("made up", pat_str=r"(?s).+", mergeable_ranks=ranks, special_tokens={})
        for length in (0, 1, 2, 100, 3000):
            sequence = GENERATOR.integers(0, alphabet, length)
            assert ours.encode(sequence).tolist() == theirs.encode_ordinary(bytes(sequence.tolist()).decode("latin-1"))
