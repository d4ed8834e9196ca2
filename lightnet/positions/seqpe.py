"""SeqPE: positions read as numbers, digit by digit, by a small sequence model, with two losses that shape the result.

    e(s_1, ..., s_A) = W read(encoder(digits of s_1, ..., digits of s_A))

    contrastive:   -log softmax_c(e(p) . e(p_c)) at the candidate c closest to the pivot p
    distillation:  the similarities softmax_j(e_i . e_j) within a block of positions far away, pulled to those within
                   the block of positions trained on, from which no gradient comes

Li et al., "SeqPE: Transformer with Sequential Position Encoding", arXiv 2506.13277. The abstract names the digits, the
encoder and the two losses; the rest was read in the authors' code, not in the paper: left padding with zeros, a causal
encoder of GPT-2's blocks that ends in a learned token which is read, dot products as similarity, squared Euclidean
distance, divergence in both directions, weights of 0.1 for both losses. Theirs also multiplies the result into queries
and keys, and takes numbers of similar digits as further candidates; ours adds it to the tokens, and does not.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.backbone import Backbone, Mixer, partitioned
from lightnet.positions.coordinates import check_grid, grid_coordinates
from lightnet.positions.inputs import AddedPositions, check_positions
from lightnet.scan.checks import ArrayInput, as_arrays, check_array
from lightnet.typing import Array


def position_digits(coordinates: ArrayInput, num_digits: int, base: int = 10) -> Array:
    """Digits of each coordinate, the most significant first, padded on the left with zeros.

    Args:
        coordinates: (..., A) integers from 0; what exceeds `num_digits` is cut off.
        num_digits: digits of each, base^num_digits being less than 2^31.
        base: of the number system.

    Returns:
        (..., A * num_digits) int32.

    Raises:
        ValueError: there are no digits, or more than an int32 has.

    Example:
        >>> position_digits(jnp.array([2, 13]), 2).tolist()
        [0, 2, 1, 3]
    """
    (coordinates,) = as_arrays(coordinates=coordinates)
    _check_digits(num_digits, base)
    places = jnp.array([base**i for i in reversed(range(num_digits))], jnp.int32)
    leading = (1,) * coordinates.ndim
    digits = coordinates.astype(jnp.int32)[..., None] // places.reshape(*leading, num_digits) % base
    return digits.reshape(*coordinates.shape[:-1], -1)


class SeqPE(AddedPositions):
    """x + e(coordinates); see the module. Extra tokens get nothing.

    Attributes:
        mixer: of the encoder, a causal one; `functools.partial(SoftmaxAttention, num_heads=4)` is SeqPE's.
        num_digits: digits of a coordinate. From base^num_digits on, which is less than 2^31, positions raise, and give
            NaN under `jit`.
        base: of the number system.
        num_layers: of the encoder. The paper's number is not known to us.
        encoder_width: channels of the encoder; None is those of the tokens.

    Example:
        >>> from functools import partial
        >>> from lightnet.mixers import SoftmaxAttention
        >>> positions = SeqPE(width=4, mixer=partial(SoftmaxAttention, num_heads=2), grid=(2, 3), num_digits=1)
        >>> (y, _), variables = jax.jit(positions.init_with_output)(jax.random.key(0), jnp.zeros((1, 6, 4)))
        >>> y.shape
        (1, 6, 4)
        >>> positions.apply(variables, jnp.array([[0, 9]]), method="embed").shape
        (1, 4)
    """

    mixer: Callable[..., Mixer] | None = None
    num_digits: int = 5
    base: int = 10
    num_layers: int = 2
    encoder_width: int | None = None

    def setup(self) -> None:
        """Declare the embeddings of digits and places, the encoder and the projection."""
        if self.mixer is None:
            raise ValueError("mixer: got None, expected a constructor of causal mixers")
        _check_digits(self.num_digits, self.base)
        width, init = self.encoder_width or self.width, nn.initializers.normal(0.02)
        length = (1 if self.grid is None else len(self.grid)) * self.num_digits
        self.digits = self.param("digits", partitioned(init, None, "embed"), (self.base, width))
        self.places = self.param("places", partitioned(init, None, "embed"), (length, width))
        self.last = self.param("last", partitioned(init, None, "embed"), (1, width))
        self.encoder = Backbone(self.mixer, self.num_layers, width, use_bias=True, dtype=self.dtype)
        self.out = nn.Dense(self.width, kernel_init=partitioned(init, "embed", None), dtype=self.dtype)

    def embed(self, coordinates: Array) -> Array:
        """e (..., D) of coordinates (..., A); NaN where a coordinate has more digits."""
        axes = self.places.shape[0] // self.num_digits
        if coordinates.shape[-1] != axes:
            raise ValueError(f"coordinates: got shape {list(coordinates.shape)}, expected (..., {axes})")
        check_positions(coordinates, self.base**self.num_digits)
        digits = position_digits(coordinates, self.num_digits, self.base).reshape(-1, self.places.shape[0])
        x = self.digits[digits] + self.places[None]
        last = jnp.broadcast_to(self.last[None], (x.shape[0], 1, x.shape[2]))
        x, _ = self.encoder(jnp.concatenate([x, last], axis=1))
        e = self.out(x[:, -1]).reshape(*coordinates.shape[:-1], self.width)
        fits = (coordinates < self.base**self.num_digits).all(axis=-1, keepdims=True)
        return jnp.where(fits, e, jnp.nan)

    def _parameter_dtype(self) -> Any:
        return self.digits.dtype


def _check_digits(num_digits: int, base: int) -> None:
    if base < 2 or num_digits < 1 or base**num_digits >= 2**31:
        got = f"got {num_digits} in base {base}"
        raise ValueError(f"num_digits: {got}, expected 1 or more in base 2 or more, with base^num_digits below 2^31")


def contrastive_loss(pivots: ArrayInput, candidates: ArrayInput, distances: ArrayInput, scale: float = 1.0) -> Array:
    """SeqPE's first auxiliary loss: of some positions, the one closest to the pivot has the most similar vector.

    mean_p -log softmax_c(scale e_p . e_pc) at c = argmin_c distance(p, p_c).

    Args:
        pivots: (P, D).
        candidates: (P, C, D).
        distances: (P, C) of each candidate to its pivot; `squared_distance` is SeqPE's.
        scale: of the dot products.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> loss = contrastive_loss(jnp.ones((1, 2)), jnp.zeros((1, 4, 2)), jnp.ones((1, 4)))
        >>> f"{loss:.4f}"  # log 4
        '1.3863'
    """
    pivots, candidates, distances = as_arrays(pivots=pivots, candidates=candidates, distances=distances)
    sizes: dict[str, int] = {}
    check_array("pivots", pivots, "P D", sizes)
    check_array("candidates", candidates, "P C D", sizes)
    check_array("distances", distances, "P C", sizes)
    logits = scale * jnp.einsum("pd,pcd->pc", pivots, candidates, precision="highest")
    closest = jnp.argmin(distances, axis=1)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), closest[:, None], axis=1).mean()


def distillation_loss(student: ArrayInput, teacher: ArrayInput, scale: float = 1.0) -> Array:
    """SeqPE's second auxiliary loss: far positions relate to each other as the ones trained on do.

    With p_i = softmax_j(scale e_i . e_j) within a block, mean_i KL(p_i teacher | student) + KL(p_i student | teacher).

    Args:
        student: vectors of blocks of unfamiliar positions (B, N, D).
        teacher: vectors of the positions trained on, in the same arrangement, (1 or B, N, D). It gets no gradient.
        scale: of the dot products.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: a shape or dtype is another than stated.

    Example:
        >>> e = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
        >>> distillation_loss(e, e).item(), distillation_loss(0 * e, e).item() > 0
        (0.0, True)
    """
    student, teacher = as_arrays(student=student, teacher=teacher)
    sizes: dict[str, int] = {}
    check_array("student", student, "B N D", sizes)
    check_array("teacher", teacher, "1|B N D", sizes)
    ours, theirs = (_similarities(scale, e) for e in (student, jax.lax.stop_gradient(teacher)))
    # KL(p | q) + KL(q | p) = sum (p - q) (log p - log q).
    return ((jnp.exp(theirs) - jnp.exp(ours)) * (theirs - ours)).sum(axis=-1).mean()


def _similarities(scale: float, e: Array) -> Array:
    return jax.nn.log_softmax(scale * jnp.einsum("bnd,bmd->bnm", e, e, precision="highest"))


def squared_distance(a: ArrayInput, b: ArrayInput) -> Array:
    """Squared Euclidean distance of coordinates.

    Args:
        a: (..., A) integers.
        b: the same rank; axes of size 1 are for all.

    Returns:
        (...) floats.

    Example:
        >>> squared_distance(jnp.array([0, 0]), jnp.array([3, 4])).item()
        25.0
    """
    a, b = as_arrays(a=a, b=b)
    return jnp.square((a - b).astype(jnp.result_type(float))).sum(axis=-1)


def contrastive_positions(
    key: Array, num_pivots: int, num_candidates: int, extent: tuple[int, ...], window: int, window_fraction: float = 0.3
) -> tuple[Array, Array]:
    """Pivots and candidates for `contrastive_loss`: distinct, none equal to its pivot.

    Args:
        key: random key.
        num_pivots: P.
        num_candidates: C, less than the number of positions in `extent`.
        extent: size along each of the A axes, up to which positions are to be known.
        window: side of the box in which some pivots have their candidates, so that neighbours are told apart.
        window_fraction: probability of that; otherwise candidates are from everywhere.

    Returns:
        Pivots (P, A) and candidates (P, C, A), int32.

    Raises:
        ValueError: the extent is none, or has too few positions.

    Example:
        >>> pivots, candidates = contrastive_positions(jax.random.key(0), 2, 5, extent=(4, 4), window=3)
        >>> pivots.shape, candidates.shape
        ((2, 2), (2, 5, 2))
    """
    check_grid(extent)
    everywhere = grid_coordinates(extent)
    if not 0 < num_candidates < len(everywhere):
        raise ValueError(f"num_candidates: got {num_candidates}, expected 1 to {len(everywhere) - 1} for {extent}")
    for_pivots, for_windows, for_corners, for_order = jax.random.split(key, 4)
    pivots = jax.random.randint(for_pivots, (num_pivots,), 0, len(everywhere))
    last = jnp.maximum(jnp.array(extent) - window, 0)
    corner = jax.random.randint(for_corners, (num_pivots, 1, len(extent)), 0, last[None, None] + 1)
    inside = ((everywhere[None] >= corner) & (everywhere[None] < corner + window)).all(axis=-1)
    windowed = jax.random.bernoulli(for_windows, window_fraction, (num_pivots, 1))
    # The largest of independent uniform variables are a sample without replacement. 1 less, which rounds nothing, puts
    # what is outside a window behind it.
    order = jax.random.uniform(for_order, inside.shape) - jnp.where(windowed & ~inside, 1.0, 0.0)
    order = jnp.where(jnp.arange(len(everywhere))[None] == pivots[:, None], -jnp.inf, order)
    return everywhere[pivots], everywhere[jax.lax.top_k(order, num_candidates)[1]]


def shifted_blocks(key: Array, num_blocks: int, block: tuple[int, ...], extent: tuple[int, ...]) -> Array:
    """Blocks of unfamiliar positions for `distillation_loss`: the grid trained on, moved beyond its end.

    Args:
        key: random key.
        num_blocks: B.
        block: the grid trained on; its positions are `grid_coordinates(block)`.
        extent: size along each axis up to which positions are to be known; a block starts at or beyond the end of the
            grid along one axis at least, and ends within the extent.

    Returns:
        (B, N, A) int32, N the number of cells of the block.

    Raises:
        ValueError: there is no room for such a block.

    Example:
        >>> shifted_blocks(jax.random.key(0), 1, block=(3,), extent=(6,))[0, :, 0].tolist()
        [3, 4, 5]
    """
    check_grid(block)
    check_grid(extent)
    room = tuple(e - n + 1 for e, n in zip(extent, block, strict=False))
    if len(block) != len(extent) or min(room) < 1 or not any(r > n for r, n in zip(room, block, strict=True)):
        raise ValueError(f"extent: got {extent}, expected room for a block {block} beyond another")
    starts = grid_coordinates(room)
    beyond = (starts >= jnp.array(block)[None]).any(axis=-1)
    chosen = jax.random.categorical(key, jnp.where(beyond, 0.0, -jnp.inf), shape=(num_blocks,))
    return starts[chosen][:, None] + grid_coordinates(block)[None]


def auxiliary_losses(
    embed: Callable[[Array], Array],
    key: Array,
    grid: tuple[int, ...],
    extent: tuple[int, ...],
    *,
    num_pivots: int = 32,
    num_candidates: int = 16,
    num_blocks: int = 4,
    window: int = 3,
) -> tuple[Array, Array]:
    """Both auxiliary losses of SeqPE on random positions, which are embedded in one call.

    Args:
        embed: coordinates (..., A) -> vectors (..., D), such as `SeqPE.embed` with its parameters.
        key: random key.
        grid: size along each axis of what the model is trained on.
        extent: size along each axis up to which positions are to be known, larger than the grid along one at least.
        num_pivots: see `contrastive_positions`.
        num_candidates: see `contrastive_positions`.
        num_blocks: see `shifted_blocks`.
        window: see `contrastive_positions`.

    Returns:
        (contrastive loss, distillation loss), scalars in nats. SeqPE's authors add 0.1 of each to the task's loss.

    Raises:
        ValueError: the extent has no room for the positions asked for.

    Example:
        >>> table = jax.random.normal(jax.random.key(0), (8, 4))
        >>> def losses(key):
        ...     return auxiliary_losses(lambda at: table[at[..., 0]], key, (3,), (8,), num_candidates=4)
        >>> [loss.shape for loss in jax.jit(losses)(jax.random.key(1))]
        [(), ()]
    """
    for_pivots, for_blocks = jax.random.split(key)
    pivots, candidates = contrastive_positions(for_pivots, num_pivots, num_candidates, extent, window)
    asked = (pivots, candidates, shifted_blocks(for_blocks, num_blocks, grid, extent), grid_coordinates(grid)[None])
    flat = embed(jnp.concatenate([at.reshape(-1, len(grid)) for at in asked]))
    ends = np.cumsum([at.size // len(grid) for at in asked])[:-1]
    vectors = [e.reshape(*at.shape[:-1], -1) for e, at in zip(jnp.split(flat, ends), asked, strict=True)]
    distances = squared_distance(pivots[:, None], candidates)
    return contrastive_loss(vectors[0], vectors[1], distances), distillation_loss(vectors[2], vectors[3])
