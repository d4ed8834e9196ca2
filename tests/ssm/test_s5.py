"""S5's mixer against a loop over tokens with complex matrices, and its published initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from experiments.training.optimizer import parameter_labels
from ssm.initializers import legs_normal_part
from ssm.s5 import S5, legs_blocks
from tests.ssm.draws import randomised

WIDTH, LENGTH = 5, 7
VARIANTS = [
    {"state_size": 8, "num_blocks": 2},
    {"state_size": 3, "conj_sym": False, "clip_eigs": True, "discretisation": "bilinear"},
    {"state_size": 4, "bidirectional": True},
]


def gelu(y):
    return y * (1 + erf(y / np.sqrt(2))) / 2


def complex_of(parameter):
    return parameter[..., 0] + 1j * parameter[..., 1]


def discrete(p, mixer):
    """Lbar (P,) and Bbar (P, D)."""
    real = np.minimum(p["Lambda_re"], -1e-4) if mixer.clip_eigs else p["Lambda_re"]
    Lambda, dt, B = real + 1j * p["Lambda_im"], np.exp(p["log_step"]), complex_of(p["B"])
    if mixer.discretisation == "bilinear":
        return (1 + dt / 2 * Lambda) / (1 - dt / 2 * Lambda), (dt / (1 - dt / 2 * Lambda))[:, None] * B
    return np.exp(dt * Lambda), ((np.exp(dt * Lambda) - 1) / Lambda)[:, None] * B


def by_tokens(p, x, mixer):
    """The definition for one sequence (L, D), and the last state."""
    Lbar, Bbar = discrete(p, mixer)

    def scanned(x):
        states, h = [], np.zeros(len(Lbar), complex)
        for u in x:
            h = Lbar * h + Bbar @ u
            states.append(h)
        return np.stack(states)

    states = scanned(x)
    read = np.concatenate([states, scanned(x[::-1])[::-1]], axis=1) if mixer.bidirectional else states
    y = (2 if mixer.conj_sym else 1) * (read @ complex_of(p["C"]).T).real + p["D"] * x
    gate = p["output"]["gate"]
    return gelu(y) * expit(gelu(y) @ gate["kernel"] + gate["bias"]), states[-1]


@pytest.mark.parametrize("options", VARIANTS)
def test_equals_the_loop_over_tokens(options):
    with jax.enable_x64(True):
        mixer, x = S5(WIDTH, **options), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params = randomised(mixer, x)
        y, state = jax.jit(mixer.apply)({"params": params}, x)
        for row in range(2):
            expected, last = by_tokens(params, x[row], mixer)
            np.testing.assert_allclose(y[row], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
            if not mixer.bidirectional:
                np.testing.assert_allclose(state[row], last, rtol=0, atol=1e-12 * np.abs(last).max())


def test_the_recurrence_is_a_convolution_with_its_kernel():
    with jax.enable_x64(True):
        mixer = S5(WIDTH, state_size=6, output_activation="gelu")
        x = np.random.default_rng(0).standard_normal((1, LENGTH, WIDTH))
        params = randomised(mixer, x)
        y, _ = jax.jit(mixer.apply)({"params": params}, x)
    Lbar, Bbar = discrete(params, mixer)
    kernel = [2 * (complex_of(params["C"]) @ (Lbar[:, None] ** lag * Bbar)).real for lag in range(LENGTH)]
    kernel[0] += np.diag(params["D"])
    for t in range(LENGTH):
        expected = gelu(sum(kernel[lag] @ x[0, t - lag] for lag in range(t + 1)))
        np.testing.assert_allclose(y[0, t], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_half_of_each_conjugate_pair_is_the_full_system(bidirectional):
    half = S5(WIDTH, state_size=6, bidirectional=bidirectional)
    full = half.clone(conj_sym=False)
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params = randomised(half, x)
        pairs = dict(params)
        for name in ("Lambda_re", "log_step"):
            pairs[name] = np.concatenate([params[name]] * 2)
        pairs["Lambda_im"] = np.concatenate([params["Lambda_im"], -params["Lambda_im"]])
        pairs["B"] = np.concatenate([params["B"], params["B"] * [1, -1]])
        ways = np.split(params["C"], 1 + bidirectional, axis=1)
        pairs["C"] = np.concatenate([part for C in ways for part in (C, C * [1, -1])], axis=1)
        y, _ = jax.jit(half.apply)({"params": params}, x)
        expected, _ = jax.jit(full.apply)({"params": pairs}, x)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conj_sym", [True, False])
def test_blocks_are_those_of_the_normal_part_of_hippo(conj_sym):
    Lambda, V = legs_blocks(12, 2, conj_sym)
    expected = np.kron(np.eye(2), legs_normal_part(6)[0])
    found = (V * Lambda) @ V.conj().T
    np.testing.assert_allclose(2 * found.real if conj_sym else found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(Lambda.real, -0.5, rtol=1e-12)


@pytest.mark.parametrize("conj_sym", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_initial_values_are_the_published_ones(conj_sym):
    states, width = 64, 50
    mixer = S5(width, state_size=states, num_blocks=4, conj_sym=conj_sym, bidirectional=True)
    p = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, width))))["params"]
    Lambda, V = legs_blocks(states, 4, conj_sym)
    np.testing.assert_allclose(p["Lambda_re"], Lambda.real, rtol=1e-6)
    np.testing.assert_allclose(p["Lambda_im"], Lambda.imag, rtol=1e-6)
    steps, low, high = np.float64(p["log_step"]), np.log(1e-3), np.log(1e-1)
    assert steps.min() > low - 1e-4 and steps.max() < high + 1e-4
    # log-uniform, one step for each state: mean and deviation within four standard errors
    error = (high - low) / np.sqrt(12 * len(steps))
    assert abs(steps.mean() - (low + high) / 2) < 4 * error
    assert abs(steps.std() - (high - low) / np.sqrt(12)) < 4 * error
    # V B is real, of variance 1 / P: with half of the pairs, the other half is its conjugate.
    B = V @ complex_of(np.float64(p["B"]))
    B = 2 * B.real if conj_sym else B
    assert np.abs(B.imag).max() < 1e-5
    assert abs(B.real.std() * np.sqrt(states) - 1) < 0.05
    # In each direction C is a random matrix, each part of variance 1 / P, in the basis V.
    C = complex_of(np.float64(p["C"]))
    first, second = np.split(C, 2, axis=1)
    assert np.abs(first - second).max() > 0.1
    for part in (C.real, C.imag):
        assert abs(part.std() * np.sqrt(states) - 1) < 0.05
    if not conj_sym:
        assert np.abs((first @ V.conj().T).real).max() < 2.3 / np.sqrt(states)  # truncated at two deviations
    assert abs(p["D"].std() - 1) < 4 / np.sqrt(2 * width)


@pytest.mark.slow
def test_a_readout_of_its_own_is_complex_normal():
    mixer = S5(50, state_size=16, readout="complex_normal")
    p = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, 50))))["params"]
    assert p["C"].shape == (50, 8, 2)
    assert abs(np.mean(np.sum(np.square(p["C"]), axis=-1)) - 1) < 4 / np.sqrt(400)


@pytest.mark.parametrize(("bidirectional", "columns"), [(False, 32), (True, 64)])
def test_shapes_and_groups_of_parameters(bidirectional, columns):
    mixer = S5(width=6, state_size=64, bidirectional=bidirectional)
    shapes = nn.meta.unbox(jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, 6))))["params"]
    labels = parameter_labels(shapes)
    assert jax.tree.map(lambda leaf, label: (leaf.shape, label), shapes, labels) == {
        "Lambda_re": ((32,), "ssm"),
        "Lambda_im": ((32,), "ssm"),
        "log_step": ((32,), "ssm"),
        "B": ((32, 6, 2), "ssm"),
        "C": ((6, columns, 2), "no_decay"),
        "D": ((6,), "ssm"),
        "output": {"gate": {"kernel": ((6, 6), "decay"), "bias": ((6,), "no_decay")}},
    }


@pytest.mark.slow
def test_in_bfloat16_transitions_and_state_stay_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 64, 16))
    mixer = S5(width=16, state_size=8, dtype=jnp.bfloat16)
    variables = jax.jit(mixer.init)(jax.random.key(0), x)
    y, state = jax.jit(mixer.apply)(variables, x)
    exact, last = jax.jit(mixer.clone(dtype=None).apply)(variables, x)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.complex64 == mixer.init_state(1).dtype
    # Products of 8 bits each. A decay of exp(-0.5 dt) with dt from 1e-3 would be 1 in bfloat16.
    assert np.linalg.norm(np.float32(y) - exact) < 4 * 2**-8 * np.linalg.norm(exact)
    assert np.linalg.norm(state - last) < 2 * 2**-8 * np.linalg.norm(last)
    decay, driven = mixer.bind(variables)._driven(x.astype(jnp.bfloat16))
    assert decay.dtype == driven.dtype == jnp.complex64


@pytest.mark.slow
@pytest.mark.parametrize("options", [VARIANTS[0], VARIANTS[2]])
def test_gradients_reach_every_parameter_and_are_finite(options):
    x = jax.random.normal(jax.random.key(1), (2, 9, WIDTH))
    mixer = S5(WIDTH, **options)
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), x))
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply(p, x)[0]))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 0}, "num_blocks: got 0, expected at least 1"),
        ({"state_size": 6, "num_blocks": 2}, "state_size: got 6, expected 2 blocks of the same even size"),
        (
            {"state_size": 5, "num_blocks": 2, "conj_sym": False},
            "state_size: got 5, expected 2 blocks of the same size",
        ),
        ({"dt_min": 0.2}, r"dt_min, dt_max: got 0.2 and 0.1, expected 0 < dt_min <= dt_max"),
        ({"readout": "normal"}, "readout: got 'normal', expected one of lecun_normal, complex_normal"),
        ({"discretisation": "euler"}, "discretisation: got 'euler', expected one of zoh, bilinear"),
    ],
)
def test_what_makes_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(S5(WIDTH, **options).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
