"""TPE against the double loop of its definition, and its forms against each other, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.positions import (
    toeplitz_along,
    toeplitz_decays,
    toeplitz_fft,
    toeplitz_kernel,
    toeplitz_matrix,
    toeplitz_scan,
    toeplitz_step,
)

BATCH, CHANNELS, RANK = 2, 3, 4
scan = jax.jit(toeplitz_scan, static_argnames="reverse")
along = jax.jit(toeplitz_along, static_argnums=1)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def example(*sizes, seed=0, rank=RANK, shared=False):
    """Tokens (B, *sizes, D), weights and decays, from 0.03 to 0.999."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((BATCH, *sizes, CHANNELS))
    weights = random.standard_normal((CHANNELS, rank))
    decays = np.exp(-np.exp(random.uniform(-7, 1.2, (1 if shared else CHANNELS, rank))))
    return x, weights, decays


def by_definition(x, weights, decays, backwards=False):
    """y_s = sum_{m<=s} t_{s-m} x_m, the sum written out; along axis 1."""
    y = np.zeros_like(x)
    for s in range(x.shape[1]):
        for m in range(s, x.shape[1]) if backwards else range(s + 1):
            y[:, s] += (weights * decays ** abs(s - m)).sum(axis=1) * x[:, m]
    return y


def close(actual, expected, tolerance=1e-12):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    "length",
    [
        17,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(65, marks=pytest.mark.slow),
    ],
)
def test_recurrence_fourier_and_dense_forms_are_the_definition(length):
    x, weights, decays = example(length, shared=length % 2 == 0)
    expected = by_definition(x, weights, decays)
    kernel = toeplitz_kernel(weights, decays, length)
    close(scan(x, weights, decays)[0], expected)
    close(toeplitz_fft(x, weights, decays), expected)
    close(jnp.einsum("dsm,bmd->bsd", toeplitz_matrix(kernel), x), expected)


def test_both_directions_are_one_dense_matrix():
    x, weights, decays = example(11)
    _, other, slower = example(11, seed=1)
    y = scan(x, weights, decays)[0] + scan(x, other, slower, reverse=True)[0]
    matrix = toeplitz_matrix(toeplitz_kernel(weights, decays, 11), toeplitz_kernel(other, slower, 11))
    close(jnp.einsum("dsm,bmd->bsd", matrix, x), y)
    close(y, by_definition(x, weights, decays) + by_definition(x, other, slower, backwards=True))


def test_the_impulse_response_is_the_kernel():
    _, weights, decays = example(1)
    impulse = np.zeros((1, 20, CHANNELS))
    impulse[:, 0] = 1
    close(scan(impulse, weights, decays)[0][0], toeplitz_kernel(weights, decays, 20))


def test_later_tokens_have_no_gradient_exactly():
    x, weights, decays = example(9)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(scan(x, weights, decays)[0][:, 4] ** 2)))(x)
    assert np.all(np.asarray(gradient)[:, 5:] == 0) and np.all(np.abs(gradient[:, :5]) > 0)


def test_a_delay_of_the_tokens_delays_the_result():
    x, weights, decays = example(12)
    late = np.pad(x, ((0, 0), (5, 0), (0, 0)))
    close(scan(late, weights, decays)[0], np.pad(by_definition(x, weights, decays), ((0, 0), (5, 0), (0, 0))))


def test_decays_lie_between_zero_and_one():
    p = np.array([-30.0, -3.0, 0.0, 3.0, 6.0])
    decays = np.asarray(toeplitz_decays(p))
    assert np.all((decays > 0) & (decays < 1)) and np.all(np.diff(decays) < 0)
    close(-np.log(decays), np.exp(p), 1e-9)


@pytest.mark.parametrize("sizes", [(3, 2, 4), pytest.param((4, 3), marks=pytest.mark.slow)])
def test_md_is_the_sum_over_axes_of_lines(sizes):
    x, *_ = example(*sizes)
    axes = [example(1, seed=r + 5)[1:] for r in range(len(sizes))]
    y = sum(along(x, r, *parameters) for r, parameters in enumerate(axes))
    expected = np.zeros_like(x)
    for cell in np.ndindex(*sizes):
        for r, (weights, decays) in enumerate(axes):
            for m in range(cell[r] + 1):
                source = (*cell[:r], m, *cell[r + 1 :])
                kernel = (weights * decays ** (cell[r] - m)).sum(axis=1)
                expected[:, *cell] += kernel * x[:, *source]
    close(y, expected)


