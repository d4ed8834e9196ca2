"""What tokens contribute to a gradient adds up to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm import Architecture, Mamba, Mamba2, mamba_lm
from ssm.dynamics.contributions import contributions, shares
from tests.ssm.draws import randomised

VOCABULARY = 11
TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, VOCABULARY, (2, 7)))
CASES = [
    (Mamba(5, state_size=3, dt_rank=2), "x_proj"),
    pytest.param(Mamba(5, state_size=3, dt_rank=2), "in_proj", marks=pytest.mark.slow),
    pytest.param(Mamba(5, state_size=3, dt_rank=2), "dt_proj", marks=pytest.mark.slow),
    pytest.param(Mamba2(6, state_size=2, head_size=3), "bc_proj", marks=pytest.mark.slow),
]


def build(mixer):
    model = mamba_lm(Architecture(mixer, vocab_size=VOCABULARY, num_layers=2))
    return model, {"params": jax.tree.map(jnp.asarray, randomised(model, TOKENS))}


def loss(logits):
    """Different for every position, and a sum over sequences."""
    return jnp.square(logits * jnp.arange(1, logits.shape[1] + 1)[None, :, None]).sum()


@pytest.mark.parametrize(("mixer", "name"), CASES)
def test_outer_products_add_up_to_the_gradient(mixer, name):
    with jax.enable_x64(True):
        model, variables = build(mixer)

        @jax.jit
        def both(variables):
            gradient = jax.grad(lambda variables: loss(model.apply(variables, TOKENS)))(variables)
            return gradient, contributions(model, variables, TOKENS, loss, name)

        gradient, found = both(variables)
        for i, part in enumerate(found):
            kernel = gradient["params"]["backbone"][f"blocks_{i}"]["mix"][name]["kernel"]
            total = np.einsum("bli,blo->io", part.inputs, part.cotangents)
            np.testing.assert_allclose(total, kernel.reshape(total.shape), rtol=0, atol=1e-9 * np.abs(kernel).max())
            each = np.einsum("bli,blo->blio", part.inputs, part.cotangents)
            np.testing.assert_allclose(part.norms, np.linalg.norm(each, axis=(2, 3)), rtol=1e-9)


@pytest.mark.slow
def test_sequences_do_not_mix_and_the_last_token_of_a_loss_on_the_first_has_no_share():
    model, variables = build(Mamba(5, state_size=3, dt_rank=2))

    @jax.jit
    def found(variables):
        return contributions(model, variables, TOKENS, lambda logits: jnp.square(logits[0, :4]).sum())

    for part in found(variables):
        assert not part.norms[1].any() and not part.norms[0, 4:].any() and part.norms[0, :4].all()
        np.testing.assert_allclose(shares(part.norms[0]).sum(), 1, rtol=1e-6)


def test_a_matrix_that_is_not_there_is_refused():
    model, variables = build(Mamba2(6, state_size=2, head_size=3))
    with pytest.raises(ValueError, match="name: got 'x_proj', expected a matrix of the mixer"):
        contributions(model, variables, TOKENS, loss)
