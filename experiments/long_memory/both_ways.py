"""A mixer that sees all tokens, of two causal ones: the second reads from the end.

    y = forward(x) + reversed(backward(reversed(x)))

S4's released settings for the Long Range Arena have two directions, there with one state matrix and two readouts; here
each direction is a mixer of its own. Real tokens are brought together before, so that neither is told what is padding:
S4 then needs no recurrence, which is what a mask costs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lightnet.backbone import Capabilities, Mixer
from lightnet.scan.checks import check_per_token
from lightnet.typing import Array


class BothWays(Mixer):
    """Two mixers of one kind, whose outputs are added.

    Attributes:
        one_way: constructor of a causal mixer, called with the fields below.
        width: channels D.
        out_scale: standard deviation of the output kernel's initial values.
        dtype: of the computation.

    Example:
        >>> import jax
        >>> from ssm.s4d import S4D
        >>> mixer = BothWays(S4D, width=4)
        >>> variables = jax.jit(mixer.init)(jax.random.key(0), x := jnp.ones((1, 3, 4)))
        >>> y, _ = mixer.apply(variables, x)
        >>> further, _ = mixer.apply(variables, x.at[:, 2].set(2.0))
        >>> bool((y[:, 0] == further[:, 0]).all())
        False
    """

    one_way: Callable[..., nn.Module]
    width: int
    out_scale: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        """Declare both."""
        fields = {"width": self.width, "out_scale": self.out_scale, "dtype": self.dtype}
        self.forward, self.backward = self.one_way(**fields), self.one_way(**fields)

    @property
    def capabilities(self) -> Capabilities:
        """Neither order nor state."""
        return Capabilities(causal=False, state=False, step=False, segments=False, mask=True)

    def __call__(
        self, x: Array, state: None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, None]:
        """Mix a sequence.

        Args:
            x: (B, L, D).
            state: there is none.
            segment_ids: not supported.
            mask: (B, L), true at real tokens. A masked token is not seen, gives 0 and gets no gradient.

        Returns:
            (B, L, D) and None.

        Raises:
            ValueError: a state or segments are given, or an argument has another shape or kind than stated.
        """
        self.require(state=state is not None, segments=segment_ids is not None)
        check_per_token({"B": x.shape[0], "L": x.shape[1]}, segment_ids, mask)
        if mask is None:
            return self.forward(x)[0] + self.backward(x[:, ::-1])[0][:, ::-1], None
        x = jnp.where(mask[..., None], x, 0)
        places = jnp.arange(x.shape[1])[None]
        behind = jnp.where(mask, 0, x.shape[1])
        y = _in_order(self.forward, x, places + behind) + _in_order(self.backward, x, behind - places)
        return jnp.where(mask[..., None], y, 0), None


def _in_order(mix: Callable[[Array], tuple[Array, Any]], x: Array, keys: Array) -> Array:
    """Mix tokens in the order of their keys (B, L), and put them back."""
    order = jnp.argsort(keys, axis=1)
    y, _ = mix(jnp.take_along_axis(x, order[..., None], axis=1))
    return jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], axis=1)
