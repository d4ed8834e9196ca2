"""What the mixers have in common: projections into heads, places of tokens, and LightNet's gated output."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import partitioned
from lightnet.positions import RelativePositions, grid_coordinates, token_coordinates
from lightnet.typing import Array

Relative = Callable[..., RelativePositions] | None


def into_heads(parts: int, width: int, num_heads: int, use_bias: bool, dtype: Any) -> nn.DenseGeneral:
    """A projection (..., D) -> (..., parts, H, D / H).

    Raises:
        ValueError: the heads do not divide the width.
    """
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads: got {num_heads}, expected a divisor of the width {width}")
    kernel = partitioned(nn.initializers.normal(0.02), "embed", None, "heads", "head_size")
    features = (parts, num_heads, width // num_heads)
    return nn.DenseGeneral(features, use_bias=use_bias, kernel_init=kernel, dtype=dtype)


def out_of_heads(width: int, out_scale: float, use_bias: bool, dtype: Any) -> nn.DenseGeneral:
    """A projection (..., H, K) -> (..., D) into the residual stream."""
    kernel = partitioned(nn.initializers.normal(out_scale), "heads", "head_size", "embed")
    return nn.DenseGeneral(width, axis=(-2, -1), use_bias=use_bias, kernel_init=kernel, dtype=dtype)


def places(
    x: Array,
    grid: tuple[int, ...] | None,
    num_extra: int,
    *,
    segment_ids: Array | None = None,
    mask: Array | None = None,
    offset: Array | None = None,
) -> tuple[Array, Array]:
    """Where the tokens of x stand.

    Args:
        x: (B, L, D).
        grid: size along each axis, or None for a sequence.
        num_extra: tokens before the grid.
        segment_ids: (B, L), of a sequence.
        mask: (B, L).
        offset: (B,) real tokens before a sequence.

    Returns:
        Coordinates (B or 1, L, A), and the position (B,) behind the last token of a sequence.

    Raises:
        ValueError: the grid has another number of tokens than x.

    Example:
        >>> coordinates, after = places(jnp.zeros((1, 3, 8)), None, 0, offset=jnp.array([4]))
        >>> coordinates[0, :, 0].tolist(), after.tolist()
        ([4, 5, 6], [7])
    """
    batch, length = x.shape[:2]
    if grid is not None:
        if length != (expected := num_extra + math.prod(grid)):
            raise ValueError(f"x: got {length} tokens, expected {expected}: {num_extra} and {grid}")
        return grid_coordinates(grid, num_extra)[None], jnp.zeros(batch, jnp.int32)
    coordinates = token_coordinates(length, segment_ids=segment_ids, mask=mask, offset=offset)
    after = coordinates[:, -1, 0] + (1 if mask is None else mask[:, -1])
    return coordinates, jnp.broadcast_to(after, (batch,)).astype(jnp.int32)


def paired_key_size(relative: Relative, head_size: int) -> int:
    """Channels of a key behind `RelativePositions.pair`: K, or 2 K with MD-LRPE.

    Example:
        >>> from lightnet.positions import MDLRPE, Rotary
        >>> paired_key_size(MDLRPE, 4), paired_key_size(Rotary, 4), paired_key_size(None, 4)
        (8, 4, 4)
    """
    if relative is None:
        return head_size
    key, factor = jnp.zeros((1, head_size)), jnp.zeros((1, 2, head_size))
    # A module without a parent, since states are made outside of a model too.
    return jax.eval_shape(relative(head_size=head_size, parent=None).pair, key, key, factor)[1].shape[-1]


def zero_masked(x: Array, mask: Array | None) -> Array:
    """0 in the place of masked tokens, whatever they contain."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def precision_of_states(dtype: Any) -> Any:
    """The precision of an empty state: float32 at least; without a dtype the widest that parameters could have."""
    return jnp.result_type(float) if dtype is None else jnp.promote_types(dtype, jnp.float32)


class GatedOutput(nn.Module):
    """LightNet's output: y = W_o RMSNorm(o * sigmoid(W_u2 W_u1 x)), the heads of o concatenated.

    The low-rank gate is the paper's (eqs. 7-9 as its reviews quote them); that it stands before the norm, and is a
    sigmoid of rank K, follows the first author's code. Another public implementation has a SiLU behind the norm.

    Attributes:
        width: channels D.
        rank: of the gate.
        activation: of the gate.
        position: "before" or "after" the norm.
        norm: constructor of norms over all D channels.
        use_bias: biases of the projections.
        out_scale: standard deviation of the output kernel's initial values.
        dtype: of the computation.

    Example:
        >>> output = GatedOutput(width=6, rank=2)
        >>> o, x = jnp.ones((1, 5, 3, 2)), jnp.ones((1, 5, 6))
        >>> y, variables = jax.jit(output.init_with_output)(jax.random.key(0), o, x)
        >>> y.shape
        (1, 5, 6)
    """

    width: int
    rank: int
    activation: Callable[[Array], Array] = nn.sigmoid
    position: str = "before"
    norm: Callable[..., nn.Module] = partial(nn.RMSNorm, epsilon=1e-6)
    use_bias: bool = False
    out_scale: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        """Declare the gate, the norm and the output."""
        if self.position not in ("before", "after"):
            raise ValueError(f"gate_position: got {self.position!r}, expected before or after (the norm)")
        down = partitioned(nn.initializers.normal(0.02), "embed", None)
        up = partitioned(nn.initializers.normal(0.02), None, "embed")
        self.gate_down = nn.Dense(self.rank, use_bias=self.use_bias, kernel_init=down, dtype=self.dtype)
        self.gate_up = nn.Dense(self.width, use_bias=self.use_bias, kernel_init=up, dtype=self.dtype)
        self.norm_over_heads = self.norm(scale_init=partitioned(nn.initializers.ones, "embed"), dtype=self.dtype)
        self.out = out_of_heads(self.width, self.out_scale, self.use_bias, self.dtype)

    def __call__(self, o: Array, x: Array) -> Array:
        """Gate, norm and project.

        Args:
            o: what the heads read, (..., H, V) with H V = D.
            x: the mixer's input (..., D).

        Returns:
            (..., D).
        """
        gate = self.activation(self.gate_up(self.gate_down(x)))
        flat = o.reshape(x.shape)
        flat = self.norm_over_heads(flat * gate) if self.position == "before" else self.norm_over_heads(flat) * gate
        return self.out(flat.reshape(o.shape))
