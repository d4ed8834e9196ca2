"""Memory tasks: answers are where the definition says, nothing else tells them, what cannot be asked is refused."""

import jax
import numpy as np
import pytest

from experiments.sources.memory import associative_recall, distant_recall, induction_heads, selective_copying

KEY = jax.random.key(3)
ROWS = 20_000
EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)


def drawn(task, rows=300, **sizes):
    return jax.tree.map(np.asarray, jax.jit(lambda key: task(key, rows, **sizes))(KEY))


def test_copied_are_the_data_tokens_in_their_order():
    tokens, targets, asked = drawn(selective_copying, noise=7, data=3, alphabet=6)
    for row, answers, at in zip(tokens, targets, asked, strict=True):
        assert at.tolist() == [False] * 10 + [True] * 3
        assert answers[at].tolist() == [token for token in row[:10] if token != 0]
        assert row[10:].tolist() == [5, 5, 5] and not answers[~at].any()
    assert set(targets[asked]) == {1, 2, 3, 4}


def test_data_tokens_stand_anywhere():
    tokens, _, _ = drawn(selective_copying, rows=3000, noise=4, data=2, alphabet=16)
    # Each of 6 places has data in a third of the rows: five standard deviations.
    np.testing.assert_allclose((tokens[:, :6] > 0).mean(axis=0), 1 / 3, atol=5 * np.sqrt(2 / 9 / 3000))


def test_what_followed_the_trigger_is_asked_for_at_its_second_place():
    tokens, targets, asked = drawn(induction_heads, length=7, alphabet=5)
    places = []
    for row, answers, at in zip(tokens, targets, asked, strict=True):
        first, last = np.flatnonzero(row == 4)  # nowhere else
        assert last == 6 and at.tolist() == [False] * 6 + [True]
        assert answers[-1] == row[first + 1] != 4
        places.append(first)
    assert set(places) == set(range(5)) and set(targets[asked]) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("length", "alphabet"),
    [(17, 9), pytest.param(16, 8, marks=EXHAUSTIVE), pytest.param(12, 6, marks=EXHAUSTIVE)],
)
def test_values_are_asked_for_at_the_repeated_keys(length, alphabet):
    tokens, targets, asked = drawn(associative_recall, length=length, pairs=3, alphabet=alphabet)
    for row, answers, at in zip(tokens, targets, asked, strict=True):
        keys, values = row[:6:2], row[1:6:2]
        assert len(set(keys)) == len(set(values)) == 3 and max(keys) < alphabet // 2 <= min(values)
        pairs = dict(zip(keys, values, strict=True))
        assert sorted(row[at]) == sorted(keys) and not at[:6].any()
        assert answers[at].tolist() == [pairs[key] for key in row[at]] and not answers[~at].any()
    assert set(np.flatnonzero(asked.any(axis=0))) == set(range(6, 6 + 2 * ((length - 6) // 2), 2))
    kinds = tokens[:, :6:2], tokens[:, 1:6:2], tokens[:, 6:][~asked[:, 6:]]
    half = alphabet // 2
    assert [set(of_kind.ravel()) for of_kind in kinds] == [
        set(range(half)),
        set(range(half, alphabet)),
        set(range(alphabet)),
    ]


def test_queries_stand_as_often_as_the_power_law_says_and_tell_nothing():
    tokens, _, asked = drawn(associative_recall, rows=ROWS, length=10, pairs=1, alphabet=8, power=0.5)
    weights = np.arange(1, 5) ** -0.5
    expected = weights / weights.sum()
    deviation = 5 * np.sqrt(expected * (1 - expected) / ROWS)
    assert (np.abs(asked[:, 2::2].mean(axis=0) - expected) < deviation).all()
    # Of four keys, values and slots each, none is known from another.
    keys, values, slots = tokens[:, 0], tokens[:, 1] - 4, asked[:, 2::2].argmax(axis=1)
    for one, other in ((keys, values), (keys, slots), (values, slots)):
        together = np.bincount(4 * one + other, minlength=16) / ROWS
        alone = np.outer(np.bincount(one), np.bincount(other)).ravel() / ROWS**2
        assert (np.abs(together - alone) < 5 * np.sqrt(alone / ROWS)).all()


@pytest.mark.parametrize("shown", [1, 3])
def test_the_first_token_is_asked_for_at_the_last(shown):
    tokens, targets, asked = drawn(distant_recall, length=9, payloads=3, alphabet=7, shown=shown)
    assert (targets[:, -1:] == tokens[:, :shown]).all() and set(tokens[:, 0]) == {0, 1, 2}
    assert set(tokens[:, shown:-1].ravel()) == {3, 4, 5} and (tokens[:, -1] == 6).all()
    assert asked[:, -1].all() and not asked[:, :-1].any() and not targets[:, :-1].any()


@pytest.mark.parametrize(
    ("task", "sizes", "message"),
    [
        (selective_copying, {"noise": -1, "data": 1, "alphabet": 4}, "noise: got -1, expected at least 0"),
        (selective_copying, {"noise": 1, "data": 0, "alphabet": 4}, "data: got 0"),
        (selective_copying, {"noise": 1, "data": 1, "alphabet": 3}, "alphabet: got 3"),
        (induction_heads, {"length": 2, "alphabet": 4}, "length: got 2"),
        (associative_recall, {"length": 11, "pairs": 3, "alphabet": 8}, "length: got 11, expected at least 12"),
        (associative_recall, {"length": 12, "pairs": 3, "alphabet": 5}, "alphabet: got 5, expected at least 6"),
        (distant_recall, {"length": 9, "payloads": 3, "alphabet": 4}, "alphabet: got 4, expected at least 5"),
        (distant_recall, {"length": 3, "payloads": 2, "alphabet": 5, "shown": 3}, "length: got 3, expected at least 4"),
    ],
)
def test_what_cannot_be_asked_is_refused(task, sizes, message):
    with pytest.raises(ValueError, match=message):
        task(KEY, 2, **sizes)
