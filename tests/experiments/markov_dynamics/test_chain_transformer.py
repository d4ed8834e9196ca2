"""The small transformer with a limited view: what it sees, what it counts, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.markov_dynamics.chain_transformer import WindowedAttention, chain_transformer, next_symbol_loss


@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_position_sees_its_window_and_nothing_else(window):
    attention = WindowedAttention(width=4, num_heads=2, window=window, out_scale=1.0)
    x = jax.random.normal(jax.random.key(0), (1, 7, 4))
    variables = jax.jit(attention.init)(jax.random.key(1), x)
    influence = jax.jit(jax.jacobian(lambda x: attention.apply(variables, x)[0][0].sum(axis=-1)))(x)[:, 0]
    seen = np.abs(influence).sum(axis=-1) > 0
    lag = np.arange(7)[:, None] - np.arange(7)
    np.testing.assert_array_equal(seen, (lag >= 0) & (lag <= (window or 7)))


def test_what_it_cannot_do_is_refused_by_name():
    attention = WindowedAttention(width=4)
    x = jnp.ones((1, 3, 4))
    variables = attention.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="WindowedAttention: mask not supported"):
        attention.apply(variables, x, mask=jnp.ones((1, 3), bool))


def test_an_untied_model_has_an_output_kernel_of_its_own():
    symbols = jnp.zeros((1, 5), jnp.int32)

    def shapes(tied):
        return jax.eval_shape(chain_transformer(6, layers=1, width=4, tied=tied).init, jax.random.key(0), symbols)

    tied, untied = (sum(leaf.size for leaf in jax.tree.leaves(shapes(tied))) for tied in (True, False))
    assert untied == tied + 2 * 4


@pytest.mark.slow
def test_the_loss_is_the_mean_over_all_symbols_but_the_first():
    model = chain_transformer(8, layers=1, width=4)
    symbols = jax.random.bernoulli(jax.random.key(0), 0.5, (3, 8)).astype(jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), symbols))["params"]
    compiled = jax.jit(next_symbol_loss(model))
    loss = compiled(params, symbols)
    assert float(loss) == pytest.approx(np.log(2), abs=0.05)
    # The last symbol is predicted and never read: the other symbols' part stays.
    logs = jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, symbols[:, :-1]))
    change = np.asarray(compiled(params, symbols.at[:, -1].set(1 - symbols[:, -1])) - loss)
    last = np.take_along_axis(np.asarray(logs[:, -1]), np.asarray(symbols[:, -1:]), axis=1)
    other = np.take_along_axis(np.asarray(logs[:, -1]), 1 - np.asarray(symbols[:, -1:]), axis=1)
    assert change == pytest.approx((last - other).sum() / (3 * 7), abs=1e-6)
