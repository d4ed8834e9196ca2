"""Two dimensions: matrices, outcomes, and what counts against which criterion."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.token_dynamics import two_dimensions
from experiments.token_dynamics.two_dimensions import (
    CONVERGES,
    COUNTER_EXAMPLE,
    DIVERGES,
    UNDECIDED,
    follow,
    matrix,
    of_one_seed,
)
from ssm.dynamics import eigenvalue_label, scenario

CPU = two_dimensions.PRESETS["cpu"]


@pytest.mark.parametrize("kind", two_dimensions.KINDS)
@pytest.mark.parametrize("eigenvalues", two_dimensions.CELLS.values())
def test_matrices_have_their_eigenvalues(kind, eigenvalues):
    random = np.random.default_rng(0)
    made = [matrix(random, eigenvalues, kind) for _ in range(5)]
    for M in made:
        np.testing.assert_allclose(np.sort(np.linalg.eigvals(M).real), sorted(eigenvalues), atol=1e-9)
        assert (np.abs(M - M.T).max() < 1e-9) == (kind == "symmetric")
    assert np.abs(made[0] - made[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("M", "s_delta", "outcome"),
    [
        (np.eye(2), np.zeros((2, 2)), DIVERGES),  # blows up
        (np.eye(2), [[-1.0, -1.0], [-1.0, -1.0]], DIVERGES),  # tenfold at last
        (-np.eye(2), np.eye(2), CONVERGES),
        (np.zeros((2, 2)), np.eye(2), UNDECIDED),
        (np.diag([1.0, -1.0]), np.zeros((2, 2)), UNDECIDED),  # x^T M x = 0
    ],
)
def test_outcomes(M, s_delta, outcome):
    found = follow(replace(CPU, horizon=25.0), np.ones((1, 2)), np.array(M), np.array(s_delta))
    assert found.outcome == outcome
    np.testing.assert_array_equal(found.tokens[0], np.ones((1, 2)))


def test_too_many_steps_leave_it_undecided():
    assert follow(replace(CPU, steps=1), np.ones((1, 2)), -np.eye(2), np.eye(2)).outcome == UNDECIDED


def test_the_counter_example_diverges_with_negative_eigenvalues():
    M = np.array(COUNTER_EXAMPLE)
    assert eigenvalue_label(M) == "convergent" and scenario(M) == "mixed"
    tokens = two_dimensions._counter_example(CPU)
    assert np.linalg.norm(tokens[-1, 0]) > 5 * np.linalg.norm(tokens[0, 0])


def columns(*rows):
    names = ("cell", "matrix", "definite", "outcome")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def test_what_counts_against_which_criterion():
    found = of_one_seed(
        columns(
            ("two positive", "symmetric", False, DIVERGES),
            ("two positive", "symmetric", False, UNDECIDED),
            ("one positive", "symmetric", False, DIVERGES),
            ("one positive", "symmetric", False, UNDECIDED),
            ("two negative", "symmetric", True, CONVERGES),
            ("two negative", "non-symmetric", True, CONVERGES),
            ("two negative", "non-symmetric", False, DIVERGES),  # against the eigenvalues
            ("two negative", "non-symmetric", False, CONVERGES),  # against the symmetric part
        )
    )
    assert found == {
        "Fig6-two-positive": 0.5,
        "Fig6-one-positive": 1.0,
        "Fig6-two-negative": pytest.approx(2 / 3),
        "higher-dimension-conjecture": pytest.approx(1 / 6),
        "symmetric-part-criterion": pytest.approx(1 / 6),
    }


def test_the_run_follows_every_cell(tmp_path):
    config = replace(CPU, seeds=(0, 5), trajectories=1, length=2, steps=60)
    result = two_dimensions.run(config, tmp_path)
    assert set(result.measured) == {claim.id for claim in two_dimensions.CLAIMS}
    assert all(len(values) == 2 for values in result.measured.values())
    assert len(result.tables["trajectories"]["outcome"]) == 2 * 6
    assert sum(sum(result.tables["shares"][name]) for name in (CONVERGES, DIVERGES, UNDECIDED)) == 12
    assert len(result.series) == 7


@pytest.mark.parametrize(("field", "value"), [("trajectories", 0), ("length", 0), ("steps", 0), ("horizon", 0.0)])
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        replace(CPU, **{field: value})
