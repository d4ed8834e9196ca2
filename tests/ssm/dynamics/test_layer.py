"""The layer analysed: the recurrence, the hidden attention and the double sum are one thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm.dynamics import hidden_attention, input_output_matrix, residual_stack, s6_layer

LENGTH, WIDTH, STATES = 7, 5, 3


def draw(seed=0, scale=1.0, bias=True):
    """Tokens and weights of a layer, none of them special."""
    random = np.random.default_rng(seed)
    x, s_delta = scale * random.standard_normal((LENGTH, WIDTH)), random.standard_normal((WIDTH, WIDTH))
    s_b, s_c = random.standard_normal((2, STATES, WIDTH))
    return x, s_b, s_c, s_delta, random.exponential(size=WIDTH), random.standard_normal(WIDTH) if bias else None


def by_definition(x, s_b, s_c, s_delta, a, bias):
    """P[d, l, j], one entry after the other."""
    steps = np.log1p(np.exp(x @ s_delta.T + (0 if bias is None else bias)))
    weights = np.zeros((WIDTH, LENGTH, LENGTH))
    for d in range(WIDTH):
        for now in range(LENGTH):
            for j in range(now + 1):
                decay = np.exp(-a[d] * steps[j + 1 : now + 1, d].sum())
                weights[d, now, j] = (s_c @ x[now]) @ (s_b @ x[j]) * steps[j, d] * decay
    return weights


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_its_hidden_attention(bias):
    with jax.enable_x64(True):
        arguments = draw(bias=bias)
        expected = by_definition(*arguments)
        weights = hidden_attention(*arguments)
        np.testing.assert_allclose(weights, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
        output = np.einsum("dlj,jd->ld", expected, arguments[0])
        np.testing.assert_allclose(s6_layer(*arguments), output, rtol=0, atol=1e-12 * np.abs(output).max())


def test_a_matrix_in_place_of_the_projections_gives_the_same():
    with jax.enable_x64(True):
        x, s_b, s_c, *rest = draw()
        M = input_output_matrix(s_b, s_c)
        np.testing.assert_allclose(M, s_c.T @ s_b, rtol=1e-14)
        same = s6_layer(x, M, np.eye(WIDTH), *rest)
        np.testing.assert_allclose(same, s6_layer(x, s_b, s_c, *rest), rtol=0, atol=1e-12 * np.abs(same).max())


def test_a_later_token_is_not_seen():
    with jax.enable_x64(True):
        x, *rest = draw()
        poisoned = np.where(np.arange(LENGTH)[:, None] > 3, 1e3, x)
        np.testing.assert_array_equal(s6_layer(x, *rest)[:4], s6_layer(poisoned, *rest)[:4])
        assert (np.triu(hidden_attention(x, *rest)[0], 1) == 0).all()


@pytest.mark.slow
def test_step_sizes_that_shut_the_state_leave_finite_numbers_and_gradients():
    x, *rest = draw(scale=300.0)
    found, gradient = jax.value_and_grad(lambda tokens: hidden_attention(tokens, *rest).sum())(jnp.asarray(x))
    assert jnp.isfinite(found) and jnp.isfinite(gradient).all()


def test_a_stack_is_the_layer_again_and_again():
    with jax.enable_x64(True):
        x, *weights = draw(scale=0.3)
        stack = residual_stack(x, *weights, step=0.1, depth=3)
        for number in range(3):
            x = x + 0.1 * s6_layer(x, *weights)
            np.testing.assert_allclose(stack[number], x, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("position", "array", "message"),
    [
        (0, np.zeros((LENGTH, WIDTH + 1)), "s_b: got"),
        (1, np.zeros((STATES + 1, WIDTH)), "s_c: got"),
        (3, np.zeros((WIDTH, 2)), "s_delta: got"),
        (4, np.zeros(()), "a: got"),
        (5, np.zeros(2), "bias: got"),
        (0, [1.0], "x: got list"),
    ],
)
def test_wrong_shapes_are_named(position, array, message):
    arguments = list(draw())
    arguments[position] = array
    with pytest.raises(ValueError, match=message):
        s6_layer(*arguments)


def test_a_stack_has_a_layer():
    with pytest.raises(ValueError, match="depth: got 0, expected at least 1"):
        residual_stack(*draw(), step=0.1, depth=0)


@pytest.mark.parametrize("function", [hidden_attention, s6_layer])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_state_matrices_that_are_not_decaying_are_refused_where_they_are_known(function, value):
    x, s_b, s_c, s_delta, a, bias = draw()
    a[2] = value
    with pytest.raises(ValueError, match=f"a: got {value} among them, expected above 0"):
        function(x, s_b, s_c, s_delta, a, bias)
    jax.eval_shape(function, x, s_b, s_c, s_delta, a, bias)  # the values are not known


@pytest.mark.parametrize("step", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_refused(step):
    with pytest.raises(ValueError, match=f"step: got {step}, expected a finite number"):
        residual_stack(*draw(), step=step, depth=1)
