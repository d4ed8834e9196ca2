"""The three-state source: closed forms, the solved chain and samples agree."""

import math

import jax
import numpy as np
import pytest

from experiments.sources import MarkovSource, ThreeStateSource


@pytest.mark.parametrize("delta", [1e-6, 0.02, 0.3, 0.77, 1.0])
def test_closed_forms_equal_the_solved_chain(delta: float) -> None:
    source = ThreeStateSource(delta)
    solved = MarkovSource(source.kernel)
    np.testing.assert_allclose(solved.stationary, source.stationary, atol=1e-9)
    assert math.isclose(source.entropy_rate(), solved.entropy_rate(), rel_tol=1e-9)
    assert math.isclose(source.unigram_entropy(), math.log(8) / 2, rel_tol=1e-12)
    for r in (0, 1, 5):
        expected = source.unigram_entropy() + (r - 1) * source.entropy_rate() if r else 0.0
        assert math.isclose(source.block_entropy(r), expected, abs_tol=1e-9)


def test_samples_follow_the_kernel() -> None:
    source = ThreeStateSource(0.2)
    sample = np.asarray(source.sample(jax.random.key(0), (500, 101)))
    assert sample.dtype == np.int32
    for a in range(3):
        for b in range(3):
            share = np.mean((sample[:, :-1] == a) & (sample[:, 1:] == b), axis=1)
            expected = source.stationary[a] * source.kernel[a, b]
            assert abs(share.mean() - expected) < 4 * share.std() / math.sqrt(500) + 1e-9


@pytest.mark.parametrize("delta", [0.0, -0.1, 1.5, math.nan])
def test_delta_is_checked(delta: float) -> None:
    with pytest.raises(ValueError, match="delta: got .* expected a probability"):
        ThreeStateSource(delta)
