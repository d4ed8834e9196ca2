"""The diffusion transformer (DiT, Peebles and Xie 2022, arXiv 2212.09748) around any mixer that sees all tokens.

The condition c, embedded time plus embedded class, sets shifts, scales and gates of each block ("adaLN-zero"):

    x <- x + g_1 * mixer((1 + s_1) LN(x) + b_1),    x <- x + g_2 * channels((1 + s_2) LN(x) + b_2)

with (b_1, s_1, g_1, b_2, s_2, g_2) = W silu(c), and W = 0 at the start, when each block is the identity and the output
is 0. LightNet's images are said to be generated so; that its mixer and a GLU take the places of attention and MLP, with
the class in c and not as a token, is our reading.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lightnet.backbone import Mixer, partitioned
from lightnet.backbone.language_model import check_ids
from lightnet.feed_forward import GLU
from lightnet.heads import patch_embedding, patches, unpatched
from lightnet.typing import Array


def time_features(time: Array, size: int = 256, longest: float = 10000.0) -> Array:
    """Cosines and sines of a time at frequencies from 1 down to 1 / `longest`.

    cos(t f_i), sin(t f_i),    f_i = longest^(-i / (size / 2)),    i = 0 .. size / 2 - 1.

    Args:
        time: (B,), in steps of the diffusion.
        size: number of features, even.
        longest: period of the slowest, over 2 pi.

    Returns:
        (B, size) float32.

    Raises:
        ValueError: the size is odd or less than 2, or the time has another shape.

    Example:
        >>> time_features(jnp.array([0.0]), size=4).tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """
    if size < 2 or size % 2:
        raise ValueError(f"size: got {size}, expected an even number from 2")
    if time.ndim != 1:
        raise ValueError(f"time: got shape {list(time.shape)}, expected (B,)")
    frequencies = longest ** (-jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = time.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Modulation(nn.Module):
    """W silu(c) in `parts` parts, each (B, 1, D); 0 at the start."""

    parts: int
    dtype: Any = None

    @nn.compact
    def __call__(self, condition: Array) -> list[Array]:
        """Parts of the modulation by a condition (B, D)."""
        zeros = partitioned(nn.initializers.zeros, "embed", None)
        features = self.parts * condition.shape[-1]
        out = nn.Dense(features, kernel_init=zeros, dtype=self.dtype)(nn.silu(condition))
        return jnp.split(out[:, None], self.parts, axis=-1)


class ModulatedBlock(nn.Module):
    """One block of the module's equations; constructors as in `DiffusionTransformer`."""

    mixer: Callable[..., Mixer]
    channel_mixer: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Map (B, L, D) to (B, L, D) under a condition (B, D)."""
        shift, scale, gate, shift_2, scale_2, gate_2 = Modulation(6, self.dtype, name="modulation")(condition)
        y, _ = self.mixer(name="mix")((1 + scale) * self.norm(name="mix_norm")(x) + shift)
        x = x + gate * y
        modulated = (1 + scale_2) * self.norm(name="channel_norm")(x) + shift_2
        return x + gate_2 * self.channel_mixer(name="feed_forward")(modulated)


class DiffusionTransformer(nn.Module):
    """Noise (or velocity, or data) predicted from a noisy grid, a time and a class.

    Attributes:
        mixer: constructor of mixers that see all tokens, called with `width`, `dtype` and `out_scale`.
        num_layers: number of blocks.
        width: channels D.
        patch: size of a patch along each axis.
        num_classes: classes; `num_classes` itself is the id of "no class", for guidance. 0 has no classes.
        input_positions: constructor of an encoding of embedded tokens, called with `width` and `dtype`; None has none.
        channel_mixer: constructor of what acts on each token, called with `dtype` and `out_scale`.
        channels_out: channels predicted; None is those of the input, and twice them leaves room for variances.
        dtype: of the computation; None takes that of the inputs and parameters.

    Example:
        >>> import jax
        >>> from lightnet.mixers import LightNetAttention
        >>> mixer = partial(LightNetAttention, num_heads=2, causal=False)
        >>> model = DiffusionTransformer(mixer, num_layers=1, width=8, patch=(2, 2), num_classes=3)
        >>> x, time, label = jnp.ones((5, 4, 6, 1)), jnp.arange(5), jnp.array([0, 1, 2, 3, 3])
        >>> noise, variables = jax.jit(model.init_with_output)(jax.random.key(0), x, time, label)
        >>> noise.shape, float(abs(noise).max())
        ((5, 4, 6, 1), 0.0)
    """

    mixer: Callable[..., Mixer]
    num_layers: int
    width: int
    patch: tuple[int, ...]
    num_classes: int = 0
    input_positions: Callable[..., nn.Module] | None = None
    channel_mixer: Callable[..., nn.Module] = GLU
    channels_out: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, time: Array, label: Array | None = None) -> Array:
        """Predict.

        Args:
            x: (B, n_1, ..., n_A, C).
            time: (B,), in steps.
            label: (B,) class ids up to `num_classes`, where there are classes.

        Returns:
            (B, n_1, ..., n_A, C or `channels_out`), float32 at least.

        Raises:
            ValueError: a shape is another than stated, labels are given without classes or missing with them, or there
                is no such class.
        """
        self._check(x.shape[0], time, label)
        channels = self.channels_out or x.shape[-1]
        grid = tuple(n // p for n, p in zip(x.shape[1:-1], self.patch, strict=False))
        condition = self._condition(time, label)
        x = patch_embedding(self.width, self.dtype)(patches(x, self.patch))
        if self.input_positions is not None:
            x, _ = self.input_positions(width=self.width, dtype=self.dtype, name="places")(x)
        norm = partial(nn.LayerNorm, epsilon=1e-6, use_scale=False, use_bias=False, dtype=self.dtype)
        own = {"out_scale": 0.02 / (2 * self.num_layers) ** 0.5, "dtype": self.dtype}
        mixer, channel_mixer = partial(self.mixer, width=self.width, **own), partial(self.channel_mixer, **own)
        for i in range(self.num_layers):
            x = ModulatedBlock(mixer, channel_mixer, norm, self.dtype, name=f"blocks_{i}")(x, condition)
        shift, scale = Modulation(2, self.dtype, name="final_modulation")(condition)
        zeros = partitioned(nn.initializers.zeros, "embed", None)
        features = channels * math.prod(self.patch)
        x = (1 + scale) * norm(name="final_norm")(x) + shift
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return unpatched(nn.Dense(features, kernel_init=zeros, name="head")(x), grid, self.patch)

    def _check(self, batch: int, time: Array, label: Array | None) -> None:
        if (label is None) == (self.num_classes > 0):
            raise ValueError(f"label: got {label}, expected {'class ids (B,)' if self.num_classes else 'None'}")
        if time.shape != (batch,):
            raise ValueError(f"time: got shape {list(time.shape)}, expected ({batch},)")
        if label is None:
            return
        if label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"label: got {label.dtype}{list(label.shape)}, expected integers ({batch},)")
        check_ids("label", label, self.num_classes + 1)

    def _condition(self, time: Array, label: Array | None) -> Array:
        """Embedded time plus embedded class (B, D)."""
        into, square = (partitioned(nn.initializers.normal(0.02), *axes) for axes in ((None, "embed"), ("embed", None)))
        c = nn.Dense(self.width, kernel_init=into, dtype=self.dtype, name="time_in")(time_features(time))
        c = nn.Dense(self.width, kernel_init=square, dtype=self.dtype, name="time_out")(nn.silu(c))
        if label is None:
            return c
        table = self.param("classes", into, (self.num_classes + 1, self.width))
        return c + table[label].astype(c.dtype)
