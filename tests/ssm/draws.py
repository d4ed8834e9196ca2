"""Parameters for the tests of mixers."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np


def randomised(mixer: nn.Module, x: Any, scale: float = 0.6) -> Any:
    """Parameters of which none keeps a special initial value."""
    random = np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(mixer.init, jax.random.key(0), x))["params"]
    return jax.tree.map(lambda leaf: scale * random.standard_normal(leaf.shape), shapes)
