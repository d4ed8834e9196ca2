"""Mamba-2's mixer against a loop over tokens and heads, its dual form, and its published initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.optimizer import parameter_labels
from lightnet.scan import gated_linear_attention, selective_scan
from lightnet.scan.gated import xla as chunked
from ssm.mamba2 import Mamba2, gated_rms_norm
from ssm.ssd import segment_sums, ssd_quadratic
from tests.ssm.draws import randomised

WIDTH, LENGTH = 6, 7
OTHERWISE = {
    "state_size": 2,
    "head_size": 3,
    "expand": 4,
    "num_groups": 2,
    "conv_width": 2,
    "dt_limit": (0.4, 0.9),
    "use_bias": True,
    "conv_bias": False,
}
VARIANTS = [pytest.param({"state_size": 3, "head_size": 4, "norm_eps": 0.1}, marks=pytest.mark.slow), OTHERWISE]


def silu(x):
    return x / (1 + np.exp(-x))


def convolved(x, taps, bias):
    """Causal, each channel by itself, (L, channels)."""
    past = [sum(taps[-1 - j] * x[t - j] for j in range(min(t + 1, len(taps)))) for t in range(len(x))]
    return silu(np.stack(past) + bias)


def by_tokens(p, x, groups, limit, epsilon):
    """The definition for one sequence (L, D), one token and one head at a time."""
    biases = {name: entry.get("bias", 0) for name, entry in p.items() if isinstance(entry, dict)}
    z, u = np.moveaxis(np.einsum("ld,dpe->lpe", x, p["in_proj"]["kernel"]) + biases["in_proj"], 1, 0)
    bc = np.einsum("ld,dpn->lpn", x, p["bc_proj"]["kernel"]) + biases["bc_proj"]
    u = convolved(u, p["conv1d"]["kernel"], biases["conv1d"])
    bc = convolved(bc.reshape(len(x), -1), p["conv1d_bc"]["kernel"], biases["conv1d_bc"])
    B, C = np.moveaxis(bc.reshape(len(x), 2, groups, -1), 1, 0)
    dt = np.clip(np.log1p(np.exp(x @ p["dt_proj"]["kernel"] + biases["dt_proj"] + p["dt_bias"])), *limit)
    heads, inner = len(p["A_log"]), u.shape[1]
    size, S, outputs = inner // heads, np.zeros((heads, B.shape[2], inner // heads)), []
    for t in range(len(x)):
        y = np.zeros(inner)
        for h in range(heads):
            own, g = slice(h * size, (h + 1) * size), h // (heads // groups)
            S[h] = np.exp(-dt[t, h] * np.exp(p["A_log"][h])) * S[h] + dt[t, h] * np.outer(B[t, g], u[t, own])
            y[own] = C[t, g] @ S[h] + p["D"][h] * u[t, own]
        gated = (y * silu(z[t])).reshape(groups, -1)
        normed = gated / np.sqrt((gated**2).mean(axis=1, keepdims=True) + epsilon)
        outputs.append((normed.ravel() * p["norm"]["scale"]) @ p["out_proj"]["kernel"] + biases["out_proj"])
    return np.stack(outputs), S


@pytest.mark.parametrize("options", VARIANTS)
def test_equals_the_loop_over_tokens(options):
    with jax.enable_x64(True):
        mixer, x = Mamba2(WIDTH, **options), np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))
        params = randomised(mixer, x)
        y, state = jax.jit(mixer.apply)({"params": params}, x)
        for row in range(2):
            expected, S = by_tokens(params, x[row], mixer.num_groups, mixer.dt_limit, mixer.norm_eps)
            np.testing.assert_allclose(y[row], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
            np.testing.assert_allclose(state.ssm[row], S, rtol=0, atol=1e-12 * np.abs(S).max())


def drawn(length, heads=4, groups=2, size=3, states=5):
    """Inputs, log decays, B, C and an initial state, in double precision."""
    random = np.random.default_rng(length)
    x, B, C = (
        random.standard_normal((2, length, n, m)) for n, m in ((heads, size), (groups, states), (groups, states))
    )
    log_decay = -random.exponential(size=(2, length, heads))
    return [jnp.asarray(v) for v in (x, log_decay, B, C, random.standard_normal((2, heads, states, size)))]


@pytest.mark.parametrize("chunk", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 8, 11, 16))])
def test_the_dual_form_is_the_recurrence_in_chunks_of_any_size(chunk, monkeypatch):
    monkeypatch.setattr(chunked, "SCALAR_CHUNK", chunk)
    with jax.enable_x64(True):
        x, log_decay, B, C, state = drawn(11)
        expected = jax.jit(ssd_quadratic)(x, log_decay, B, C, state)
        attention = jax.jit(lambda *operands: gated_linear_attention(*operands, initial_state=state))
        found = attention(C, B, x, log_decay[..., None])
        jax.tree.map(lambda y, z: np.testing.assert_allclose(y, z, rtol=0, atol=1e-12), found, expected)


def test_the_dual_form_is_the_recurrence_token_by_token():
    with jax.enable_x64(True):
        x, log_decay, B, C, state = drawn(9)
        y, final = jax.jit(ssd_quadratic)(x, log_decay, B, C)
        S, B, C = np.zeros(state.shape), np.repeat(B, 2, axis=2), np.repeat(C, 2, axis=2)
        for t in range(9):
            S = np.exp(log_decay[:, t, :, None, None]) * S + B[:, t, :, :, None] * x[:, t, :, None]
            np.testing.assert_allclose(y[:, t], np.einsum("bhn,bhnp->bhp", C[:, t], S), rtol=0, atol=1e-12)
        np.testing.assert_allclose(final, S, rtol=0, atol=1e-12)


def test_segment_sums_keep_their_digits_behind_strong_decays():
    log_decay = -np.random.default_rng(0).exponential(3.0, 256).astype(np.float32)
    exact = np.tril(np.cumsum(np.tril(np.tile(np.float64(log_decay)[:, None], 256), -1), axis=0))
    found, lower = np.asarray(segment_sums(jnp.asarray(log_decay))), np.tri(256, dtype=bool)
    # Each is a sum of i - j numbers of one sign, rounded at every step at worst.
    assert (np.abs(found - exact) <= 256 * 2**-24 * np.abs(exact))[lower].all()
    assert (found[~lower] == -np.inf).all()


@pytest.mark.slow
def test_gradients_of_the_dual_form_are_finite_where_its_mask_is_zero():
    x, log_decay, B, C, state = (jnp.asarray(v, jnp.float32) for v in drawn(6))
    log_decay = log_decay.at[:, 3].set(-jnp.inf)

    def loss(*operands):
        return sum(jnp.sum(jnp.sin(out)) for out in ssd_quadratic(*operands))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(x, log_decay, B, C, state)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.slow
def test_is_the_recurrence_of_mamba_with_one_step_and_one_rate_per_head():
    heads, size, states, random = 3, 2, 4, np.random.default_rng(0)
    with jax.enable_x64(True):
        u = random.standard_normal((2, LENGTH, heads, size))
        B, C = random.standard_normal((2, 2, LENGTH, states))
        dt, rate, skip = (
            random.exponential(size=(2, LENGTH, heads)),
            -random.exponential(size=heads),
            random.random(heads),
        )
        o, S = gated_linear_attention(C[:, :, None], B[:, :, None], dt[..., None] * u, (dt * rate)[..., None])
        every, A = np.repeat(dt, size, axis=2), np.repeat(rate, size)[:, None] * np.ones(states)
        flat = u.reshape(2, LENGTH, -1)
        y, h = selective_scan(flat, every, A, B, C, np.repeat(skip, size))
        np.testing.assert_allclose((o + skip[:, None] * u).reshape(flat.shape), y, rtol=0, atol=1e-12)
        np.testing.assert_allclose(S.swapaxes(2, 3).reshape(h.shape), h, rtol=0, atol=1e-12)


def test_shapes_of_a_published_model():
    shapes = jax.eval_shape(Mamba2(width=768, use_bias=True).init, jax.random.key(0), jnp.zeros((1, 1, 768)))
    shapes = jax.tree.map(jnp.shape, nn.meta.unbox(shapes)["params"])
    assert shapes == {
        "in_proj": {"kernel": (768, 2, 1536), "bias": (2, 1536)},
        "bc_proj": {"kernel": (768, 2, 128), "bias": (2, 128)},
        "dt_proj": {"kernel": (768, 24), "bias": (24,)},
        "conv1d": {"kernel": (4, 1536), "bias": (1536,)},
        "conv1d_bc": {"kernel": (4, 256), "bias": (256,)},
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "norm": {"scale": (1536,)},
        "out_proj": {"kernel": (1536, 768), "bias": (768,)},
    }


def test_initial_values_are_the_published_ones():
    mixer = Mamba2(width=64, head_size=1, state_size=32)
    p = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, 64))))["params"]
    np.testing.assert_array_equal(p["D"], np.ones(128))
    np.testing.assert_array_equal(p["norm"]["scale"], np.ones(128))
    rates, steps = np.exp(np.float64(p["A_log"])), np.log(np.log1p(np.exp(np.float64(p["dt_bias"]))))
    # uniform and log-uniform: of 128 draws, the mean and the deviation within four standard errors
    for found, low, high in [(rates, 1, 16), (steps, np.log(1e-3), np.log(1e-1))]:
        assert found.min() > low - 1e-4 and found.max() < high + 1e-4
        error = (high - low) / np.sqrt(12 * 128)
        assert abs(found.mean() - (low + high) / 2) < 4 * error
        assert abs(found.std() - (high - low) / np.sqrt(12)) < 4 * error
    for name, fan_in in [("in_proj", 64), ("bc_proj", 64), ("dt_proj", 64), ("conv1d", 4), ("conv1d_bc", 4)]:
        assert 0.95 < np.abs(p[name]["kernel"]).max() * np.sqrt(fan_in) <= 1, name
    assert abs(p["out_proj"]["kernel"].std() / 0.02 - 1) < 0.05


def test_what_parameterises_the_recurrence_is_not_decayed():
    shapes = jax.eval_shape(Mamba2(WIDTH, head_size=2, use_bias=True).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    labels = parameter_labels(nn.meta.unbox(shapes)["params"])
    assert [labels.pop(name) for name in ("A_log", "D", "dt_bias")] == ["ssm"] * 3
    assert labels.pop("norm") == {"scale": "no_decay"}
    assert all(entry == {"kernel": "decay", "bias": "no_decay"} for entry in labels.values()) and len(labels) == 6


@pytest.mark.slow
def test_in_bfloat16_step_rates_and_state_stay_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 64, 16))
    mixer = Mamba2(width=16, state_size=4, head_size=8, dtype=jnp.bfloat16, out_scale=0.5)
    variables = jax.jit(mixer.init)(jax.random.key(0), x)
    y, state = jax.jit(mixer.apply)(variables, x)
    exact, _ = jax.jit(mixer.clone(dtype=None).apply)(variables, x)
    assert y.dtype == jnp.bfloat16 and {leaf.dtype for leaf in state} == {jnp.dtype("float32")}
    assert [leaf.dtype for leaf in mixer.init_state(1)] == [jnp.float32] * 3
    # Projections of 8 bits each; rounding the steps too would let each state drift by up to 64 such errors.
    assert np.linalg.norm(np.float32(y) - exact) < 4 * 2**-8 * np.linalg.norm(exact)
    # Where a step is 4e-3 of the rate, bfloat16 could not tell the decay from 1.
    narrow = [jnp.zeros((1, 1, size), jnp.bfloat16) for size in (16, 32, 8)]
    _, operands = mixer.bind(variables)._operands(*narrow)
    assert [leaf.dtype for leaf in operands] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]


@pytest.mark.parametrize(("dtype", "stored"), [(None, jnp.bfloat16), (jnp.bfloat16, jnp.float32)])
def test_steps_are_projected_in_float32(dtype, stored):
    mixer = Mamba2(WIDTH, state_size=2, head_size=3, dtype=dtype)
    x = jax.random.normal(jax.random.key(1), (1, 9, WIDTH), stored)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, stored), randomised(mixer, x))
    _, operands = mixer.bind({"params": params})._operands(x, *(jnp.zeros((1, 9, n), jnp.bfloat16) for n in (12, 4)))
    projected = np.float64(x) @ np.float64(params["dt_proj"]["kernel"])
    expected = -np.log1p(np.exp(projected + np.float64(params["dt_bias"]))) * np.exp(np.float64(params["A_log"]))
    np.testing.assert_allclose(operands[3][..., 0], expected, rtol=1e-6)


def test_statistics_of_the_norm_are_those_of_float32():
    random = np.random.default_rng(0)
    y, z, scale = (jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for shape in ((5, 64), (5, 64), 64))
    wide = [np.float64(x) for x in (y, z, scale)]
    gated = (wide[0] * silu(wide[1])).reshape(5, 2, 32)
    expected = (gated / np.sqrt((gated**2).mean(axis=2, keepdims=True) + 1e-5)).reshape(5, 64) * wide[2]
    np.testing.assert_allclose(gated_rms_norm(y, z, scale, 2, 1e-5), expected, rtol=1e-6)


def test_the_output_kernel_starts_from_what_is_given():
    mixer = Mamba2(WIDTH, state_size=2, head_size=3, out_init=nn.initializers.constant(0.25))
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH))))["params"]
    np.testing.assert_array_equal(params["out_proj"]["kernel"], np.full((12, WIDTH), 0.25))


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_are_finite():
    x = jax.random.normal(jax.random.key(1), (2, 9, WIDTH))
    mixer = Mamba2(WIDTH, state_size=2, head_size=3, num_groups=2, use_bias=True)
    params = nn.meta.unbox(jax.jit(mixer.init)(jax.random.key(0), x))
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(mixer.apply(p, x)[0]))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 0}, "state_size: got 0, expected at least 1"),
        ({"head_size": 5}, r"head_size: got 5, expected a divisor of expand \* width = 12"),
        ({"head_size": 4, "num_groups": 2}, "num_groups: got 2, expected a divisor of the 3 heads"),
        ({"head_size": 4, "dt_min": 0.2}, r"dt_min, dt_max: got 0.2 and 0.1, expected 0 < dt_min <= dt_max"),
        ({"head_size": 4, "dt_limit": (0.1, 0.0)}, r"dt_limit: got \(0.1, 0.0\), expected 0 <= low < high"),
        ({"head_size": 4, "A_range": (0.0, 1.0)}, r"A_range: got \(0.0, 1.0\), expected 0 < low <= high"),
    ],
)
def test_what_makes_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Mamba2(WIDTH, **options).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
