"""The relative encodings as modules: what a mixer applies to its queries and keys, in every layer.

    factor = encoding(coordinates)                     # once for all heads, from coordinates (..., A)
    q = encoding.queries(q, factor)                    # (..., H, K) -> (..., H, 2K)
    additive_recurrence(q, key_logits, v, key_factor=factor)

Mixers whose keys are not normalised over tokens expand them too (`keys`), and duplicate per-channel decays for the two
halves. Mixers without decays (softmax, plain linear attention) take `pair`, which is as wide as the encoding needs.
"""

import flax.linen as nn
import jax.numpy as jnp

from lightnet.positions.phases import (
    axial_angles,
    cosine_features,
    frequencies,
    phase_factor,
    rotary_angles,
    rotary_queries,
    rotate,
)
from lightnet.scan.checks import ArrayInput, as_arrays, got
from lightnet.typing import Array


class RelativePositions(nn.Module):
    """What `MDLRPE` and `Rotary` have in common.

    Segments and masks enter through the coordinates (`token_coordinates`) alone; extra tokens have coordinates 0.

    Attributes:
        head_size: channels K of a query or key.
        axes: number of coordinates A.
        base: of the frequencies.
    """

    head_size: int
    axes: int = 1
    base: float = 10000.0

    def __call__(self, coordinates: ArrayInput) -> Array:
        """The factor [cos Θ, sin Θ].

        Args:
            coordinates: (..., A): (B or 1, L, A) for sequences, (B, A) for one token.

        Returns:
            (..., H or 1, 2, K), ready to be `key_factor`.
        """
        raise NotImplementedError

    @staticmethod
    def queries(q: ArrayInput, factor: ArrayInput) -> Array:
        """Queries (..., H, 2K) for keys that are multiplied by the factor."""
        raise NotImplementedError

    @staticmethod
    def keys(k: ArrayInput, factor: ArrayInput) -> Array:
        """[k cos Θ, k sin Θ], (..., H, 2K): what `key_factor` does, for keys without normalisation."""
        return cosine_features(k, factor)

    @classmethod
    def pair(cls, q: ArrayInput, k: ArrayInput, factor: ArrayInput) -> tuple[Array, Array]:
        """Queries and keys for scores q . k without decays."""
        return cls.queries(q, factor), cls.keys(k, factor)

    def _checked(self, coordinates: ArrayInput) -> Array:
        (coordinates,) = as_arrays(coordinates=coordinates)
        if coordinates.ndim < 1 or coordinates.shape[-1] != self.axes:
            raise ValueError(f"coordinates: got {got(coordinates)}, expected (..., {self.axes})")
        return coordinates


class MDLRPE(RelativePositions):
    """MD-LRPE in its cosine form; LRPE with one axis. See `lightnet.positions.phases`.

    Attributes:
        kind: of the frequencies, see `frequencies`. None is "high" for one axis, "geometric" for more.
        learned: whether the frequencies are parameters; those of `kind` are then where they start.
        num_heads: heads with learned frequencies of their own; 1 shares them.

    Example:
        >>> import jax
        >>> from lightnet.positions import grid_coordinates
        >>> from lightnet.scan import additive_global
        >>> encoding = MDLRPE(head_size=5, axes=2)
        >>> q = logits = v = jnp.ones((1, 7, 1, 5))
        >>> coordinates = grid_coordinates((2, 3), num_extra=1)[None]
        >>> factor, variables = jax.jit(encoding.init_with_output)(jax.random.key(0), coordinates)
        >>> additive_global(encoding.queries(q, factor), logits, v, key_factor=factor).shape
        (1, 7, 1, 5)
    """

    kind: str | None = None
    learned: bool = False
    num_heads: int = 1

    @nn.compact
    def __call__(self, coordinates: ArrayInput) -> Array:
        """See `RelativePositions`."""
        coordinates = self._checked(coordinates)
        kind = self.kind or ("high" if self.axes == 1 else "geometric")
        theta = fixed = frequencies(-(-self.head_size // self.axes), kind, self.base)
        if self.learned:
            theta = self.param("frequencies", lambda key: jnp.broadcast_to(fixed, (self.num_heads, fixed.shape[0])))
        return phase_factor(axial_angles(coordinates, theta, self.head_size))

    @staticmethod
    def queries(q: ArrayInput, factor: ArrayInput) -> Array:
        """[q cos Θ, q sin Θ], (..., H, 2K)."""
        return cosine_features(q, factor)


class Rotary(RelativePositions):
    """Rotary position embedding (Su et al., arXiv 2104.09864), on any number of axes; 10000^(-2i/K) with one.

    On two axes this is the axial form used in vision, up to the order of channels; a base of 100 is usual there.

    Example:
        >>> factor = Rotary(head_size=4, axes=2).apply({}, jnp.array([[1, 2]]))
        >>> q, k = Rotary.pair(jnp.ones((1, 1, 4)), jnp.ones((1, 1, 4)), factor)
        >>> q.shape
        (1, 1, 4)
    """

    def __call__(self, coordinates: ArrayInput) -> Array:
        """See `RelativePositions`."""
        coordinates = self._checked(coordinates)
        theta = frequencies(-(-self.head_size // 2 // self.axes), "geometric", self.base)
        return phase_factor(rotary_angles(coordinates, theta, self.head_size))

    @staticmethod
    def queries(q: ArrayInput, factor: ArrayInput) -> Array:
        """Rotated queries beside their quarter turn, (..., H, 2K)."""
        return rotary_queries(q, factor)

    @classmethod
    def pair(cls, q: ArrayInput, k: ArrayInput, factor: ArrayInput) -> tuple[Array, Array]:
        """Both rotated in place, (..., H, K)."""
        return rotate(q, factor), rotate(k, factor)
