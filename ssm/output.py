"""What follows a linear state space model in its block: a nonlinearity and a gate that mix the channels.

    full_glu    (W gelu(y) + b) sigmoid(V gelu(y) + c)      S4 and S4D; arXiv 2111.00396, and S5's code
    half_glu1   gelu(y) sigmoid(V gelu(y) + c)              S5 (arXiv 2208.04933, appendix G.1)
    half_glu2   y sigmoid(V gelu(y) + c)                    S5
    gelu        gelu(y)

W is `value` and V is `gate`. Dropout, norm and residual are those of the backbone.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from lightnet.backbone import partitioned
from lightnet.typing import Array

OUTPUT_ACTIVATIONS = ("full_glu", "half_glu1", "half_glu2", "gelu")

Projection = Callable[[Array], Array]


def output_activation(name: str, y: Array, value: Projection, gate: Projection) -> Array:
    """One of the formulas of the module; gelu is exact, x times the normal distribution function.

    Args:
        name: one of `OUTPUT_ACTIVATIONS`.
        y: (..., D).
        value: W and b.
        gate: V and c, before the sigmoid.

    Returns:
        (..., D).

    Raises:
        ValueError: there is no such name.

    Example:
        >>> import jax.numpy as jnp
        >>> y = jnp.array([1.0])
        >>> output_activation("half_glu2", y, lambda u: u, lambda u: 0 * u).tolist()
        [0.5]
    """
    if name not in OUTPUT_ACTIVATIONS:
        raise ValueError(f"output_activation: got {name!r}, expected one of {', '.join(OUTPUT_ACTIVATIONS)}")
    u = jax.nn.gelu(y, approximate=False)
    if name == "gelu":
        return u
    gated = {"full_glu": value, "half_glu1": lambda u: u, "half_glu2": lambda u: y}[name]
    return gated(u) * jax.nn.sigmoid(gate(u))


class OutputBlock(nn.Module):
    """The parameters of `output_activation`; see the module.

    Attributes:
        width: channels D.
        activation: one of `OUTPUT_ACTIVATIONS`.
        out_scale: standard deviation of the initial values of W, which only "full_glu" has.
        dtype: of the computation; None takes that of the input and the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> y, variables = OutputBlock(3).init_with_output(jax.random.key(0), jnp.ones((2, 3)))
        >>> y.shape, sorted(variables["params"])
        ((2, 3), ['gate', 'value'])
    """

    width: int
    activation: str = "full_glu"
    out_scale: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, y: Array) -> Array:
        """Apply to the last axis."""

        def projection(name: str, init: Callable) -> Projection:
            into = partitioned(init, "mlp", "embed")
            return lambda u: nn.Dense(self.width, kernel_init=into, dtype=self.dtype, name=name)(u)

        value = projection("value", nn.initializers.normal(self.out_scale))
        return output_activation(self.activation, y, value, projection("gate", nn.initializers.lecun_normal()))
