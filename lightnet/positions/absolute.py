"""Learned absolute positions: a vector for each place."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lightnet.backbone import partitioned
from lightnet.positions.coordinates import check_grid
from lightnet.positions.inputs import AddedPositions, check_positions
from lightnet.typing import Array


class LearnedAbsolute(AddedPositions):
    """x + table[place] (Vaswani et al. 2017, section 3.5, learned; ViT and GPT-2 use it).

    On a grid there is a row for each cell, whatever the number of axes; extra tokens have none.

    Attributes:
        length: positions of a sequence; a grid has as many as cells. Beyond them there is no vector: a real token there
            raises, and gives NaN under `jit`.

    Example:
        >>> import jax
        >>> positions = LearnedAbsolute(width=4, length=16)
        >>> (y, state), variables = jax.jit(positions.init_with_output)(jax.random.key(0), jnp.zeros((1, 3, 4)))
        >>> y.shape, state.tolist()
        ((1, 3, 4), [3])
    """

    length: int = 0

    def setup(self) -> None:
        """Declare the table."""
        if self.grid is not None:
            check_grid(self.grid)
        rows = self.length if self.grid is None else math.prod(self.grid)
        if rows < 1:
            raise ValueError(f"length: got {self.length}, expected at least 1 position")
        init = partitioned(nn.initializers.normal(0.02), None, "embed")
        self.table = self.param("table", init, (rows, self.width))

    def embed(self, coordinates: Array) -> Array:
        """Rows (..., D) of the table."""
        places = coordinates[..., 0]
        for axis, size in enumerate(self.grid[1:] if self.grid else (), start=1):
            places = places * size + coordinates[..., axis]
        check_positions(places, self.table.shape[0])
        return self.table.at[places].get(mode="fill", fill_value=jnp.nan)

    def _parameter_dtype(self) -> Any:
        return self.table.dtype
