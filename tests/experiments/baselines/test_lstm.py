"""The LSTM as a mixer: causal, and the equations of a long short-term memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.lstm import LSTM


@pytest.mark.slow
def test_it_is_the_recurrence_and_causal():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    (y, state), variables = LSTM(width=3).init_with_output(jax.random.key(1), x)
    assert state is None
    cell = next(iter(variables["params"].values()))
    h = c = jnp.zeros((2, 3))
    for t in range(5):
        gate = {name: x[:, t] @ cell[f"i{name}"]["kernel"] + h @ cell[f"h{name}"]["kernel"] for name in "ifgo"}
        gate = {name: value + cell[f"h{name}"]["bias"][None] for name, value in gate.items()}
        c = jax.nn.sigmoid(gate["f"]) * c + jax.nn.sigmoid(gate["i"]) * jnp.tanh(gate["g"])
        h = jax.nn.sigmoid(gate["o"]) * jnp.tanh(c)
        np.testing.assert_allclose(y[:, t], h, atol=1e-5)
    later = LSTM(width=3).apply(variables, x.at[:, 3:].add(1.0))[0]
    np.testing.assert_array_equal(later[:, :3], y[:, :3])


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="LSTM: mask not supported"):
        LSTM(width=3).init(jax.random.key(0), jnp.ones((1, 2, 3)), mask=jnp.ones((1, 2), bool))
