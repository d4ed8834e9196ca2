"""SeqPE: digits, its two auxiliary losses, and the positions that these are taken at."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lightnet.mixers import SoftmaxAttention
from lightnet.positions import (
    SeqPE,
    auxiliary_losses,
    contrastive_loss,
    contrastive_positions,
    distillation_loss,
    grid_coordinates,
    position_digits,
    shifted_blocks,
    squared_distance,
)

ENCODER = SeqPE(16, mixer=partial(SoftmaxAttention, num_heads=2), grid=(3, 3), num_digits=2, base=4, num_layers=1)

candidates_of = jax.jit(contrastive_positions, static_argnums=(1, 2, 3, 4, 5))


@pytest.mark.parametrize(("base", "num_digits"), [(10, 3), (2, 7), (16, 2)])
def test_digits_are_those_of_the_number(base, num_digits):
    numbers = np.random.default_rng(0).integers(0, 100, (4, 5, 2))
    digits = np.asarray(position_digits(numbers, num_digits, base)).reshape(4, 5, 2, num_digits)
    assert digits.min() >= 0 and digits.max() < base
    assert np.array_equal(digits @ base ** np.arange(num_digits)[::-1], numbers)
    assert position_digits(np.array([7]), 3).tolist() == [0, 0, 7]


@pytest.mark.slow
def test_known_positions_are_checked_while_a_program_is_traced():
    variables = jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, 9, 16)))
    inside, outside = jnp.array([[0, 15]]), jnp.array([[0, 16]])
    assert jax.jit(lambda v: ENCODER.apply(v, inside, method="embed"))(variables).shape == (1, 16)
    with pytest.raises(ValueError, match="got a token at position 16, expected positions below 16"):
        jax.jit(lambda v: ENCODER.apply(v, outside, method="embed"))(variables)


def test_each_digit_of_each_axis_counts():
    variables = jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, 9, 16)))
    variables = jax.tree.map(lambda w: w + 0.3 * jax.random.normal(jax.random.key(w.size), w.shape), variables)
    embed = jax.jit(partial(ENCODER.apply, method="embed"))
    vectors = np.asarray(embed(variables, jnp.array([[0, 0], [1, 0], [4, 0], [0, 1], [0, 4], [15, 15]])))
    assert np.abs(vectors[:, None] - vectors[None]).max(axis=-1)[~np.eye(6, dtype=bool)].min() > 1e-2
    # A position has one vector, wherever it stands in the batch.
    again = embed(variables, jnp.array([[4, 0], [0, 0], [0, 0], [0, 4], [1, 0], [0, 0]]))
    np.testing.assert_allclose(again[0], vectors[2], rtol=1e-5, atol=1e-5)


def test_the_contrastive_loss_is_the_cross_entropy_of_the_closest():
    random = np.random.default_rng(1)
    pivots, candidates = random.standard_normal((3, 4)), random.standard_normal((3, 5, 4))
    distances = random.random((3, 5))
    expected = []
    for pivot, row, distance in zip(pivots, candidates, distances, strict=True):
        weights = np.exp(0.5 * row @ pivot)
        expected.append(-np.log(weights[np.argmin(distance)] / weights.sum()))
    with jax.enable_x64(True):
        np.testing.assert_allclose(contrastive_loss(pivots, candidates, distances, 0.5), np.mean(expected), rtol=1e-12)
        with pytest.raises(ValueError, match=r"candidates: got float64\[3, 4\], expected a float array \(P, C, D\)"):
            contrastive_loss(pivots, pivots, distances)


def test_the_distillation_loss_is_the_divergence_in_both_directions():
    random = np.random.default_rng(2)
    student, teacher = random.standard_normal((2, 4, 3)), random.standard_normal((1, 4, 3))

    def rows(e):
        weights = np.exp(np.einsum("bnd,bmd->bnm", e, e))
        return weights / weights.sum(axis=-1, keepdims=True)

    p, q = np.broadcast_to(rows(teacher), (2, 4, 4)), rows(student)
    expected = (p * np.log(p / q) + q * np.log(q / p)).sum(axis=-1).mean()
    with jax.enable_x64(True):
        np.testing.assert_allclose(distillation_loss(student, teacher), expected, rtol=1e-12)
        gradient = jax.jit(jax.grad(distillation_loss, argnums=(0, 1)))
        assert np.all(np.asarray(gradient(student, teacher)[1]) == 0)
        assert np.abs(gradient(teacher, teacher)[0]).max() < 1e-15 and distillation_loss(teacher, teacher) == 0
        with pytest.raises(ValueError, match=r"teacher: got float64\[3, 4, 3\], expected .*1 or B"):
            distillation_loss(student, np.zeros((3, 4, 3)))


@pytest.mark.parametrize(("extent", "window", "count"), [((5, 4), 3, 19), ((30,), 6, 8)])
def test_candidates_are_distinct_and_none_is_the_pivot(extent, window, count):
    pivots, candidates = candidates_of(jax.random.key(3), 40, count, extent, window, 0.5)
    flat = [np.ravel_multi_index(tuple(np.moveaxis(np.asarray(c), -1, 0)), extent) for c in (pivots, candidates)]
    for pivot, row in zip(*flat, strict=True):
        assert len({pivot, *row.tolist()}) == count + 1
    distances = squared_distance(pivots[:, None], candidates)
    assert distances.shape == (40, count) and distances.min() >= 1


def test_windowed_candidates_are_in_one_window():
    _, candidates = candidates_of(jax.random.key(4), 30, 5, (50, 50), 4, 1.0)
    spread = np.ptp(np.asarray(candidates), axis=1)
    assert spread.max() <= 3 and spread.max() > 0
    _, candidates = candidates_of(jax.random.key(4), 30, 5, (50, 50), 4, 0.0)
    assert np.ptp(np.asarray(candidates), axis=1).mean() > 20


def test_a_window_of_everything_is_no_window():
    """Preferring the window rounds nothing: the order of what is inside stays as it was drawn."""
    arguments = jax.random.key(6), 4, 2999, (3000,), 3000
    assert np.array_equal(candidates_of(*arguments, 1.0)[1], candidates_of(*arguments, 0.0)[1])


def test_a_full_window_comes_before_the_rest():
    pivots, candidates = candidates_of(jax.random.key(7), 40, 12, (50,), 5, 1.0)
    first = np.asarray(candidates)[:, :4, 0]
    # Of the five in the window the pivot, if it is one of them, is not a candidate.
    assert np.all(np.ptp(first, axis=1) <= 4)
    assert np.mean(np.ptp(np.asarray(candidates)[:, 5:, 0], axis=1)) > 20 and pivots.shape == (40, 1)


def test_shifted_blocks_are_beyond_the_grid_and_within_the_extent():
    blocks = np.asarray(jax.jit(shifted_blocks, static_argnums=(1, 2, 3))(jax.random.key(5), 200, (2, 3), (5, 6)))
    offsets = blocks - np.asarray(grid_coordinates((2, 3)))[None]
    assert np.all(offsets == offsets[:, :1])
    starts = offsets[:, 0]
    assert np.all((starts[:, 0] >= 2) | (starts[:, 1] >= 3))
    assert np.all(starts >= 0) and np.all(starts <= [3, 3]) and len(np.unique(starts, axis=0)) == 4 * 4 - 2 * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: contrastive_positions(key, 2, 6, (2, 3), 2), r"num_candidates: got 6, expected 1 to 5"),
        (
            lambda key: shifted_blocks(key, 2, (2, 3), (3, 5)),
            r"extent: got \(3, 5\), expected room for a block \(2, 3\)",
        ),
        (lambda key: shifted_blocks(key, 2, (2, 3), (9,)), r"extent: got \(9,\), expected room"),
        (lambda key: shifted_blocks(key, 2, (2,), (1,)), r"extent: got \(1,\), expected room"),
        (lambda key: position_digits(np.array([7]), 11), r"num_digits: got 11 in base 10, expected 1 or more"),
        (lambda key: position_digits(np.array([7]), 31, 2), r"num_digits: got 31 in base 2, expected .* below 2.31"),
        (lambda key: position_digits(np.array([7]), 0), r"num_digits: got 0 in base 10, expected 1 or more"),
        (lambda key: position_digits(np.array([7]), 3, 1), r"num_digits: got 3 in base 1, expected .* base 2 or more"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))


def test_both_losses_on_random_positions_are_those_of_the_vectors_one_by_one():
    table = jax.random.normal(jax.random.key(0), (6, 7, 5))
    key, sizes = jax.random.key(3), {"num_pivots": 3, "num_candidates": 4, "num_blocks": 2, "window": 2}
    found = auxiliary_losses(lambda at: table[at[..., 0], at[..., 1]], key, (2, 3), (6, 7), **sizes)
    for_pivots, for_blocks = jax.random.split(key)
    pivots, candidates = contrastive_positions(for_pivots, 3, 4, (6, 7), 2)
    blocks = shifted_blocks(for_blocks, 2, (2, 3), (6, 7))
    e = [table[at[..., 0], at[..., 1]] for at in (pivots, candidates, blocks, grid_coordinates((2, 3))[None])]
    near = contrastive_loss(e[0], e[1], squared_distance(pivots[:, None], candidates))
    np.testing.assert_allclose(found, (near, distillation_loss(e[2], e[3])), rtol=1e-5)


@pytest.mark.slow
def test_both_losses_can_be_learned():
    """Close positions become similar, and unfamiliar ones stay related as familiar ones are."""
    variables = jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, 9, 16)))
    optimizer = optax.adam(1e-2)

    def losses(variables, key):
        embed = partial(ENCODER.apply, variables, method="embed")
        sizes = {"num_pivots": 16, "num_candidates": 8, "num_blocks": 4, "window": 4}
        return auxiliary_losses(embed, key, (3, 3), (16, 16), **sizes)

    @jax.jit
    def train(variables, state, key):
        gradient = jax.grad(lambda v: sum(losses(v, key)))(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state

    state, evaluate = optimizer.init(variables), jax.jit(losses)
    before = evaluate(variables, jax.random.key(9))
    for step in range(150):
        variables, state = train(variables, state, jax.random.key(100 + step))
    after = evaluate(variables, jax.random.key(9))
    # All candidates are alike at the start, and all rows of similarities are the same.
    assert abs(before[0] - np.log(8)) < 0.05 and before[1] < 1e-4
    assert after[0] < 0.75 * np.log(8) and after[1] < 0.3
