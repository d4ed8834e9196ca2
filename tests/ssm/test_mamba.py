"""Mamba's mixer against a loop over tokens, channels and states, and its published initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.optimizer import parameter_labels
from lightnet.scan import selective_scan
from ssm.initializers import inverse_softplus, step_bias_init
from ssm.mamba import Mamba
from tests.ssm.draws import randomised

WIDTH, LENGTH = 5, 7
OTHERWISE = {"state_size": 2, "expand": 3, "conv_width": 2, "dt_rank": 2, "use_bias": True, "conv_bias": False}
VARIANTS = [{"state_size": 3}, pytest.param(OTHERWISE, marks=pytest.mark.slow)]


def silu(x):
    return x / (1 + np.exp(-x))


def by_tokens(p, x):
    """The definition for one sequence (L, D); no sum in it is a product of matrices with time in it."""
    biases = {name: entry.get("bias", 0) for name, entry in p.items() if isinstance(entry, dict)}
    u, z = np.moveaxis(np.einsum("ld,dpe->lpe", x, p["in_proj"]["kernel"]) + biases["in_proj"], 1, 0)
    taps, (inner, states) = p["conv1d"]["kernel"], p["A_log"].shape
    rank, A, outputs = p["dt_proj"]["kernel"].shape[0], -np.exp(p["A_log"]), []
    h = np.zeros((inner, states))
    for t in range(len(x)):
        past = sum(taps[-1 - j] * u[t - j] for j in range(min(t + 1, len(taps))))
        v = silu(past + biases["conv1d"])
        low, B, C = np.split(v @ p["x_proj"]["kernel"], [rank, rank + states])
        dt = np.log1p(np.exp(low @ p["dt_proj"]["kernel"] + p["dt_bias"]))
        y = np.zeros(inner)
        for e in range(inner):
            for n in range(states):
                h[e, n] = np.exp(dt[e] * A[e, n]) * h[e, n] + dt[e] * B[n] * v[e]
                y[e] += C[n] * h[e, n]
            y[e] += p["D"][e] * v[e]
        outputs.append((y * silu(z[t])) @ p["out_proj"]["kernel"] + biases["out_proj"])
    return np.stack(outputs), h


@pytest.mark.parametrize("options", VARIANTS)
def test_equals_the_loop_over_tokens(options):
    with jax.enable_x64(True):
        mixer, x = Mamba(WIDTH, **options), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params = randomised(mixer, x)
        y, state = jax.jit(mixer.apply)({"params": params}, x)
        for row in range(2):
            expected, h = by_tokens(params, x[row])
            np.testing.assert_allclose(y[row], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
            np.testing.assert_allclose(state.ssm[row], h, rtol=0, atol=1e-12 * np.abs(h).max())


def test_the_recurrence_is_an_associative_scan():
    random, states = np.random.default_rng(0), 3
    with jax.enable_x64(True):
        u = random.standard_normal((2, LENGTH, WIDTH))
        dt, rates = random.exponential(size=u.shape), -random.exponential(size=(WIDTH, states))
        B, C = random.standard_normal((2, 2, LENGTH, states))
        y, last = selective_scan(u, dt, rates, B, C)

        @jax.jit
        def scanned(decay, driven):
            return jax.lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (decay, driven), axis=1)[1]

        h = scanned(np.exp(dt[..., None] * rates), (dt * u)[..., None] * B[:, :, None])
        np.testing.assert_allclose(y, np.einsum("blen,bln->ble", h, C), rtol=0, atol=1e-10)
        np.testing.assert_allclose(last, h[:, -1], rtol=0, atol=1e-10)


def test_with_the_same_selection_at_every_token_the_recurrence_is_a_convolution():
    random, states = np.random.default_rng(0), 3
    with jax.enable_x64(True):
        u = random.standard_normal((2, LENGTH, WIDTH))
        dt, rates = random.exponential(size=WIDTH), -random.exponential(size=(WIDTH, states))
        B, C = random.standard_normal((2, states))
        by_token = (np.broadcast_to(v, (2, LENGTH, len(v))) for v in (B, C))
        y, _ = selective_scan(u, np.broadcast_to(dt, u.shape), rates, *by_token)
    kernel = [(np.exp(lag * dt[:, None] * rates) * dt[:, None] * B) @ C for lag in range(LENGTH)]
    for t in range(LENGTH):
        expected = sum(kernel[lag] * u[:, t - lag] for lag in range(t + 1))
        np.testing.assert_allclose(y[:, t], expected, rtol=0, atol=1e-13)


def test_initial_values_are_the_published_ones():
    p = nn.meta.unbox(jax.jit(Mamba(width=64).init)(jax.random.key(0), jnp.zeros((1, 1, 64))))["params"]
    np.testing.assert_allclose(np.exp(p["A_log"]), np.tile(np.arange(1, 17), (128, 1)), rtol=1e-6)
    np.testing.assert_array_equal(p["D"], np.ones(128))
    steps = np.log(np.log1p(np.exp(np.float64(p["dt_bias"]))))
    low, high = np.log(1e-3), np.log(1e-1)
    assert steps.min() > low - 1e-4 and steps.max() < high + 1e-4
    # log-uniform: of 128 draws, the mean and the deviation within four standard errors
    assert abs(steps.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 128)
    assert abs(steps.std() - (high - low) / np.sqrt(12)) < 4 * (high - low) / np.sqrt(12 * 128)
    for name, fan_in in [("dt_proj", 4), ("x_proj", 128), ("in_proj", 64), ("conv1d", 4)]:
        largest = np.abs(p[name]["kernel"]).max() * np.sqrt(fan_in)
        assert 0.95 < largest <= 1, name
    assert abs(p["out_proj"]["kernel"].std() / 0.02 - 1) < 0.05


def test_no_initial_step_is_below_the_floor():
    bias = step_bias_init(1e-6, 1e-5)(jax.random.key(0), (50,))
    np.testing.assert_allclose(jax.nn.softplus(bias), 1e-4, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softplus(inverse_softplus(jnp.array([1e-4, 1.0, 50.0]))), [1e-4, 1, 50], 1e-5)


def test_shapes_of_a_published_model():
    shapes = jax.eval_shape(Mamba(width=768).init, jax.random.key(0), jnp.zeros((1, 1, 768)))
    shapes = jax.tree.map(jnp.shape, nn.meta.unbox(shapes)["params"])
    assert shapes == {
        "in_proj": {"kernel": (768, 2, 1536)},
        "conv1d": {"kernel": (4, 1536), "bias": (1536,)},
        "x_proj": {"kernel": (1536, 48 + 32)},
        "dt_proj": {"kernel": (48, 1536)},
        "dt_bias": (1536,),
        "A_log": (1536, 16),
        "D": (1536,),
        "out_proj": {"kernel": (1536, 768)},
    }


def test_what_parameterises_the_recurrence_is_not_decayed():
    shapes = jax.eval_shape(Mamba(WIDTH, use_bias=True).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    labels = parameter_labels(nn.meta.unbox(shapes)["params"])
    assert {name: labels[name] for name in ("A_log", "D", "dt_bias")} == dict.fromkeys(("A_log", "D", "dt_bias"), "ssm")
    for name in ("in_proj", "conv1d", "out_proj"):
        assert labels[name] == {"kernel": "decay", "bias": "no_decay"}
    assert labels["x_proj"] == labels["dt_proj"] == {"kernel": "decay"}


@pytest.mark.slow
def test_in_bfloat16_step_rates_and_state_stay_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 64, 16))
    mixer = Mamba(width=16, state_size=4, dtype=jnp.bfloat16, out_scale=0.5)
    variables = jax.jit(mixer.init)(jax.random.key(0), x)
    y, state = jax.jit(mixer.apply)(variables, x)
    exact, _ = jax.jit(mixer.clone(dtype=None).apply)(variables, x)
    assert y.dtype == jnp.bfloat16 and {leaf.dtype for leaf in state} == {jnp.dtype("float32")}
    assert [leaf.dtype for leaf in mixer.init_state(1)] == [jnp.float32] * 2
    # Projections of 8 bits each; rounding the steps too would let each state drift by up to 64 such errors.
    assert np.linalg.norm(np.float32(y) - exact) < 4 * 2**-8 * np.linalg.norm(exact)
    # Where a step is 4e-3 of the rate, bfloat16 could not tell the decay from 1.
    found = mixer.bind(variables)._selected(jnp.zeros((1, 1, 32), jnp.bfloat16))
    assert [leaf.dtype for leaf in found] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize(("dtype", "stored"), [(None, jnp.bfloat16), (jnp.bfloat16, jnp.float32)])
def test_steps_are_projected_in_float32(dtype, stored):
    mixer, u = Mamba(WIDTH, state_size=2, dt_rank=3, dtype=dtype), jax.random.normal(jax.random.key(1), (1, 9, 10))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, stored), randomised(mixer, jnp.zeros((1, 1, WIDTH))))
    bound, u = mixer.bind({"params": params}), u.astype(jnp.bfloat16)
    low = np.float64(bound.x_proj(u)[..., :3])
    expected = np.log1p(np.exp(low @ np.float64(params["dt_proj"]["kernel"]) + np.float64(params["dt_bias"])))
    np.testing.assert_allclose(bound._selected(u)[0], expected, rtol=1e-6)


def test_the_output_kernel_starts_from_what_is_given():
    mixer = Mamba(WIDTH, state_size=2, out_init=nn.initializers.constant(0.25))
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH))))["params"]
    np.testing.assert_array_equal(params["out_proj"]["kernel"], np.full((10, WIDTH), 0.25))


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_are_finite():
    x = jax.random.normal(jax.random.key(1), (2, 9, WIDTH))
    mixer = Mamba(WIDTH, state_size=2, use_bias=True)
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), x))
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply(p, x)[0]))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_a_state_of_another_form_is_refused():
    mixer, x = Mamba(WIDTH, state_size=2), jnp.zeros((1, 3, WIDTH))
    params, state = jax.eval_shape(mixer.init, jax.random.key(0), x), mixer.init_state(1)
    with pytest.raises(ValueError, match=r"state: got MambaState, expected what init_state\(1\) gives"):
        jax.eval_shape(mixer.apply, params, x, state._replace(ssm=None))
    with pytest.raises(ValueError, match=r"state.ssm: got complex64\[1, 10, 2\], expected float32\[1, 10, 2\]"):
        jax.eval_shape(mixer.apply, params, x, state._replace(ssm=1j * state.ssm))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 0}, "state_size: got 0, expected at least 1"),
        ({"dt_rank": 0}, "dt_rank: got 0, expected at least 1"),
        ({"conv_width": 0}, "conv_width: got 0"),
        ({"dt_min": 0.2}, r"dt_min, dt_max: got 0.2 and 0.1, expected 0 < dt_min <= dt_max"),
    ],
)
def test_what_makes_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Mamba(WIDTH, **options).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
