"""S4: its equalities on dense matrices, the mixer against a loop over tokens, and its published initial values."""

import os
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.optimizer import parameter_labels
from ssm.dplr import (
    DPLR,
    bilinear_dplr,
    dense_bilinear,
    dense_matrices,
    kernel_by_powers,
    truncated_readout,
    untruncated_readout,
)
from ssm.initializers import hippo_legs, legs_pairs
from ssm.s4 import S4
from tests.ssm.draws import randomised
from tests.ssm.test_output import formula

WIDTH, LENGTH = 4, 7
SLOW = partial(pytest.param, marks=pytest.mark.slow)
STEPS = np.array([1e-3, 1e-2, 1e-1])


def legs_model(states, precision=np.float64):
    """HiPPO-LegS with a readout for each of `STEPS`, and these."""
    legs, channels = legs_pairs(states), len(STEPS)
    C = np.random.default_rng(0).standard_normal((channels, states // 2, 2)) @ [1, 1j]
    fields = [np.tile(z, (channels, 1)) for z in (legs.Lambda, legs.P, legs.B)]
    kind = np.result_type(precision, np.complex64)
    return DPLR(*(jnp.asarray(z, kind) for z in (*fields, C))), jnp.asarray(STEPS, precision)


def random_model(states=3):
    """None of whose numbers is special, and its steps."""
    random = np.random.default_rng(1)
    Lambda, P, B, C = (random.standard_normal((len(STEPS), states, 2)) @ [1, 1j] for _ in range(4))
    return DPLR(*map(jnp.asarray, (-np.exp(Lambda.real) + 1j * Lambda.imag, P, B, C))), jnp.asarray([0.3, 1.0, 0.7])


def powers(model, step, length):
    """The kernel by its definition, with dense matrices of all states."""
    A, B, C = dense_matrices(model)
    return kernel_by_powers(*dense_bilinear(A, B, step), C, length)


@pytest.mark.slow
def test_in_the_basis_of_its_normal_part_legs_is_the_same_system():
    with jax.enable_x64(True):
        model, step = legs_model(8)
        A, B = hippo_legs(8)
        # y = C* x with the real state V x: the readout of that is V C, once with each conjugate
        readout = 2 * (legs_pairs(8).V @ np.asarray(model.C).T).real.T
        expected = kernel_by_powers(
            *dense_bilinear(jnp.asarray(A)[None], jnp.asarray(B)[None], jnp.asarray(STEPS)), jnp.asarray(readout), 20
        )
        np.testing.assert_allclose(powers(model, step, 20), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [12, *map(SLOW, (1, 3, 100))])
def test_the_truncated_readout_there_and_back(length):
    with jax.enable_x64(True):
        model, step = random_model()
        discrete = bilinear_dplr(model, step)
        A, B, C = dense_matrices(model)
        transition = np.asarray(dense_bilinear(A, B, step)[0])
        power = np.linalg.matrix_power(transition, length)
        expected = C - np.einsum("dmn,dm->dn", power.conj(), C)
        found = jax.jit(truncated_readout, static_argnums=1)(discrete, length)
        np.testing.assert_allclose(found, expected[:, :3], rtol=0, atol=1e-12)
        back = jax.jit(untruncated_readout, static_argnums=2)(discrete, found, length)
        np.testing.assert_allclose(back, model.C, rtol=0, atol=1e-10)


def by_tokens(p, x, activation):
    """The definition for one sequence (L, D), with a dense matrix for each channel, and the last states."""
    outputs, states = np.zeros(x.shape), []
    for d in range(x.shape[1]):
        half = [(-np.exp(p["log_A_real"]) + 1j * p["A_imag"])[d], *(p[name][d] @ [1, 1j] for name in "PBC")]
        Lambda, P, B, C = (np.concatenate([z, z.conj()]) for z in half)
        A, dt, one = np.diag(Lambda) - np.outer(P, P.conj()), np.exp(p["log_step"][d]), np.eye(len(P))
        h = np.zeros(len(P), complex)
        for t in range(len(x)):
            h = np.linalg.solve(one - dt / 2 * A, (one + dt / 2 * A) @ h + dt * B * x[t, d])
            outputs[t, d] = (C.conj() @ h).real + p["D"][d] * x[t, d]
        states.append(h[: len(h) // 2])
    return formula(activation, p["output"], outputs), np.stack(states)


@pytest.mark.parametrize("masked", [False, SLOW(True)])
def test_equals_the_loop_over_tokens(masked):
    """The convolution, and the recurrence that a mask asks for."""
    with jax.enable_x64(True):
        mixer, x = S4(WIDTH, state_size=6), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params = randomised(mixer, x)
        y, state = jax.jit(mixer.apply)({"params": params}, x, mask=np.ones((2, LENGTH), bool) if masked else None)
        for row in range(2):
            expected, h = by_tokens(params, x[row], "full_glu")
            np.testing.assert_allclose(y[row], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
            np.testing.assert_allclose(state[row], h, rtol=0, atol=1e-12 * np.abs(h).max())


@pytest.mark.slow
def test_steps_scan_and_convolution_agree():
    with jax.enable_x64(True):
        mixer, x = S4(WIDTH, state_size=6), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params, state = {"params": randomised(mixer, x)}, mixer.init_state(2)
        convolved, _ = jax.jit(mixer.apply)(params, x)
        scanned, last = jax.jit(mixer.apply)(params, x, mask=np.ones((2, LENGTH), bool))
        step = jax.jit(partial(mixer.apply, method="step"))
        for t in range(LENGTH):
            y, state = step(params, x[:, t], state)
            np.testing.assert_allclose(y, convolved[:, t], rtol=0, atol=1e-10)
            np.testing.assert_allclose(y, scanned[:, t], rtol=0, atol=1e-10)
        np.testing.assert_allclose(state, last, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_parameters_mean_the_same_at_every_length():
    with jax.enable_x64(True):
        mixer, x = S4(WIDTH, state_size=6), np.random.default_rng(0).standard_normal((1, 12, WIDTH))
        params = randomised(mixer, x)
        whole, _ = jax.jit(mixer.apply)({"params": params}, x)
        for length in (1, 5):
            y, _ = jax.jit(mixer.apply)({"params": params}, x[:, :length])
            np.testing.assert_allclose(y, whole[:, :length], rtol=0, atol=1e-12)
        shifted = np.concatenate([np.zeros((1, 3, WIDTH)), x[:, :-3]], axis=1)
        late, _ = jax.jit(mixer.apply)({"params": params}, shifted)
        np.testing.assert_allclose(late[:, 3:], whole[:, :-3], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_both_forms_have_the_same_gradients_through_output_and_state():
    with jax.enable_x64(True):
        mixer, x = S4(WIDTH, state_size=4), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))

        def total(params, x, mask):
            y, state = mixer.apply({"params": params}, x, mask=mask)
            return sum(jnp.sum(jnp.sin(part)) for part in (y, state.real, state.imag))

        gradient, params = jax.jit(jax.grad(total, argnums=(0, 1))), randomised(mixer, x)
        whole, by_token = gradient(params, x, None), gradient(params, x, np.ones((2, LENGTH), bool))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), whole, by_token)


@pytest.mark.slow
def test_a_state_that_nobody_reads_is_not_computed():
    mixer, x = S4(WIDTH, state_size=4), jnp.zeros((1, LENGTH, WIDTH))
    variables = jax.eval_shape(mixer.init, jax.random.key(0), x)

    def loops(read):
        compiled = jax.jit(lambda variables, x: read(mixer.apply(variables, x))).lower(variables, x).compile()
        return compiled.as_text().count(" while(")

    assert loops(lambda both: both[0]) < loops(lambda both: both)


def test_initial_values_are_the_published_ones():
    width, mixer = 200, S4(200, state_size=16)
    p = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, width))))["params"]
    legs = legs_pairs(16)
    np.testing.assert_allclose(-np.exp(p["log_A_real"]), np.full((width, 8), -0.5), rtol=1e-6)
    for name, expected in (("A_imag", legs.Lambda.imag), ("P", legs.P), ("B", legs.B)):
        found = p[name] if name == "A_imag" else np.float64(p[name]) @ [1, 1j]
        np.testing.assert_allclose(found, np.tile(expected, (width, 1)), rtol=1e-6, atol=1e-6)
    low, high = np.log(1e-3), np.log(1e-1)
    assert low - 1e-5 < p["log_step"].min() < low + 0.3 and high - 0.3 < p["log_step"].max() < high + 1e-5
    # each part of C has variance 1/2, D variance 1: within four standard errors
    np.testing.assert_allclose(np.var(p["C"], axis=(0, 1)), 0.5, atol=4 * 0.5 * np.sqrt(2 / (8 * width)))
    assert abs(np.var(p["D"]) - 1) < 4 * np.sqrt(2 / width)


