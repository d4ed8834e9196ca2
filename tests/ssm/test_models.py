"""Language models of Mamba and Mamba-2: their initial values and sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm import Architecture, Mamba, Mamba2, mamba_lm


@pytest.mark.parametrize("mixer", [Mamba(width=32, state_size=4), Mamba2(width=32, state_size=4, head_size=8)])
def test_what_enters_the_residual_stream_begins_as_published(mixer):
    model = mamba_lm(Architecture(mixer, vocab_size=500, num_layers=3))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    assert params["embedding"].std() == pytest.approx(0.02, rel=0.05)
    assert set(params["backbone"]["blocks_0"]) == {"mix", "mix_norm"}
    for block in range(3):
        kernel = np.asarray(params["backbone"][f"blocks_{block}"]["mix"]["out_proj"]["kernel"])
        # Uniform in +- 1 / sqrt(E), over the root of the number of layers.
        assert 0.99 < np.abs(kernel).max() * np.sqrt(64 * 3) <= 1
        assert kernel.std() * np.sqrt(64 * 3) == pytest.approx(1 / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("mixer", "layers", "vocabulary", "parameters"),
    [
        (Mamba(width=768), 24, 50280, 129_135_360),
        pytest.param(Mamba(width=1024), 48, 50280, 371_516_416, marks=pytest.mark.slow),
        pytest.param(Mamba2(width=768), 24, 50288, 128_989_632, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(mixer, layers, vocabulary, parameters):
    model = mamba_lm(Architecture(mixer, vocabulary, layers))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(("mixer", "numbers"), [(Mamba(width=768), 24_576), (Mamba2(width=768), 196_608)])
def test_states_of_the_published_sizes(mixer, numbers):
    """What a layer remembers at 130 M parameters, beside the few tokens of its convolution."""
    assert jax.eval_shape(lambda: mixer.init_state(1)).ssm.size == numbers