def test_a_grid_of_one_line_is_a_sequence():
    x, weights, decays = example(7)
    _, other, slower = example(1, seed=1)
    on_grid = along(x[:, None], 1, weights, decays) + along(x[:, None], 0, other, slower)
    # An axis of one cell sees lag 0 only.
    close(on_grid[:, 0], scan(x, weights, decays)[0] + other.sum(axis=1) * x)


def test_one_exponential_is_a_moving_sum():
    """The form with a constant query and key per head: S = λ S + k x^T, y = q S."""
    x, _, _ = example(13)
    random = np.random.default_rng(3)
    q, k, decay = random.standard_normal(CHANNELS), random.standard_normal(CHANNELS), 0.7
    state, y = np.zeros((BATCH, CHANNELS, CHANNELS)), np.zeros_like(x)
    for s in range(x.shape[1]):
        state = decay * state + k[None, :, None] * x[:, s, None, :]
        y[:, s] = np.einsum("bkv,k->bv", state, q)
    close(scan(x, np.full((CHANNELS, 1), q @ k), np.full((1, 1), decay))[0], y)


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_segments_are_filtered_alone_and_masked_tokens_do_not_exist(reverse):
    x, weights, decays = example(12)
    ids = np.tile([1, 1, 1, 4, 4, 4, 4, 4, 1, 1, 2, 2], (BATCH, 1))
    real = np.array([0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0], bool)
    poisoned = np.where(real[:, None], x, np.nan)
    mask = np.tile(real, (BATCH, 1))

    def run(x, **options):
        return scan(x, weights, decays, reverse=reverse, **options)[0]

    y = np.asarray(run(poisoned, segment_ids=ids, mask=mask))
    assert np.all(y[:, ~real] == 0)
    for start, stop in [(0, 3), (3, 8), (8, 10), (10, 12)]:
        kept = np.arange(start, stop)[real[start:stop]]
        close(y[:, kept], by_definition(x[:, kept], weights, decays, backwards=reverse))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(x, segment_ids=ids, mask=mask)))))(poisoned)
    assert np.all(np.asarray(gradient)[:, ~real] == 0) and np.all(np.isfinite(gradient))


def test_padding_of_a_grid_is_exact():
    x, weights, decays = example(3, 4)
    padded = np.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=np.nan)
    mask = np.pad(np.ones((BATCH, 3, 4), bool), ((0, 0), (1, 2), (0, 3)))
    for axis in (0, 1):
        y = along(padded, axis, weights, decays, mask=mask)
        close(y[:, 1:4, :4], along(x, axis, weights, decays))


def test_a_state_goes_on_where_it_stopped():
    x, weights, decays = example(10)
    expected, last = scan(x, weights, decays)
    first, state = scan(x[:, :6], weights, decays)
    second, final = scan(x[:, 6:9], weights, decays, state)
    third, final = toeplitz_step(x[:, 9], weights, decays, final)
    close(np.concatenate([first, second, third[:, None]], axis=1), expected)
    close(final, last)


def test_gradients_are_those_of_the_dense_form():
    x, weights, decays = (jnp.asarray(v) for v in example(17))

    def dense(x, weights, decays):
        return jnp.einsum("dsm,bmd->bsd", toeplitz_matrix(toeplitz_kernel(weights, decays, 17)), x)

    def loss(form):
        return lambda *operands: jnp.sum(jnp.sin(form(*operands)))

    found = jax.jit(jax.grad(loss(lambda *o: scan(*o)[0]), argnums=(0, 1, 2)))(x, weights, decays)
    expected = jax.jit(jax.grad(loss(dense), argnums=(0, 1, 2)))(x, weights, decays)
    for gradient, other in zip(found, expected, strict=True):
        close(gradient, other, 1e-11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, w, d: toeplitz_scan(x, w[:2], d),
            r"decays: got float64\[3, 4\], expected a float array \(1 or D, N\)",
        ),
        (
            lambda x, w, d: toeplitz_scan(x[..., :2], w, d),
            r"x: got float64\[2, 5, 2\], expected .*\(B, L, D\) = \(2, 5, 3\)",
        ),
        (lambda x, w, d: toeplitz_fft(x[0], w, d), r"x: got float64\[5, 3\], expected a float array \(B, L, D\)"),
        (lambda x, w, d: toeplitz_along(x, 1, w, d), r"axis: got 1, expected one of the 1 axes"),
        (
            lambda x, w, d: toeplitz_along(x, 0, w, d, mask=x[..., 0, None] > 0),
            r"mask: got shape \[2, 5, 1\], expected",
        ),
        (lambda x, w, d: toeplitz_matrix(x), r"forward: got float64\[2, 5, 3\], expected a float array \(L, D\)"),
        (lambda x, w, d: toeplitz_kernel(list(w), d, 3), "weights: got list, expected an array"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*example(5))
