"""The encodings that act once, on the embedded tokens, and what they have in common.

    x, state = positions(x, state, segment_ids=..., mask=...)      # x (B, L, D)
    x_t, state = positions.step(x_t, state)                        # x_t (B, D)
    state = positions.init_state(batch)

Tokens are a sequence of any length, or a grid of fixed size with extra tokens before it. Only a sequence has segments,
a state and steps; asking for them on a grid raises.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lightnet.positions.coordinates import check_grid, grid_coordinates, token_coordinates
from lightnet.scan.checks import check_array, check_per_token, got, known
from lightnet.typing import Array

State = Any


class InputPositions(nn.Module):
    """Base of the encodings of embedded tokens.

    Attributes:
        width: channels D.
        grid: size along each axis, the last being the fastest of the flattened tokens; None is a sequence.
        num_extra: tokens before the grid that have no place on it; they pass unchanged.
        dtype: of the computation and the result, whatever that of the tokens; None is the precision of the parameters
            that are passed in.
    """

    width: int
    grid: tuple[int, ...] | None = None
    num_extra: int = 0
    dtype: Any = None

    def __call__(
        self, x: Array, state: State = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, State]:
        """Give the tokens their positions.

        Args:
            x: (B, L, D), extra tokens first.
            state: behind the tokens before these; None at the start. Sequences only.
            segment_ids: (B, L); positions restart at each new run. Sequences only.
            mask: (B, L), true at real tokens. A masked token takes no position and gives 0, whatever it contains.

        Returns:
            (B, L, D), and the state behind the last token; None where there is none: on a grid, and in two directions.

        Raises:
            ValueError: a shape or kind is another than stated, or something is not supported.
        """
        raise NotImplementedError

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Give the next token its position.

        Args:
            x: (B, D), real tokens.
            state: behind the tokens before this one, from `init_state`, a whole sequence or an earlier step.

        Returns:
            (B, D), and the state behind this token.

        Raises:
            ValueError: a shape or kind is another than stated, or there are no steps.
        """
        raise NotImplementedError

    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        raise NotImplementedError

    def _checked(self, x: Array, segment_ids: Array | None, mask: Array | None) -> Array:
        """The tokens in the precision of the computation, with 0 in place of masked ones."""
        sizes = {"D": self.width}
        check_array("x", x, "B L D", sizes)
        check_per_token(sizes, segment_ids, mask)
        if self.grid is not None:
            check_grid(self.grid)
            if sizes["L"] != (expected := self.num_extra + math.prod(self.grid)):
                raise ValueError(f"x: got {sizes['L']} tokens, expected {expected}: {self.num_extra} and {self.grid}")
            if segment_ids is not None:
                raise ValueError("segment_ids: got an array, expected None: tokens of a grid cannot be packed")
        elif self.num_extra:
            raise ValueError(f"num_extra: got {self.num_extra} without a grid, expected 0")
        x = self._cast(x)
        return x if mask is None else jnp.where(mask[..., None], x, 0)

    def _checked_token(self, x: Array) -> Array:
        """One token (B, D) in the precision of the computation."""
        self._require_state()
        check_array("x", x, "B D", {"D": self.width})
        return self._cast(x)

    def _cast(self, x: Array) -> Array:
        return x.astype(self._parameter_dtype() if self.dtype is None else self.dtype)

    def _parameter_dtype(self) -> Any:
        raise NotImplementedError

    def _require_state(self) -> None:
        if self.grid is not None:
            raise ValueError(f"state: {type(self).__name__} has no state and no step on a grid, only on a sequence")


class AddedPositions(InputPositions):
    """Base of the encodings that add a vector to each token, by its coordinates. The state is the next position."""

    def embed(self, coordinates: Array) -> Array:
        """The vectors (..., D) of coordinates (..., A); NaN where a coordinate is out of range."""
        raise NotImplementedError

    def __call__(
        self, x: Array, state: Array | None = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array | None]:
        """See `InputPositions`."""
        if state is not None:
            self._require_state()
        x = self._checked(x, segment_ids, mask)
        if state is not None:
            _check_next_position(state, x.shape[0])
        if self.grid is not None:
            added = jnp.pad(self.embed(grid_coordinates(self.grid)), ((self.num_extra, 0), (0, 0)))
            return _add(x, added[None], mask), None
        coordinates = token_coordinates(x.shape[1], segment_ids=segment_ids, mask=mask, offset=state)
        after = coordinates[:, -1, 0] + (1 if mask is None else mask[:, -1])
        if mask is not None:
            # Behind the last real token of a full sequence, the coordinate of a masked one is out of range.
            coordinates = jnp.where(mask[..., None], coordinates, 0)
        return _add(x, self.embed(coordinates), mask), jnp.broadcast_to(after, x.shape[:1])

    def step(self, x: Array, state: Array) -> tuple[Array, Array]:
        """Give the next token (B, D) its position."""
        x = self._checked_token(x)
        _check_next_position(state, x.shape[0])
        return _add(x, self.embed(state[:, None]), None), state + 1

    def init_state(self, batch: int) -> Array:
        """Position 0."""
        self._require_state()
        return jnp.zeros(batch, jnp.int32)


def check_positions(coordinates: Array, limit: int) -> None:
    """Refuse coordinates from `limit` on, where this process can read them: under `jit` it cannot.

    Raises:
        ValueError: with the largest.
    """
    if known(coordinates) and (last := int(np.asarray(coordinates).max())) >= limit:
        raise ValueError(f"x: got a token at position {last}, expected positions below {limit}")


def _check_next_position(state: Array, batch: int) -> None:
    if getattr(state, "shape", None) != (batch,) or not jnp.issubdtype(state.dtype, jnp.integer):
        raise ValueError(f"state: got {got(state)}, expected an integer array ({batch},)")


def _add(x: Array, added: Array, mask: Array | None) -> Array:
    y = x + added.astype(x.dtype)
    return y if mask is None else jnp.where(mask[..., None], y, 0)
