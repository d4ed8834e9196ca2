"""The gated linear unit, LightNet's channel mixer. The MLP of other models is in `lightnet.backbone`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lightnet.backbone import partitioned
from lightnet.typing import Array


def glu_width(width: int, multiple: int = 64) -> int:
    """8/3 of the width, rounded up: as many parameters as an MLP of four times the width.

    Args:
        width: channels D.
        multiple: what the result is a multiple of.

    Returns:
        The hidden width.

    Example:
        >>> glu_width(768), glu_width(1024)
        (2048, 2752)
    """
    return -(-8 * width // (3 * multiple)) * multiple


class GLU(nn.Module):
    """Gated linear unit W_3 (silu(W_1 x) * W_2 x), on each position by itself (Shazeer 2020, arXiv 2002.05202).

    Attributes:
        hidden: width of the hidden layer; None is `glu_width`.
        activation: of the gate.
        use_bias: whether the dense layers have biases.
        out_scale: standard deviation of the last kernel's initial values.
        dtype: of the computation; None takes that of the inputs and parameters.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> y, variables = GLU(hidden=6).init_with_output(jax.random.key(0), jnp.ones((1, 3, 4)))
        >>> y.shape
        (1, 3, 4)
    """

    hidden: int | None = None
    activation: Callable[[Array], Array] = nn.silu
    use_bias: bool = False
    out_scale: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., D) to (..., D)."""
        hidden = self.hidden or glu_width(x.shape[-1])
        into = partitioned(nn.initializers.normal(0.02), "embed", "mlp")
        back = partitioned(nn.initializers.normal(self.out_scale), "mlp", "embed")
        gate = nn.Dense(hidden, use_bias=self.use_bias, kernel_init=into, dtype=self.dtype, name="gate")(x)
        up = nn.Dense(hidden, use_bias=self.use_bias, kernel_init=into, dtype=self.dtype, name="up")(x)
        down = nn.Dense(x.shape[-1], use_bias=self.use_bias, kernel_init=back, dtype=self.dtype, name="down")
        return down(self.activation(gate) * up)
