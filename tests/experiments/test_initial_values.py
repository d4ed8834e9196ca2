"""Initial values of narrow models: which leaves are made larger, and by how much."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments.initial_values import for_narrow_models
from experiments.language_models import LanguageModel


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["lightnet", "mamba"])
def test_embeddings_and_kernels_of_blocks_are_made_larger_and_nothing_else(mixer):
    model = LanguageModel(vocab_size=11, mixer=mixer, num_layers=1, width=16, num_heads=2, hidden=8).build()
    boxed = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    before, after = (flatten_dict(nn.meta.unbox(tree), sep="/") for tree in (boxed, for_narrow_models(boxed, 16)))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    own = ("in_proj", "x_proj", "dt_proj", "conv1d")
    kernels = {name for name in before if "blocks_" in name and "kernel" in name and not any(o in name for o in own)}
    assert changed == kernels | {"params/embedding"} and len(kernels) >= 4
    for name in changed:
        np.testing.assert_allclose(after[name], 12.5 * before[name], rtol=1e-6)
