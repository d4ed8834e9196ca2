"""Clipped rows: bounded below, laws, unchanged where nothing was to be clipped, and nearest in relative entropy."""

import jax
import numpy as np
import pytest

from experiments.sources.dirichlet import clip_rows, clipped_dirichlet_source

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
def test_clipped_rows_are_bounded_laws(size: int, share: float) -> None:
    rows = RANDOM.dirichlet(np.full(size, 0.3), (4, 50))
    minimum = share / size
    clipped = clip_rows(rows, minimum)
    assert clipped.shape == rows.shape
    assert clipped.min() >= minimum - 1e-15
    np.testing.assert_allclose(clipped.sum(axis=-1), 1, atol=1e-12)
    untouched = (rows >= minimum).all(axis=-1)
    np.testing.assert_allclose(clipped[untouched], rows[untouched], atol=1e-12)
    # Probabilities that are not clipped keep their proportions.
    ratio = np.where(clipped > minimum + 1e-12, clipped / rows, np.nan)
    spread = np.nanmax(ratio, axis=-1, initial=0) - np.nanmin(ratio, axis=-1, initial=9)
    assert np.all(spread[np.isfinite(ratio).any(axis=-1)] < 1e-9)


def test_clipping_of_two_symbols() -> None:
    rows = np.array([[0.01, 0.99], [0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_allclose(clip_rows(rows, 0.05), [[0.05, 0.95], [0.5, 0.5], [0.95, 0.05]], atol=1e-15)


def test_clipped_rows_are_nearest_in_relative_entropy() -> None:
    """Among random laws above the minimum, none is nearer, in either direction."""
    row, minimum = np.array([0.01, 0.03, 0.26, 0.7]), 0.08
    clipped = clip_rows(row, minimum)
    others = minimum + (1 - 4 * minimum) * RANDOM.dirichlet(np.ones(4), 20_000)
    others = np.concatenate([others, 0.999 * clipped + 0.001 * others])
    for divergence in (lambda p: (row * np.log(row / p)).sum(-1), lambda p: (p * np.log(p / row)).sum(-1)):
        assert divergence(others).min() >= divergence(clipped)


def test_a_source_with_clipped_rows() -> None:
    source = clipped_dirichlet_source(jax.random.key(3), order=4, minimum=0.05)
    free = clipped_dirichlet_source(jax.random.key(3), order=4, minimum=0.0)
    assert (source.order, source.alphabet) == (4, 2)
    assert source.kernel.min() >= 0.05
    assert free.kernel.min() < 0.05
    np.testing.assert_allclose(source.kernel, np.clip(free.kernel, 0.05, 0.95), atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "minimum", "message"),
    [
        ([0.5, 0.5], 0.6, "minimum: got 0.6"),
        ([0.5, 0.5], -0.1, "minimum: got -0.1"),
        ([0.5, 0.6], 0.1, "rows: got"),
        ([1.5, -0.5], 0.1, "rows: got"),
        ([np.nan, 0.5], 0.1, "rows: got"),
        (1.0, 0.1, "rows: got"),
        ([], 0.1, "rows: got"),
    ],
)
def test_arguments_are_checked(rows: object, minimum: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_rows(rows, minimum)  # type: ignore[arg-type]
