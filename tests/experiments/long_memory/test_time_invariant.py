"""Mamba's block without selection: against the selective recurrence with constants, and what time does to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.meta import unbox

from experiments.long_memory.time_invariant import TimeInvariantMamba
from lightnet.scan import selective_scan
from ssm.mamba import Mamba

WIDTH, STATES, LENGTH = 5, 3, 7
MIXER = TimeInvariantMamba(width=WIDTH, state_size=STATES, out_scale=1.0)


@pytest.fixture(scope="module")
def variables():
    """Parameters none of which is 0 or 1."""
    x = jnp.ones((1, LENGTH, WIDTH))
    leaves, tree = jax.tree.flatten(unbox(jax.jit(MIXER.init)(jax.random.key(0), x)))
    random = np.random.default_rng(1)
    return tree.unflatten([leaf + 0.3 * random.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def tokens(rows=2, length=LENGTH, seed=2):
    return jax.random.normal(jax.random.key(seed), (rows, length, WIDTH))


def test_it_is_mambas_block_with_constants_in_the_place_of_what_is_selected(variables):
    """With B and C that all channels share, `selective_scan` computes it."""
    params = variables["params"]
    shared = {name: jnp.broadcast_to(params[name][:1], params[name].shape) for name in ("B", "C")}
    x, mixer = tokens(), MIXER.bind({"params": {**params, **shared}})
    y, state = jax.jit(MIXER.apply)({"params": {**params, **shared}}, x)
    u, z = mixer._branches(x)
    u, _ = mixer._convolved(u, None)
    dt = jnp.broadcast_to(jax.nn.softplus(params["dt_bias"]), u.shape)
    B, C = (jnp.broadcast_to(shared[name][0], (*u.shape[:2], STATES)) for name in ("B", "C"))
    inner, after = selective_scan(u, dt, -jnp.exp(params["A_log"]), B, C, params["D"], z=z)
    np.testing.assert_allclose(y, mixer.out_proj(inner), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state.ssm, after, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_steps_and_pieces_are_the_whole(variables):
    x = tokens()
    apply = jax.jit(MIXER.apply)
    whole, end = apply(variables, x)
    first, state = apply(variables, x[:, :3])
    rest, _ = apply(variables, x[:, 3:], state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), whole, rtol=1e-4, atol=1e-5)
    step = jax.jit(lambda variables, x, state: MIXER.apply(variables, x, state, method="step"))
    state, outputs = MIXER.init_state(2), []
    for t in range(LENGTH):
        y, state = step(variables, x[:, t], state)
        outputs.append(y)
    np.testing.assert_allclose(jnp.stack(outputs, axis=1), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.ssm, end.ssm, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_masked_tokens_and_runs(variables):
    x, apply = tokens(1), jax.jit(MIXER.apply)
    poisoned = jnp.concatenate([jnp.full((1, 2, WIDTH), jnp.nan), x], axis=1)
    y, _ = apply(variables, poisoned, mask=jnp.arange(LENGTH + 2)[None] >= 2)
    np.testing.assert_allclose(y[:, 2:], apply(variables, x)[0], rtol=1e-4, atol=1e-5)
    y, _ = apply(variables, x, segment_ids=(jnp.arange(LENGTH) >= 4)[None].astype(jnp.int32))
    np.testing.assert_allclose(y[:, 4:], apply(variables, x[:, 4:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_inputs_weigh_the_same_whatever_stands_between(variables):
    """The recurrence is linear and time-invariant; Mamba's, which selects, is not."""
    u = jax.random.normal(jax.random.key(3), (1, LENGTH, MIXER.inner))
    bound = MIXER.bind(variables)

    def read(u):
        return bound._scanned(u, None, None)[0]

    later = jnp.concatenate([jnp.zeros_like(u[:, :2]), u[:, :-2]], axis=1)
    np.testing.assert_allclose(read(later)[:, 2:], read(u)[:, :-2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read(2 * u), 2 * read(u), rtol=1e-4, atol=1e-5)
    mamba = Mamba(width=WIDTH, state_size=STATES)
    selective = mamba.bind(jax.jit(mamba.init)(jax.random.key(0), tokens()))
    doubled, once = (selective._scanned(factor * u, None, None)[0] for factor in (2, 1))
    assert float(jnp.abs(doubled - 2 * once).max()) > 1e-3


def test_nothing_that_selects_is_a_parameter(variables):
    names = set(variables["params"])
    assert names == {"in_proj", "conv1d", "dt_bias", "A_log", "D", "B", "C", "out_proj"}
