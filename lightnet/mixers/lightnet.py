"""LightNet's mixer: linear attention whose keys are a softmax over tokens ("You Only Scan Once", arXiv 2405.21022).

    o_i = sum_j (q_i . k_j) v_j,    k_j = exp(a_j - z),    z = log sum_j exp(a_j)    per key channel

over all tokens, or over those so far if causal, in which case it is a recurrence with decays exp(z_{t-1} - z_t); then a
gate, a norm and a projection (`GatedOutput`). The paper itself was not at hand. The causal form is that of two public
implementations, one of them by its first author; the form without an order follows from what the paper's reviews quote;
which of the switches below the paper has on is not known, and the defaults are the first author's code, except for its
phantom token. No activation on values and logits, queries are not scaled, H K = D.

Sums over all tokens so far drift in float32, so the state of normalised keys keeps what rounding leaves out of them
(`lightnet.scan.additive.compensated`). Within one call sums are added up chunk by chunk, which needs none of that.
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Capabilities, partitioned
from lightnet.mixers.gated import GatedMixer, PerToken
from lightnet.mixers.normaliser import EMPTY, log_decay, log_normalisers, normaliser_of
from lightnet.mixers.parts import precision_of_states
from lightnet.scan import (
    AdditiveState,
    additive_global,
    additive_recurrence,
    causal_conv,
    causal_conv_step,
    gated_linear_attention,
    gated_linear_step,
)
from lightnet.scan.additive import Remainder, compensated_end, compensated_step
from lightnet.scan.additive.compensated import no_remainder
from lightnet.typing import Array

DECAYS = ("shared", "vector", "scalar")


class DecayState(NamedTuple):
    """Of keys that are not normalised: z (B, H, K), or (B, H, 1) of scalars, and the state (B, H, F*K, K)."""

    normaliser: Array
    matrix: Array


class LightNetState(NamedTuple):
    """What the mixer carries from token to token.

    Attributes:
        position: (B,), the next one.
        recurrence: the sums of the tokens so far.
        remainder: what rounding left out of them, so that they do not drift; None of a `DecayState`.
        conv: the last inputs of the convolution (B, width - 1, 3 D), or None.
    """

    position: Array
    recurrence: AdditiveState | DecayState
    remainder: Remainder | None
    conv: Array | None


class Operands(NamedTuple):
    """What is mixed, with or without the axis L: q, v (B, L, H, K), logits (B, L, H, K or 1).

    Keys are None where they are the logits, and the factor of relative encodings (B or 1, L, H or 1, 2, K) is None
    without one.
    """

    q: Array
    logits: Array
    v: Array
    keys: Array | None
    factor: Array | None


class LightNetAttention(GatedMixer):
    """LightNet's mixer, causal or without an order; see the module.

    Attributes:
        causal: whether keys are normalised over the tokens so far instead of over all.
        decay: where the logits a come from. "shared": they are the projection of the keys. "vector": a projection of
            low rank (the head size), and normalised keys are multiplied by silu(W_k x). "scalar": the same with one
            logit per head.
        normalised: False leaves the keys silu(W_k x) as they are and keeps the decays alone; causal, not "shared".
        phantom_logit: logit of an empty token before the first, so that weights sum to less than 1; None has none.
            Causal only.
        conv_width: taps of a causal convolution of queries, keys and values, before activations; 0 has none.
        max_segments: of a packed row, without an order; 1 refuses segments. Time grows with it. Under `jit`, further
            segments read 0.
        activation: of the queries, and of keys that are not logits. This field and the others: see `GatedMixer`.
            Relative encodings act on normalised keys.

    Example:
        >>> from lightnet.positions import MDLRPE
        >>> x = jnp.ones((1, 6, 8))
        >>> mixer = LightNetAttention(width=8, num_heads=2, relative=MDLRPE)
        >>> (y, state), variables = jax.jit(mixer.init_with_output)(jax.random.key(0), x)
        >>> y.shape, state.position.tolist()
        ((1, 6, 8), [6])
        >>> on_image = mixer.clone(causal=False, relative=partial(MDLRPE, axes=2), grid=(2, 3))
        >>> on_image.apply(variables, x)[0].shape
        (1, 6, 8)
    """

    causal: bool = True
    decay: str = "shared"
    normalised: bool = True
    phantom_logit: float | None = None
    conv_width: int = 0
    max_segments: int = 1

    state_type: ClassVar[type] = LightNetState

    def setup(self) -> None:
        """Declare the projections, the convolution and the output."""
        self._check_switches()
        super().setup()
        dense = partial(nn.Dense, use_bias=self.use_bias, dtype=self.dtype)
        normal = nn.initializers.normal(0.02)
        if self.decay == "vector":
            self.decay_down = dense(self.head_size, kernel_init=partitioned(normal, "embed", None))
            self.decay_up = dense(self.width, kernel_init=partitioned(normal, None, "embed"))
        if self.decay == "scalar":
            self.decay_heads = dense(self.num_heads, kernel_init=partitioned(normal, "embed", "heads"))
        if self.conv_width:
            # Uniform within 1 / sqrt(width), as depthwise convolutions are usually started.
            init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", 0, (), (1, 2, 3))
            shape = (self.conv_width, 3, self.num_heads, self.head_size)
            axes = (None, None, "heads", "head_size")
            self.conv = self.param("conv", partitioned(init, *axes), shape)

    @property
    def capabilities(self) -> Capabilities:
        """Masks always; segments of sequences, up to `max_segments` without an order; a state and steps if causal."""
        sequence = self.grid is None
        segments = sequence and (self.causal or self.max_segments > 1)
        recurrent = sequence and self.causal
        return Capabilities(causal=self.causal, state=recurrent, step=recurrent, segments=segments, mask=True)

    def init_state(self, batch: int) -> LightNetState:
        """The state before the first token."""
        self.require(state=True)
        size, dtype = self.head_size, precision_of_states(self.dtype)
        keys = (batch, self.num_heads, size)
        matrix = jnp.zeros((*keys[:2], size if self.relative is None else 2 * size, size), dtype)
        recurrence: AdditiveState | DecayState
        remainder = None
        if self.normalised:
            recurrence = AdditiveState(jnp.full(keys, -jnp.inf, dtype), jnp.zeros(keys, dtype), matrix)
            remainder = no_remainder(recurrence)
        else:
            logits = keys if self.decay == "vector" else (*keys[:2], 1)
            recurrence = DecayState(jnp.full(logits, EMPTY, dtype), matrix)
        conv = jnp.zeros((batch, self.conv_width - 1, 3 * self.width), dtype) if self.conv_width else None
        return LightNetState(jnp.zeros(batch, jnp.int32), recurrence, remainder, conv)

    def _check_switches(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay: got {self.decay!r}, expected one of {', '.join(DECAYS)}")
        if self.decay == "shared" and not self.normalised:
            raise ValueError("normalised: got False with decay 'shared', whose keys are the normalised logits")
        if not self.causal:
            only = {"normalised": (self.normalised, True), "phantom_logit": (self.phantom_logit, None)}
            for name, (given, expected) in {**only, "conv_width": (self.conv_width, 0)}.items():
                if given != expected:
                    raise ValueError(f"{name}: got {given}, expected {expected}: without an order there is no past")

    def _read(
        self, x: Array, coordinates: Array, state: LightNetState | None, per_token: PerToken
    ) -> tuple[Array, tuple]:
        conv = None if state is None else state.conv
        qkv = self.qkv(x)
        if self.conv_width:
            flat = qkv.reshape(*x.shape[:2], -1)
            flat, conv = causal_conv(flat, self._taps(flat), initial_state=conv, **per_token)
            qkv = flat.reshape(qkv.shape)
        mix = self._normalised if self.normalised else self._decayed
        o, recurrence, remainder = mix(self._operands(x, qkv, coordinates), state, per_token)
        return o, (recurrence, remainder, conv)

    def _read_one(self, x: Array, coordinates: Array, state: LightNetState) -> tuple[Array, tuple]:
        qkv, conv = self.qkv(x), state.conv
        if self.conv_width:
            flat = qkv.reshape(x.shape[0], -1)
            flat, conv = causal_conv_step(flat, self._taps(flat), None, state.conv)
            qkv = flat.reshape(qkv.shape)
        mix = self._normalised_step if self.normalised else self._decayed_step
        o, recurrence, remainder = mix(self._operands(x, qkv, coordinates), state)
        return o, (recurrence, remainder, conv)

    def _taps(self, flat: Array) -> Array:
        return self.conv.reshape(self.conv_width, -1).astype(flat.dtype)

    def _operands(self, x: Array, qkv: Array, coordinates: Array) -> Operands:
        q, k, v = jnp.unstack(qkv, axis=-3)
        factor = None
        if self.relative is not None:
            # Angles have the default precision, which is not to be that of states.
            factor = self.encoding(coordinates).astype(jnp.promote_types(q.dtype, jnp.float32))
        q = self.activation(q)
        if self.decay == "shared":
            return Operands(q, k, v, None, factor)
        if self.decay == "vector":
            logits = self.decay_up(self.decay_down(x)).reshape(k.shape)
        else:
            logits = self.decay_heads(x)[..., None]
        return Operands(q, logits, v, self.activation(k), factor)

    def _expanded(self, q: Array, factor: Array | None) -> Array:
        return q if factor is None else self.encoding.queries(q, factor)

    def _normalised(
        self, operands: Operands, state: LightNetState | None, per_token: PerToken
    ) -> tuple[Array, AdditiveState | None, Remainder | None]:
        """Keys that are a softmax over tokens."""
        q, logits, v, keys, factor = operands
        logits = jnp.broadcast_to(logits, v.shape)
        before, remainder = (None, None) if state is None else _sums(state)
        if self.phantom_logit is not None:
            z, _ = log_normalisers(logits, None if before is None else normaliser_of(before), **per_token)
            q = _with_phantom(q, z, self.phantom_logit)
        q, weights = self._expanded(q, factor), _weights(keys, factor)
        if not self.causal:
            o = additive_global(q, logits, v, key_factor=weights, num_segments=self.max_segments, **per_token)
            return o, None, None
        o, after = additive_recurrence(q, logits, v, key_factor=weights, initial_state=before, **per_token)
        if before is None or remainder is None:
            return o, after, no_remainder(after)
        return o, *compensated_end(logits, v, before, remainder, key_factor=weights, **per_token)

    def _normalised_step(self, operands: Operands, state: LightNetState) -> tuple[Array, AdditiveState, Remainder]:
        q, logits, v, keys, factor = operands
        logits = jnp.broadcast_to(logits, v.shape)
        before, remainder = _sums(state)
        if self.phantom_logit is not None:
            z = jnp.logaddexp(normaliser_of(before), logits.astype(before.total.dtype))
            q = _with_phantom(q, z, self.phantom_logit)
        weights = _weights(keys, factor)
        return compensated_step(self._expanded(q, factor), logits, v, before, remainder, key_factor=weights)

    def _decayed(self, operands: Operands, state: Any, per_token: PerToken) -> tuple[Array, DecayState, None]:
        """Keys as they are, with the decays of the normaliser."""
        z_first, matrix = (None, None) if state is None else state.recurrence
        z, z_before = log_normalisers(operands.logits, z_first, **per_token)
        o, matrix = gated_linear_attention(*self._gated(operands, z_before), initial_state=matrix, **per_token)
        return o, DecayState(z[:, -1], matrix), None

    def _decayed_step(self, operands: Operands, state: Any) -> tuple[Array, DecayState, None]:
        z, matrix = state.recurrence
        o, matrix = gated_linear_step(*self._gated(operands, z), matrix)
        return o, DecayState(jnp.logaddexp(z, operands.logits.astype(z.dtype)), matrix), None

    def _gated(self, operands: Operands, z_before: Array) -> tuple[Array, Any, Array, Array]:
        """Queries, keys, values and log decays of gated linear attention."""
        q, logits, v, keys, factor = operands
        if self.phantom_logit is not None:
            z_before = jnp.logaddexp(z_before, self.phantom_logit)
        decay = log_decay(logits.astype(z_before.dtype), z_before)
        if factor is not None:
            keys = self.encoding.keys(keys, factor)
            decay = jnp.concatenate([decay] * 2, axis=-1) if decay.shape[-1] > 1 else decay
        return self._expanded(q, factor), keys, v, decay


def _with_phantom(q: Array, z: Array, phantom_logit: float) -> Array:
    """Queries times the share of the weights that tokens have and the phantom has not."""
    return q * jax.nn.sigmoid(z - phantom_logit).astype(q.dtype)


def _sums(state: Any) -> tuple[AdditiveState, Remainder]:
    """Those of normalised keys, and what rounding left out of them."""
    return state.recurrence, state.remainder


def _weights(keys: Array | None, factor: Array | None) -> Array | None:
    """What normalised keys are multiplied by: (.., H or 1, F, K)."""
    if keys is None:
        return factor
    return keys[..., None, :] if factor is None else keys[..., None, :] * factor
