"""Bounds for sequential BPE: by hand, their limits, and their hypotheses."""

import math

import pytest

from experiments.sources import SwitchingSource, ThreeStateSource
from experiments.tokenization.sequential_bounds import (
    large_dictionary_bound,
    small_dictionary_bound,
    smallest_dictionary,
    theorem_4_7_bound,
    theorem_4_7_error,
)

SOURCE = SwitchingSource(1, 0.5, 0.25)
RATE = SOURCE.entropy_rate()


def test_by_hand() -> None:
    error = theorem_4_7_error(SOURCE, math.e**6, math.exp(-2), constant=3e-6)
    expected = 3e-6 * 2 * math.log(4) ** 3 * math.exp(2) * 4**9 / 6
    assert math.isclose(error, expected, rel_tol=1e-12)
    assert math.isclose(smallest_dictionary(2, 1000, 0.2), 100 / math.log(8), rel_tol=1e-12)


def test_two_cases_and_the_whole() -> None:
    """The small case is at most the whole bound; the large case is H_inf at a constant of 0."""
    size, epsilon = 500, 0.1
    d_0 = smallest_dictionary(2, size, epsilon)
    small = small_dictionary_bound(SOURCE, size, epsilon, 5, constant=0.0)
    assert math.isclose(small, (1 - 2 * d_0 / size) * 2 * RATE + 2 * d_0 / size * math.log(8), rel_tol=1e-12)
    assert small < theorem_4_7_bound(SOURCE, size, epsilon, constant=0.0)
    assert math.isclose(theorem_4_7_bound(SOURCE, size, epsilon, constant=0.0), 2 * RATE + epsilon, rel_tol=1e-12)
    assert large_dictionary_bound(SOURCE, size, epsilon, 400, constant=0.0) == RATE
    with_error = large_dictionary_bound(SOURCE, size, epsilon, 400, constant=1e-7)
    assert math.isclose(RATE / with_error, 1 - theorem_4_7_error(SOURCE, size, epsilon, constant=1e-7), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smallest_dictionary(2, 1, 0.5), "alphabet, size: got 2 and 1"),
        (lambda: smallest_dictionary(2, 9, 1.0), "epsilon: got 1.0"),
        (lambda: theorem_4_7_error(ThreeStateSource(0.1), 500, 0.1, constant=1.0), "source: got delta = 0.0"),
        (lambda: theorem_4_7_error(SwitchingSource(2, 0.5, 0.5), 500, 0.1, constant=1.0), "source: got order 2"),
        (lambda: theorem_4_7_error(SOURCE, 500, 0.1, constant=-1.0), "constant: got -1.0"),
        (lambda: large_dictionary_bound(SOURCE, 500, 0.1, 12, constant=0.0), "tokens: got 12; expected more than d_0"),
        (lambda: large_dictionary_bound(SOURCE, 500, 0.1, 400, constant=1.0), "eps' = .*; expected eps' below 1"),
        (lambda: small_dictionary_bound(SOURCE, 500, 0.1, 13, constant=0.0), "tokens: got 13; expected fewer"),
        (lambda: small_dictionary_bound(ThreeStateSource(0.1), 500, 0.1, 5, constant=0.0), "delta = 0.0"),
    ],
)
def test_hypotheses_are_enforced(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
