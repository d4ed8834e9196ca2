"""SIGMA, Mamba for sequential recommendation (arXiv 2408.11451): as it was released, and corrected.

A history of items (B, T), with what is missing at the right, becomes scores of the next item. In each layer one Mamba
reads the history x twice, as it is and with its first items in the opposite order, so that a causal model sees both
directions while the last r items keep their places; a convolution with a GRU reads it too.

    Y, Y_f = Mamba(x), Mamba(x_f)                                 x_f is `partial_flip(x, r)`
    u, v = x + W_1 x + b_1, x_f + W_2 x_f + b_2
    g(a, b) = W_a silu(a) + b_a + W_b sigmoid(b) + b_b            one set of weights for both directions
    Z = w_1 GRU(conv(x)) + w_2 (Y_f g + Y_f) + w_3 (Y g + Y)      then a dense layer

and behind it norm, two dense layers with GELU, and another norm. Released and paper differ, or seem to; what follows is
the released code, and in brackets what the mode "corrected" does instead:

- The first T - r places of the window are flipped, whatever the length of the history. Of a history of at most
  (T - r) / 2 items the flipped direction then sees nothing but padding where its output is read, and of any with fewer
  than T - r items it begins with padding. [The items before the last r of each history.]
- Outputs of the flipped direction are mixed in where they come out, with those of other items. [They are flipped back.]
- The gate of the flipped direction is g(v, gate of the other). [g(v, v).]
- w are plain numbers, initially 0.1, 0.1 and 0.8; a softmax of them is computed and not used. [They are a softmax, with
  the same initial values.]
- Padding is an embedding that is drawn and stays, and is read by the convolution and both directions. [Not seen.]
- All dense kernels, those in Mamba too, start from N(0, 0.02), and the bias of its step from 0, so that steps start at
  ln 2 = 0.69. [Mamba starts as published, with steps from 0.001 to 0.1.]

With one layer there is no residual connection around the mixer, in both. Of the paper itself only its abstract was at
hand; the code is known from a description and from copies of it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.typing import Array
from ssm.initializers import uniform_init
from ssm.mamba import Mamba, zero_masked

Mode = Literal["faithful", "corrected"]
MODES: tuple[Mode, ...] = ("faithful", "corrected")
MIX = {"gru": 0.1, "flipped": 0.1, "forward": 0.8}
_dense_init = nn.initializers.normal(0.02)


def partial_flip(x: Array, kept: int, lengths: Array | None = None) -> Array:
    """The items before the last `kept` in the opposite order; applied twice it changes nothing.

    Args:
        x: (B, T, ...).
        kept: r, how many of the last items stay in their places.
        lengths: (B,), items of each row, which begin at its left; what is behind them stays too. None takes all T
            places for items, which is what the released code does.

    Returns:
        Like x.

    Raises:
        ValueError: `kept` is negative.

    Example:
        >>> x = jnp.arange(6)[None]
        >>> partial_flip(x, 2).tolist(), partial_flip(x, 2, jnp.array([5])).tolist()
        ([[3, 2, 1, 0, 4, 5]], [[2, 1, 0, 3, 4, 5]])
    """
    if kept < 0:
        raise ValueError(f"kept: got {kept}, expected at least 0")
    places = jnp.arange(x.shape[1])[None]
    flipped = jnp.maximum((x.shape[1] if lengths is None else lengths[:, None]) - kept, 0)
    source = jnp.broadcast_to(jnp.where(places < flipped, flipped - 1 - places, places), x.shape[:2])
    return jnp.take_along_axis(x, source.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)), axis=1)


def selective_gate(
    a: Array, b: Array, silu_layer: Callable[[Array], Array], sigmoid_layer: Callable[[Array], Array]
) -> Array:
    """g(a, b) = W_a silu(a) + b_a + W_b sigmoid(b) + b_b; see the module.

    Args:
        a: (..., D).
        b: (..., D).
        silu_layer: x -> W_a x + b_a.
        sigmoid_layer: x -> W_b x + b_b.

    Returns:
        (..., D), of any sign.

    Example:
        >>> selective_gate(jnp.zeros(2), jnp.zeros(2), lambda x: x, lambda x: 2 * x).tolist()
        [1.0, 1.0]
    """
    return silu_layer(nn.silu(a)) + sigmoid_layer(nn.sigmoid(b))


def gated(y: Array, gate: Array) -> Array:
    """Y g + Y: a gate of 0 lets everything pass.

    Example:
        >>> gated(jnp.array([3.0]), jnp.array([0.5])).tolist()
        [4.5]
    """
    return y * gate + y


def centred_convolution(x: Array, taps: Array, bias: Array) -> Array:
    """y_t = sum_j x_{t + j - K // 2} taps_j + bias, with zeros beyond the ends: not causal.

    Args:
        x: (B, T, D).
        taps: (K, D, E), K odd.
        bias: (E,).

    Returns:
        (B, T, E).

    Example:
        >>> x = jnp.array([[[1.0], [2.0], [4.0]]])
        >>> centred_convolution(x, jnp.array([[[100.0]], [[10.0]], [[1.0]]]), jnp.zeros(1)).ravel().tolist()
        [12.0, 124.0, 240.0]
    """
    y = jax.lax.conv_general_dilated(x, taps, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return y + bias[None, None]


def gru(x: Array, input_kernel: Array, state_kernel: Array) -> Array:
    """A gated recurrent unit without biases, from a state of zeros (Cho et al. 2014, arXiv 1406.1078).

    h_t = z h_{t-1} + (1 - z) tanh(W_n x_t + r (U_n h_{t-1})), with r, z = sigmoid(W x_t + U h_{t-1}): the reset gate
    acts behind the product, as in PyTorch and cuDNN.

    Args:
        x: (B, T, D).
        input_kernel: W (D, 3, H), of r, z and n.
        state_kernel: U (H, 3, H).

    Returns:
        States (B, T, H).

    Example:
        >>> gru(jnp.ones((1, 2, 1)), jnp.array([[[0.0], [0.0], [9.0]]]), jnp.zeros((1, 3, 1))).round(2).ravel().tolist()
        [0.5, 0.75]
    """
    inputs = jnp.einsum("btd,dgh->tbgh", x, input_kernel)

    def step(h: Array, entering: Array) -> tuple[Array, Array]:
        kept = jnp.einsum("bh,hgk->bgk", h, state_kernel)
        reset, update = jnp.unstack(nn.sigmoid(entering[:, :2] + kept[:, :2]), axis=1)
        h = update * h + (1 - update) * jnp.tanh(entering[:, 2] + reset * kept[:, 2])
        return h, h

    start = jnp.zeros((x.shape[0], state_kernel.shape[0]), inputs.dtype)
    return jax.lax.scan(step, start, inputs)[1].swapaxes(0, 1)


def mixed(branches: Sequence[Array], weights: Array, normalised: bool) -> Array:
    """sum_i w_i y_i, or with softmax(w) in place of w.

    Example:
        >>> mixed([jnp.array([1.0]), jnp.array([3.0])], jnp.zeros(2), normalised=True).tolist()
        [2.0]
    """
    return jnp.tensordot(nn.softmax(weights) if normalised else weights, jnp.stack(branches), axes=1)


class Dropped(nn.Module):
    """Dropout where `apply` is given random numbers by the name "dropout", nowhere else."""

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """What is left of x."""
        return nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(x)


class GatedMamba(nn.Module):
    """SIGMA's mixer of a history: both directions of a Mamba with their gates, and a GRU; see the module.

    Attributes:
        width: channels D.
        mode: "faithful" or "corrected".
        kept: r, last items that are not flipped.
        state_size: of Mamba.
        conv_width: taps of Mamba's convolution.
        expand: inner channels of Mamba over D.
        dropout: rate at which numbers of a gate are dropped.
        gate: whether there are gates.
        flip: whether there is a flipped direction.
        recurrent: whether there are convolution and GRU.

    Example:
        >>> block = GatedMamba(width=4, state_size=2)
        >>> z, _ = jax.jit(block.init_with_output)(jax.random.key(0), jnp.ones((2, 7, 4)), jnp.array([3, 7]))
        >>> z.shape
        (2, 7, 4)
    """

    width: int
    mode: Mode = "corrected"
    kept: int = 5
    state_size: int = 32
    conv_width: int = 4
    expand: int = 2
    dropout: float = 0.2
    gate: bool = True
    flip: bool = True
    recurrent: bool = True

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        """Mix histories (B, T, D) of so many items (B,), which begin at the left of their rows."""
        faithful = self.mode == "faithful"
        mask = None if faithful else real_items(lengths, x.shape[1])
        x = zero_masked(x, mask)
        branches = {"gru": self._recurrent_branch(x)} if self.recurrent else {}
        branches |= self._directions(x, mask, None if faithful else lengths)
        start = jnp.array([MIX[name] for name in branches])
        weights = self.param("mix", lambda key: start if faithful else jnp.log(start))
        z = mixed(list(branches.values()), weights.astype(x.dtype), normalised=not faithful)
        return zero_masked(nn.Dense(self.width, kernel_init=_dense_init, name="out")(z), mask)

    def _directions(self, x: Array, mask: Array | None, lengths: Array | None) -> dict[str, Array]:
        """Outputs of Mamba, gated; `lengths` are those within which is flipped, and back again, or None."""
        released: dict[str, Any] = {"kernel_init": _dense_init, "dt_min": np.log(2), "dt_max": np.log(2)}
        sizes: dict[str, Any] = {"state_size": self.state_size, "conv_width": self.conv_width, "expand": self.expand}
        given = released if self.mode == "faithful" else {}
        mamba = Mamba(self.width, **sizes, **given, name="mamba")
        gate_of = self._gate()
        first = gate_of(u := self._gate_input("forward", x), u)
        forward = gated(mamba(x, mask=mask)[0], first)
        if not self.flip:
            return {"forward": forward}
        flipped = partial_flip(x, self.kept, lengths)
        v = self._gate_input("flipped", flipped)
        backward = gated(mamba(flipped, mask=mask)[0], gate_of(v, v if lengths is not None else first))
        if lengths is not None:
            backward = partial_flip(backward, self.kept, lengths)
        return {"flipped": backward, "forward": forward}

    def _gate_input(self, direction: str, x: Array) -> Array:
        """u or v."""
        return x + nn.Dense(self.width, kernel_init=_dense_init, name=f"{direction}_input")(x) if self.gate else x

    def _gate(self) -> Callable[[Array, Array], Array]:
        """g, with dropout; 0 without gates."""
        if not self.gate:
            return lambda a, b: jnp.zeros_like(a)
        layers = [nn.Dense(self.width, kernel_init=_dense_init, name=name) for name in ("gate_silu", "gate_sigmoid")]
        return lambda a, b: Dropped(self.dropout)(selective_gate(a, b, *layers))

    def _recurrent_branch(self, x: Array) -> Array:
        """GRU(conv(x)), with PyTorch's initial values, which the released code leaves as they are."""
        near, D = uniform_init((3 * self.width) ** -0.5), self.width
        taps, bias = self.param("conv_kernel", near, (3, D, D)), self.param("conv_bias", near, (D,))
        unit = uniform_init(D**-0.5)
        kernels = [self.param(f"gru_{name}_kernel", unit, (D, 3, D)) for name in ("input", "state")]
        taps, bias, *kernels = (weights.astype(x.dtype) for weights in (taps, bias, *kernels))
        return gru(centred_convolution(x, taps, bias), *kernels)


class SIGMALayer(nn.Module):
    """`GatedMamba` and two dense layers, with norms behind both.

    Attributes:
        mixer: constructor of the mixer.
        residual: whether the mixer's input is added to its output.
        dropout: rate at which numbers are dropped of what is added.

    Example:
        >>> from functools import partial
        >>> layer = SIGMALayer(partial(GatedMamba, width=4, state_size=2))
        >>> jax.jit(layer.init_with_output)(jax.random.key(0), jnp.ones((2, 7, 4)), jnp.array([3, 7]))[0].shape
        (2, 7, 4)
    """

    mixer: Callable[..., nn.Module]
    residual: bool = False
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        """Of histories (B, T, D) of so many items (B,)."""
        z = Dropped(self.dropout)(self.mixer(name="mix")(x, lengths))
        z = nn.LayerNorm(epsilon=1e-12, name="mix_norm")(z + x if self.residual else z)
        h = nn.gelu(nn.Dense(4 * x.shape[-1], kernel_init=_dense_init, name="up")(z), approximate=False)
        h = nn.Dense(x.shape[-1], kernel_init=_dense_init, name="down")(Dropped(self.dropout)(h))
        return nn.LayerNorm(epsilon=1e-12, name="norm")(Dropped(self.dropout)(h) + z)


class SIGMA(nn.Module):
    """Scores of the next item from the items before (arXiv 2408.11451); see the module.

    Attributes:
        num_items: items, with ids from 0.
        width: channels D.
        mode: "faithful" or "corrected".
        num_layers: layers.
        kept: r, last items that are not flipped.
        state_size: of Mamba.
        conv_width: taps of Mamba's convolution.
        expand: inner channels of Mamba over D.
        dropout: rate at which numbers are dropped, where `apply` is given random numbers by the name "dropout".
        gate: whether there are gates.
        flip: whether there is a flipped direction.
        recurrent: whether there are convolution and GRU.

    Example:
        >>> model = SIGMA(num_items=9, width=4, state_size=2)
        >>> items, lengths = jnp.array([[1, 2, 3, 0], [8, 7, 6, 5]]), jnp.array([3, 4])
        >>> scores, _ = jax.jit(model.init_with_output)(jax.random.key(0), items, lengths)
        >>> scores.shape
        (2, 9)
    """

    num_items: int
    width: int = 64
    mode: Mode = "corrected"
    num_layers: int = 1
    kept: int = 5
    state_size: int = 32
    conv_width: int = 4
    expand: int = 2
    dropout: float = 0.2
    gate: bool = True
    flip: bool = True
    recurrent: bool = True

    def setup(self) -> None:
        """Declare the embedding, whose last row is that of padding, and the layers."""
        if self.mode not in MODES:
            raise ValueError(f"mode: got {self.mode!r}, expected one of {', '.join(MODES)}")
        self.embedding = self.param("embedding", _dense_init, (self.num_items + 1, self.width))
        self.drop, self.norm = Dropped(self.dropout), nn.LayerNorm(epsilon=1e-12)
        names = ("width", "mode", "kept", "state_size", "conv_width", "expand", "dropout", "gate", "flip", "recurrent")
        fields = {name: getattr(self, name) for name in names}
        mixer = partial(GatedMamba, **fields)
        self.layers = [SIGMALayer(mixer, self.num_layers > 1, self.dropout) for _ in range(self.num_layers)]

    def __call__(self, items: Array, lengths: Array) -> Array:
        """Scores of every item as the next one.

        Args:
            items: (B, T) ids; what stands behind the items of a row does not matter, whatever it is.
            lengths: (B,), items of each row, from 1 to T, which begin at its left.

        Returns:
            (B, num_items).

        Raises:
            ValueError: an argument has another shape or kind than stated, or other values where they are known.
        """
        _check(items, lengths, self.num_items)
        mask = real_items(lengths, items.shape[1])
        padding = jax.lax.stop_gradient(self.embedding[-1])
        x = jnp.where(mask[..., None], self.embedding[jnp.where(mask, items, 0)], padding)
        x = self.norm(self.drop(x))
        for layer in self.layers:
            x = layer(x, lengths)
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
        return last @ self.embedding[:-1].T


def real_items(lengths: Array, places: int) -> Array:
    """Where rows of so many items (B,), beginning at the left, have one: (B, places).

    Example:
        >>> real_items(jnp.array([1, 2]), 2).tolist()
        [[True, False], [True, True]]
    """
    return jnp.arange(places)[None] < lengths[:, None]


def _check(items: Any, lengths: Any, num_items: int) -> None:
    if items.ndim != 2 or not jnp.issubdtype(items.dtype, jnp.integer):
        raise ValueError(f"items: got {items.dtype}{list(items.shape)}, expected an integer array (B, T)")
    if lengths.shape != items.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths: got {lengths.dtype}{list(lengths.shape)}, expected integers [{items.shape[0]}]")
    if isinstance(items, jax.core.Tracer) or isinstance(lengths, jax.core.Tracer):
        return
    if (lengths < 1).any() or (lengths > items.shape[1]).any():
        raise ValueError(f"lengths: got {lengths.min()} to {lengths.max()}, expected 1 to {items.shape[1]}")
    real = np.asarray(items)[np.asarray(real_items(jnp.asarray(lengths), items.shape[1]))]
    if real.min() < 0 or real.max() >= num_items:
        raise ValueError(f"items: got ids from {real.min()} to {real.max()}, expected 0 to {num_items - 1}")
