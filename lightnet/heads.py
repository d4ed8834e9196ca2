"""Heads around a backbone: classification of images and volumes, and masked language modelling.

The causal language model is in `lightnet.backbone`, diffusion in `lightnet.diffusion`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lightnet.backbone import Backbone, partitioned
from lightnet.backbone.language_model import check_ids, embedded
from lightnet.scan.checks import check_per_token
from lightnet.typing import Array


def patches(x: Array, patch: tuple[int, ...]) -> Array:
    """Cut a grid into patches, row by row: the last axis is the fastest.

    Args:
        x: (B, n_1, ..., n_A, C).
        patch: size along each axis, which it divides.

    Returns:
        (B, L, P): L patches of P = C times the product of `patch` numbers.

    Raises:
        ValueError: the axes are others, or `patch` does not divide them.

    Example:
        >>> patches(jnp.arange(8.0).reshape(1, 2, 4, 1), (2, 2)).tolist()
        [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    axes = len(patch)
    if x.ndim != axes + 2 or any(p < 1 or n % p for n, p in zip(x.shape[1:-1], patch, strict=True)):
        raise ValueError(f"x: got shape {list(x.shape)}, expected (B, {axes} axes that {patch} divides, C)")
    split = [size for n, p in zip(x.shape[1:-1], patch, strict=True) for size in (n // p, p)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    cells, within = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    x = x.transpose(0, *cells, *within, 2 * axes + 1)
    return x.reshape(x.shape[0], math.prod(x.shape[1 : axes + 1]), -1)


def unpatched(x: Array, grid: tuple[int, ...], patch: tuple[int, ...]) -> Array:
    """Put patches together again, the inverse of `patches`.

    Args:
        x: (B, L, P).
        grid: number of patches along each axis.
        patch: size of a patch along each axis.

    Returns:
        (B, n_1, ..., n_A, C).

    Example:
        >>> image = jnp.arange(24.0).reshape(1, 4, 6, 1)
        >>> bool((unpatched(patches(image, (2, 3)), (2, 2), (2, 3)) == image).all())
        True
    """
    axes = len(grid)
    x = x.reshape(x.shape[0], *grid, *patch, -1)
    interleaved = [i for axis in range(1, axes + 1) for i in (axis, axis + axes)]
    x = x.transpose(0, *interleaved, 2 * axes + 1)
    return x.reshape(x.shape[0], *(n * p for n, p in zip(grid, patch, strict=True)), x.shape[-1])


def patch_embedding(width: int, dtype: Any) -> nn.Dense:
    """A projection of patches into tokens.

    Its bias does not start at 0: a blank patch would otherwise be a token of exactly 0, at which every norm multiplies
    gradients by 1 / sqrt(epsilon).
    """
    kernel, bias = nn.initializers.lecun_normal(), nn.initializers.normal(0.02)
    return nn.Dense(
        width, kernel_init=partitioned(kernel, None, "embed"), bias_init=partitioned(bias, "embed"), dtype=dtype
    )


class Classifier(nn.Module):
    """Classes of images, volumes or any grids: patches, positions, a backbone, pooling and a linear layer.

    Attributes:
        backbone: the stack. Mixers that need the grid of patches have it as a field.
        num_classes: number of logits.
        patch: size of a patch along each axis.
        input_positions: constructor of an encoding of embedded tokens, called with `width` and `dtype`, such as
            `functools.partial(MDTPE, grid=(14, 14))`; None has none.
        pool: "mean" over all tokens, or "token": a learned class token in front of the patches, for which positions and
            mixers have `num_extra=1`.

    Example:
        >>> from functools import partial
        >>> import jax
        >>> from lightnet.mixers import LightNetAttention
        >>> mixer = partial(LightNetAttention, num_heads=2, causal=False)
        >>> model = Classifier(Backbone(mixer=mixer, num_layers=1, width=8), num_classes=3, patch=(2, 2))
        >>> logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), jnp.ones((5, 4, 6, 1)))
        >>> logits.shape
        (5, 3)
    """

    backbone: Backbone
    num_classes: int
    patch: tuple[int, ...]
    input_positions: Callable[..., nn.Module] | None = None
    pool: str = "mean"

    def setup(self) -> None:
        """Declare the embedding, the class token, positions and the last layer."""
        if self.pool not in ("mean", "token"):
            raise ValueError(f"pool: got {self.pool!r}, expected mean or token")
        width, dtype = self.backbone.width, self.backbone.dtype
        self.embed = patch_embedding(width, dtype)
        if self.pool == "token":
            init = partitioned(nn.initializers.normal(0.02), None, "embed")
            self.class_token = self.param("class_token", init, (1, width))
        if self.input_positions is not None:
            self.places = self.input_positions(width=width, dtype=dtype)
        kernel = partitioned(nn.initializers.normal(0.02), "embed", None)
        self.head = nn.Dense(self.num_classes, kernel_init=kernel)

    def __call__(self, x: Array) -> Array:
        """Logits of each class.

        Args:
            x: (B, n_1, ..., n_A, C).

        Returns:
            Logits (B, classes), float32 at least.

        Raises:
            ValueError: a shape is another than stated.
        """
        x = self.embed(patches(x, self.patch))
        if self.pool == "token":
            token = jnp.broadcast_to(self.class_token[None].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([token, x], axis=1)
        if self.input_positions is not None:
            x, _ = self.places(x)
        x, _ = self.backbone(x)
        pooled = x[:, 0] if self.pool == "token" else x.mean(axis=1, dtype=jnp.promote_types(x.dtype, jnp.float32))
        return self.head(pooled.astype(jnp.promote_types(x.dtype, jnp.float32)))


class MaskedLM(nn.Module):
    """A masked language model: which token stood at each place, from the tokens on both sides.

    Attributes:
        backbone: the stack, of mixers that see all tokens.
        vocab_size: number of tokens V that can be predicted.
        num_input_only: further ids, from `vocab_size` on, that can be read but are never predicted: the mask token.
        input_positions: constructor of an encoding of embedded tokens, called with `width` and `dtype`; None has none.
        tied: whether the output kernel is the embedding.

    Example:
        >>> from functools import partial
        >>> import jax
        >>> from lightnet.mixers import LightNetAttention
        >>> mixer = partial(LightNetAttention, num_heads=2, causal=False)
        >>> model = MaskedLM(Backbone(mixer=mixer, num_layers=1, width=8), vocab_size=5)
        >>> logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), jnp.array([[1, 5, 2]]))
        >>> logits.shape
        (1, 3, 5)
    """

    backbone: Backbone
    vocab_size: int
    num_input_only: int = 1
    input_positions: Callable[..., nn.Module] | None = None
    tied: bool = True

    def setup(self) -> None:
        """Declare the embedding, positions and the output layer."""
        width, init = self.backbone.width, partitioned(nn.initializers.normal(0.02), "vocab", "embed")
        self.embedding = self.param("embedding", init, (self.vocab_size + self.num_input_only, width))
        if not self.tied:
            self.head = self.param("head", init, (self.vocab_size, width))
        self.bias = self.param("head_bias", partitioned(nn.initializers.zeros, "vocab"), (self.vocab_size,))
        if self.input_positions is not None:
            self.places = self.input_positions(width=width, dtype=self.backbone.dtype)

    def __call__(self, tokens: Array, *, segment_ids: Array | None = None, mask: Array | None = None) -> Array:
        """Logits of the token at each position.

        Args:
            tokens: (B, L) ids.
            segment_ids: (B, L); nothing is seen across runs.
            mask: (B, L), true at real tokens; padding may stand anywhere. Not the tokens to predict.

        Returns:
            Logits (B, L, V), float32 at least.

        Raises:
            ValueError: `tokens` is not a (B, L) array of integers, it has an id that does not exist, or the mixer does
                not support what is asked.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens: got {tokens.dtype}{list(tokens.shape)}, expected an integer array (B, L)")
        check_per_token({"B": tokens.shape[0], "L": tokens.shape[1]}, segment_ids, mask)
        check_ids("tokens", tokens, self.vocab_size + self.num_input_only, mask)
        x = embedded(self.embedding, tokens)
        x = x if self.backbone.dtype is None else x.astype(self.backbone.dtype)
        if self.input_positions is not None:
            x, _ = self.places(x, segment_ids=segment_ids, mask=mask)
        x, _ = self.backbone(x, segment_ids=segment_ids, mask=mask)
        kernel = self.embedding[: self.vocab_size] if self.tied else self.head
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("...d,vd->...v", x, kernel.astype(x.dtype), preferred_element_type=wide)
        return logits + self.bias[None, None]
