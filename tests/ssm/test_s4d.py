"""S4D's mixer against a loop over tokens, its kernel, and its published initial values."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.optimizer import parameter_labels
from lightnet.scan import diagonal_ssm, diagonal_step
from ssm.initializers import s4d_transitions
from ssm.s4d import S4D, Diagonal, diagonal_kernel, discretise
from tests.ssm.draws import randomised
from tests.ssm.test_output import formula

WIDTH, LENGTH = 5, 7
VARIANTS = [
    {"state_size": 6},
    {"state_size": 3, "transitions": "real", "discretisation": "bilinear", "output_activation": "half_glu2"},
]
SLOW = partial(pytest.param, marks=pytest.mark.slow)


def as_numbers(p):
    """A, dt, B and C as the definition has them, all states of each channel, conjugates included."""
    A, dt = -np.exp(p["log_A_real"]), np.exp(p["log_step"])
    if "A_imag" not in p:
        return A, dt, p["B"], p["C"]
    half = (A + 1j * p["A_imag"], *(p[name] @ [1, 1j] for name in "BC"))
    A, B, C = (np.concatenate([z, z.conj()], 1) for z in half)
    return A, dt, B, C


def by_tokens(p, x, discretisation, activation):
    """The definition for one sequence (L, D), with all states, and the last of them."""
    A, dt, B, C = as_numbers(p)
    y, h = np.zeros(x.shape), np.zeros(A.shape, A.dtype)
    for t, d in np.ndindex(*x.shape):
        z = dt[d] * A[d]
        if discretisation == "zoh":
            a, b = np.exp(z), (np.exp(z) - 1) / A[d] * B[d]
        else:
            a, b = (1 + z / 2) / (1 - z / 2), dt[d] / (1 - z / 2) * B[d]
        h[d] = a * h[d] + b * x[t, d]
        y[t, d] = (C[d] @ h[d]).real + p["D"][d] * x[t, d]
    return formula(activation, p["output"], y), h


@pytest.mark.parametrize("options", VARIANTS)
def test_equals_the_loop_over_tokens_and_states(options):
    with jax.enable_x64(True):
        mixer, x = S4D(WIDTH, **options), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params = randomised(mixer, x)
        y, state = jax.jit(mixer.apply)({"params": params}, x)
        for row in range(2):
            expected, h = by_tokens(params, x[row], mixer.discretisation, mixer.output_activation)
            np.testing.assert_allclose(y[row], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
            # Where states are pairs, the conjugates stand behind those that are stored.
            np.testing.assert_allclose(state[row], h[:, : state.shape[2]], rtol=0, atol=1e-12 * np.abs(h).max())


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_kernel_convolution_recurrence_and_steps_agree(discretisation):
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        A, B, C = (jnp.asarray(random.standard_normal((3, 4, 2)) @ [1, 1j]) for _ in range(3))
        A = -jnp.exp(A.real) + 1j * A.imag
        a, factor = discretise(discretisation, A, jnp.exp(random.standard_normal((3, 1))))
        x, coefficients = random.standard_normal((1, 20, 3)), Diagonal(a, factor * B, 2 * C)
        kernel = np.asarray(diagonal_kernel(coefficients, 20))
        expected = [np.convolve(x[0, :, d], kernel[d])[:20] for d in range(3)]
        y, last = diagonal_ssm(x, *coefficients)
        np.testing.assert_allclose(y[0].T, expected, rtol=0, atol=1e-10)
        step, state = jax.jit(diagonal_step), jnp.zeros(last.shape, last.dtype)
        for t in range(20):
            token, state = step(x[:, t], *coefficients, state)
            np.testing.assert_allclose(token, y[:, t], rtol=0, atol=1e-10)
        np.testing.assert_allclose(state, last, rtol=0, atol=1e-10)


def test_zero_order_hold_and_bilinear_agree_to_second_order():
    """At time 1, after 1 / dt steps: halving dt divides the difference by four."""
    with jax.enable_x64(True):
        A, difference = jnp.asarray(s4d_transitions("lin", 6)), []
        for steps in (256, 512):
            ends = []
            for name in ("zoh", "bilinear"):
                a, factor = discretise(name, A, jnp.float64(1 / steps))
                ends.append(np.asarray(a) ** steps + steps * np.asarray(factor))
            difference.append(np.abs(ends[0] - ends[1]))
        np.testing.assert_allclose(difference[0] / difference[1], 4, rtol=0.01)


def test_zero_order_hold_is_exact_for_small_steps_in_float32():
    A = np.complex64(s4d_transitions("lin", 64))
    wide = np.complex128(A)
    _, factor = discretise("zoh", jnp.asarray(A), jnp.float32(1e-3))
    dt = np.float64(np.float32(1e-3))
    # exp(z) - 1 would lose ten bits: relative errors of 1e-4 where z is 5e-4
    np.testing.assert_allclose(factor, (np.exp(dt * wide) - 1) / wide, rtol=1e-6)


@pytest.mark.parametrize("transitions", ["lin", *map(SLOW, ("inv", "legs", "real"))])
def test_initial_values_are_the_published_ones(transitions):
    width, mixer = 200, S4D(200, state_size=16, transitions=transitions)
    p = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, width))))["params"]
    A, _, B, C = as_numbers(jax.tree.map(np.float64, p))
    states, expected = p["log_A_real"].shape[1], s4d_transitions(transitions, 16)
    np.testing.assert_allclose(A[:, :states], np.tile(expected, (width, 1)), rtol=1e-6)
    np.testing.assert_array_equal(B, np.ones(B.shape))
    low, high = np.log(1e-3), np.log(1e-1)
    assert low - 1e-5 < p["log_step"].min() < low + 0.3 and high - 0.3 < p["log_step"].max() < high + 1e-5
    # standard normal numbers, complex ones of variance 1/2 in each part: within four standard errors
    assert abs(np.mean(np.abs(C[:, :states]) ** 2) - 1) < 4 * np.sqrt(2 / (states * width))
    assert abs(np.var(p["D"]) - 1) < 4 * np.sqrt(2 / width)


@pytest.mark.parametrize("real", [False, True])
def test_shapes_and_groups_of_parameters(real):
    mixer = S4D(6, transitions="real" if real else "lin")
    shapes = nn.meta.unbox(jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, 6))))["params"]
    labels = parameter_labels(shapes)
    rates, vectors = ((6, 64), (6, 64)) if real else ((6, 32), (6, 32, 2))
    expected = {
        "log_step": ((6,), "ssm"),
        "log_A_real": (rates, "ssm"),
        "B": (vectors, "ssm"),
        "C": (vectors, "no_decay"),
        "D": ((6,), "ssm"),
        "output": {key: {"kernel": ((6, 6), "decay"), "bias": ((6,), "no_decay")} for key in ("value", "gate")},
    }
    if not real:
        expected["A_imag"] = (rates, "ssm")
    assert jax.tree.map(lambda leaf, label: (leaf.shape, label), shapes, labels) == expected


@pytest.mark.slow
def test_a_later_input_is_a_later_output():
    with jax.enable_x64(True):
        mixer, x = S4D(WIDTH, state_size=4), np.random.default_rng(0).standard_normal((1, 12, WIDTH))
        params = randomised(mixer, x)
        shifted = np.concatenate([np.zeros((1, 3, WIDTH)), x[:, :-3]], axis=1)
        y, late = (jax.jit(mixer.apply)({"params": params}, x)[0] for x in (x, shifted))
        np.testing.assert_allclose(late[:, 3:], y[:, :-3], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_in_bfloat16_transitions_and_state_stay_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 64, 16))
    mixer = S4D(16, state_size=8, dtype=jnp.bfloat16, out_scale=0.5)
    variables = jax.jit(mixer.init)(jax.random.key(0), x)
    y, state = jax.jit(mixer.apply)(variables, x)
    exact, last = jax.jit(mixer.clone(dtype=None).apply)(variables, x)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.complex64 == mixer.init_state(1).dtype
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-6 * np.abs(last).max())
    # Three products of 8 bits each behind it.
    assert np.linalg.norm(np.float32(y) - exact) < 4 * 2**-8 * np.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS)
def test_gradients_reach_every_parameter_and_are_finite(options):
    x = jax.random.normal(jax.random.key(1), (2, 9, WIDTH))
    mixer = S4D(WIDTH, **options)
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), x))
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply(p, x)[0]))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 5}, "state_size: got 5, expected an even number of at least 2"),
        ({"transitions": "fout"}, "transitions: got 'fout', expected one of lin, inv, legs, real"),
        ({"discretisation": "euler"}, "discretisation: got 'euler', expected one of zoh, bilinear"),
        ({"dt_max": 1e-4}, r"dt_min, dt_max: got 0.001 and 0.0001, expected 0 < dt_min <= dt_max"),
    ],
)
def test_what_makes_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=message):
        S4D(WIDTH, **options).init(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
