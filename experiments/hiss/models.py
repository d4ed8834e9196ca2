"""The models that are compared: two levels by name, one over the other, or one behind the other without chunks.

A name reads "mamba over s4" for a hierarchy, and "flat mamba end" or "flat mamba start" for a flat model that is read
at the last or at the first sample of each chunk; the released flat models are read at the first. "flat mamba over s4
end" has the levels of the hierarchy, without its chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn

from experiments.baselines.lstm import LSTM
from experiments.hiss.names import Name
from lightnet.backbone import Backbone, partitioned
from lightnet.mixers import SoftmaxAttention
from lightnet.positions import Rotary
from lightnet.typing import Array
from ssm import S4, HiSS, Mamba


@dataclass(frozen=True)
class LevelSize:
    """Sizes of a level, whatever its mixer is.

    Attributes:
        width: channels.
        layers: blocks.
        state_size: numbers of state per channel, of S4 and Mamba.
        heads: of attention.
        dropout: rate, see `lightnet.backbone.Backbone`.
    """

    width: int = 24
    layers: int = 2
    state_size: int = 16
    heads: int = 2
    dropout: float = 0.0


def level(kind: str, size: LevelSize) -> Backbone:
    """A stack of mixers of a kind, as a level.

    Published transformers of these tasks have an MLP as wide as the model in each block, the others none.

    Args:
        kind: one of `experiments.hiss.names.LEVELS`.
        size: of the stack.

    Returns:
        The stack; attention has rotary positions, in place of the published sinusoids.

    Example:
        >>> level("s4", LevelSize(width=6)).width
        6
    """
    mixers: dict[str, Any] = {
        "lstm": LSTM,
        "s4": partial(S4, state_size=size.state_size),
        "mamba": partial(Mamba, state_size=size.state_size),
        "transformer": partial(SoftmaxAttention, num_heads=size.heads, relative=Rotary),
    }
    return Backbone(mixers[kind], size.layers, size.width, mlp_ratio=int(kind == "transformer"), dropout=size.dropout)


def model_of(
    name: Name, size: LevelSize, num_targets: int, freq_ratio: int, lower: LevelSize | None = None
) -> nn.Module:
    """The model of a name.

    Args:
        name: see `experiments.hiss.names`.
        size: of the upper level.
        num_targets: numbers that are predicted for each chunk.
        freq_ratio: samples of a chunk.
        lower: size of the lower level; None is that of the upper one.

    Returns:
        A module, called with samples (B, L, C), for (B, L / freq_ratio, num_targets).

    Example:
        >>> from experiments.hiss.names import read_name
        >>> type(model_of(read_name("flat lstm end"), LevelSize(), 2, 10)).__name__
        'Flat'
    """
    low, high = level(name.low, lower or size), level(name.high, size)
    if name.reads == "chunk":
        return HiSS(low, high, num_targets, freq_ratio)
    return Flat(low, high, num_targets, freq_ratio, freq_ratio - 1 if name.reads == "end" else 0)


class Flat(nn.Module):
    """The layers of a HiSS at the rate of the samples, read once per chunk: the same parameters, and no chunks.

    Attributes:
        low: the stack that comes first.
        high: the stack behind it.
        num_targets: numbers that are predicted for each chunk.
        freq_ratio: samples of a chunk.
        offset: the sample of each chunk at which the model is read, from 0.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = Flat(level("lstm", LevelSize()), level("lstm", LevelSize()), 2, 10, offset=9)
        >>> jax.jit(model.init_with_output)(jax.random.key(0), jnp.ones((1, 20, 3)))[0].shape
        (1, 2, 2)
    """

    low: Backbone
    high: Backbone
    num_targets: int
    freq_ratio: int
    offset: int

    def setup(self) -> None:
        """Declare the layers of `ssm.hiss.HiSS`, by its names."""
        kernel = nn.initializers.lecun_normal()
        bias = partitioned(nn.initializers.normal(1.0), "embed")
        self.embed = nn.Dense(self.low.width, kernel_init=partitioned(kernel, None, "embed"), bias_init=bias)
        self.connect = nn.Dense(self.high.width, kernel_init=partitioned(kernel, None, "embed"))
        self.head = nn.Dense(self.num_targets, kernel_init=partitioned(kernel, "embed", None))

    def __call__(self, x: Array) -> Array:
        """Predict the targets of each chunk of samples (B, L, C): (B, L / freq_ratio, targets)."""
        low, _ = self.low(self.embed(x))
        high, _ = self.high(self.connect(low))
        return self.head(high[:, self.offset :: self.freq_ratio])