def test_shapes_and_groups_of_parameters():
    shapes = nn.meta.unbox(jax.eval_shape(S4(6).init, jax.random.key(0), jnp.zeros((1, 1, 6))))["params"]
    labels = parameter_labels(shapes)
    projection = {"kernel": ((6, 6), "decay"), "bias": ((6,), "no_decay")}
    assert jax.tree.map(lambda leaf, label: (leaf.shape, label), shapes, labels) == {
        "log_step": ((6,), "ssm"),
        "log_A_real": ((6, 32), "ssm"),
        "A_imag": ((6, 32), "ssm"),
        "P": ((6, 32, 2), "ssm"),
        "B": ((6, 32, 2), "ssm"),
        "C": ((6, 32, 2), "no_decay"),
        "D": ((6,), "ssm"),
        "output": {"value": projection, "gate": projection},
    }


ON_A_MESH = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ssm.s4 import S4

mixer, x = S4(4, state_size=4, output_activation="gelu"), jax.random.normal(jax.random.key(1), (4, 12, 4))
params = jax.jit(mixer.init)(jax.random.key(0), x)
gradient = lambda params, x: jax.grad(lambda x: mixer.apply(params, x)[0].sum())(x)
expected = jax.jit(gradient)(params, x)
mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", None, "tensor")))
    compiled = jax.jit(gradient).lower(params, x).compile()
    np.testing.assert_allclose(compiled(params, x), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
print(compiled.as_text().count("all-gather"))
"""


@pytest.mark.slow
def test_on_a_mesh_no_device_gathers_what_is_transformed():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", ON_A_MESH]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"]


@pytest.mark.slow
def test_in_bfloat16_kernel_and_state_stay_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 64, 16))
    mixer = S4(16, state_size=8, dtype=jnp.bfloat16, out_scale=0.5)
    variables = jax.jit(mixer.init)(jax.random.key(0), x)
    y, state = jax.jit(mixer.apply)(variables, x)
    exact, last = jax.jit(mixer.clone(dtype=None).apply)(variables, x)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.complex64 == mixer.init_state(1).dtype
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-6 * np.abs(last).max())
    # Three products of 8 bits each behind it.
    assert np.linalg.norm(np.float32(y) - exact) < 4 * 2**-8 * np.linalg.norm(exact)


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_are_finite():
    x = jax.random.normal(jax.random.key(1), (2, 8, WIDTH))
    mixer = S4(WIDTH, state_size=4)
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), x))
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply(p, x)[0]))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 5}, "state_size: got 5, expected an even number of at least 2"),
        ({"dt_min": 0.0}, r"dt_min, dt_max: got 0.0 and 0.1, expected 0 < dt_min <= dt_max"),
    ],
)
def test_what_makes_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=message):
        S4(WIDTH, **options).init(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
