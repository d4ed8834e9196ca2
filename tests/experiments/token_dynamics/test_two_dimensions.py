"""Two dimensions: matrices, outcomes, and what counts against which criterion."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.token_dynamics import two_dimensions
from experiments.token_dynamics.two_dimensions import (
    ALIGNED,
    CONVERGES,
    COUNTER_EXAMPLE,
    DIVERGES,
    DRAWN,
    OUTCOMES,
    RESTS,
    UNDECIDED,
    aligned,
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
        (np.zeros((2, 2)), np.eye(2), RESTS),
        (np.diag([1.0, -1.0]), np.zeros((2, 2)), RESTS),  # x^T M x = 0
    ],
)
def test_outcomes(M, s_delta, outcome):
    found = follow(replace(CPU, horizon=25.0), np.ones((1, 2)), np.array(M), np.array(s_delta))
    assert found.outcome == outcome
    np.testing.assert_array_equal(found.tokens[0], np.ones((1, 2)))


def test_a_token_that_comes_to_a_stand_away_from_the_origin_rests():
    """Its first coordinate grows less, as its steps close, until x^T M x = 0 to rounding."""
    M = np.diag([1.0, -0.5])
    found = follow(CPU, np.array([[1.0, 0.5]]), M, np.array([[-3.0, 0.0], [0.0, 3.0]]))
    (x,) = found.tokens[-1]
    assert found.outcome == RESTS and 1 < np.linalg.norm(x) < 10
    assert abs(x @ M @ x) < 1e-9 * (x @ x) < abs(np.array([1.0, 0.5]) @ M @ np.array([1.0, 0.5]))


def test_one_start_of_a_matrix_that_is_not_definite_can_converge_and_the_aligned_one_does_not():
    M, x0, still = np.diag([1.0, -0.5]), np.array([[0.3, 1.0]]), np.zeros((2, 2))
    assert follow(CPU, x0, M, still).outcome == CONVERGES
    start = aligned(x0, M)
    np.testing.assert_allclose(start, [[np.hypot(0.3, 1.0), 0.0]], atol=1e-15)
    assert follow(CPU, start, M, still).outcome == DIVERGES


def test_an_aligned_start_has_the_largest_form_of_its_length_and_keeps_the_other_tokens():
    random = np.random.default_rng(3)
    for _ in range(5):
        M, x0 = random.standard_normal((2, 2)), random.standard_normal((3, 2))
        made = aligned(x0, M)
        np.testing.assert_array_equal(made[1:], x0[1:])
        assert np.linalg.norm(made[0]) == pytest.approx(np.linalg.norm(x0[0])) and made[0] @ x0[0] >= 0
        angles = np.linspace(0, np.pi, 200)
        around = np.linalg.norm(x0[0]) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        assert made[0] @ M @ made[0] >= np.einsum("ai,ij,aj->a", around, M, around).max() - 1e-12


def test_too_many_steps_leave_it_undecided():
    assert follow(replace(CPU, steps=1), np.ones((1, 2)), -np.eye(2), np.eye(2)).outcome == UNDECIDED


def test_the_counter_example_diverges_with_negative_eigenvalues():
    M = np.array(COUNTER_EXAMPLE)
    assert eigenvalue_label(M) == "convergent" and scenario(M) == "mixed"
    tokens = two_dimensions._counter_example(CPU)
    assert np.linalg.norm(tokens[-1, 0]) > 5 * np.linalg.norm(tokens[0, 0])


def columns(*rows):
    """A row is cell, matrix, definite, the drawn outcome, and the aligned one if not definite."""
    names = ("cell", "matrix", "definite", "draw", "start", "outcome")
    told = [
        (*row[:3], number, start, outcome)
        for number, row in enumerate(rows)
        for start, outcome in zip((DRAWN, ALIGNED), row[3:], strict=False)
    ]
    return {name: np.array([row[i] for row in told]) for i, name in enumerate(names)}


def test_what_counts_against_which_criterion():
    found = of_one_seed(
        columns(
            ("two positive", "symmetric", False, DIVERGES, DIVERGES),
            ("two positive", "symmetric", False, UNDECIDED, UNDECIDED),  # tells nothing
            ("one positive", "symmetric", False, DIVERGES, UNDECIDED),  # nothing of the symmetric part
            ("one positive", "symmetric", False, UNDECIDED, DIVERGES),
            ("one positive", "symmetric", False, RESTS, RESTS),  # decided
            ("one positive", "non-symmetric", False, CONVERGES, DIVERGES),  # one start that converges is no objection
            ("two negative", "symmetric", True, CONVERGES),
            ("two negative", "symmetric", True, RESTS),  # against both
            ("two negative", "non-symmetric", True, CONVERGES),
            ("two negative", "non-symmetric", False, DIVERGES, DIVERGES),  # against the eigenvalues
            ("two negative", "non-symmetric", False, CONVERGES, RESTS),  # against the eigenvalues
            ("two negative", "non-symmetric", False, CONVERGES, CONVERGES),  # against the symmetric part
        )
    )
    assert found == {
        "Fig6-two-positive": 0.5,
        "Fig6-one-positive": 0.5,
        "Fig6-two-negative": 0.5,
        "higher-dimension-conjecture": pytest.approx(3 / 11),
        "symmetric-part-criterion": pytest.approx(2 / 10),
    }


def test_where_nothing_is_decided_there_is_no_number():
    found = of_one_seed(columns(("two negative", "symmetric", True, UNDECIDED)))
    assert np.isnan([found["higher-dimension-conjecture"], found["symmetric-part-criterion"]]).all()


def test_the_run_follows_every_cell(tmp_path):
    config = replace(CPU, seeds=(0, 5), trajectories=1, length=2, steps=60)
    result = two_dimensions.run(config, tmp_path)
    assert set(result.measured) == {claim.id for claim in two_dimensions.CLAIMS}
    assert all(len(values) == 2 for values in result.measured.values())
    rows = result.tables["trajectories"]
    assert rows["start"].count(DRAWN) == 2 * 6
    assert rows["start"].count(ALIGNED) == rows["definite"].count(False) - rows["definite"].count(False) // 2
    shares = result.tables["shares"]
    assert sum(sum(shares[outcome]) for outcome in OUTCOMES) == len(rows["outcome"])
    assert not any(of and start == ALIGNED for of, start in zip(shares["definite"], shares["start"], strict=True))
    assert len(result.series) == 7


@pytest.mark.parametrize(("field", "value"), [("trajectories", 0), ("length", 0), ("steps", 0), ("horizon", 0.0)])
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        replace(CPU, **{field: value})
