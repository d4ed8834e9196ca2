"""The long short-term memory and the gated recurrent unit as mixers, in one stack with what they are compared to."""

from typing import Any

import flax.linen as nn

from lightnet.backbone import Capabilities, Mixer
from lightnet.typing import Array


class LSTM(Mixer):
    """A layer of Flax's LSTM with as many units as channels, its initial values left as they are.

    Attributes:
        width: channels D.
        out_scale: not used: the units are the output.
        dtype: of the computation.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> LSTM(width=4).init_with_output(jax.random.key(0), jnp.ones((1, 5, 4)))[0][0].shape
        (1, 5, 4)
    """

    width: int
    out_scale: float = 0.02
    dtype: Any = None

    @property
    def capabilities(self) -> Capabilities:
        """Whole sequences only."""
        return Capabilities(causal=True, state=False, step=False, segments=False, mask=False)

    @nn.compact
    def __call__(
        self, x: Array, state: None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, None]:
        """Run over a whole sequence from an empty memory.

        Args:
            x: (B, L, D).
            state: not supported.
            segment_ids: not supported.
            mask: not supported.

        Returns:
            (B, L, D) and None.

        Raises:
            ValueError: something that is not supported is given.
        """
        self.require(state=state is not None, segments=segment_ids is not None, mask=mask is not None)
        y: Any = nn.RNN(self._cell())(x)
        return y, None

    def _cell(self) -> nn.RNNCellBase:
        return nn.OptimizedLSTMCell(self.width, dtype=self.dtype)


class GRU(LSTM):
    """A layer of Flax's gated recurrent unit in the same way.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> GRU(width=4).init_with_output(jax.random.key(0), jnp.ones((1, 5, 4)))[0][0].shape
        (1, 5, 4)
    """

    def _cell(self) -> nn.RNNCellBase:
        return nn.GRUCell(self.width, dtype=self.dtype)
