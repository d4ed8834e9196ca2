"""HiSS: a model of short chunks of samples under a model of the chunks (Bhirangi et al., arXiv 2402.10211, section 4).

    e_t = W_e x_t + b_e                                             t = 1, ..., L, at the rate of the sensor
    l_c = low(e_{(c-1)k+1}, ..., e_{ck})_k                          each chunk from an empty state; its last sample
    y_c = W_y high(W_l l_1 + b_l, ..., W_l l_c + b_l)_c + b_y       c = 1, ..., L / k, at the rate of the targets

`low` and `high` are any two stacks of mixers, and k is `freq_ratio`. An output depends on its chunk and those before
it; on those after it only if `high` is not causal. The paper's levels have a projection to the width of the other
around them, which is W_l here; the letters are those of the code that was released with the paper.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone import Backbone, partitioned
from lightnet.scan.checks import check_array, check_per_token
from lightnet.typing import Array


class HiSSState(NamedTuple):
    """What HiSS carries from sample to sample: both levels, and the prediction that holds until the next one.

    Attributes:
        samples: () int32, read of the present chunk; 0 where `output` is new.
        low: of the lower level, within the present chunk.
        high: of the upper level, after the last whole chunk.
        output: (B, targets), of the last whole chunk; NaN before the first.
    """

    samples: Array
    low: Any
    high: Any
    output: Array


def chunked(x: Array, size: int) -> Array:
    """Chunks of a sequence as rows of their own.

    Args:
        x: (B, L, ...), L a multiple of the size.
        size: samples k of a chunk.

    Returns:
        (B L / k, k, ...).

    Example:
        >>> chunked(jnp.arange(6).reshape(1, 6), 2).tolist()
        [[0, 1], [2, 3], [4, 5]]
    """
    return x.reshape(x.shape[0] * (x.shape[1] // size), size, *x.shape[2:])


def last_real(x: Array, mask: Array | None) -> Array:
    """The last real sample of each row.

    Args:
        x: (B, L, D).
        mask: (B, L), true at real samples; None where all are.

    Returns:
        (B, D); of a row without a real sample, what stands at its end.

    Example:
        >>> x = jnp.arange(6.0).reshape(2, 3, 1)
        >>> last_real(x, jnp.array([[True, True, False], [False, False, False]])).ravel().tolist()
        [1.0, 5.0]
    """
    if mask is None:
        return x[:, -1]
    place = x.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]


class HiSS(nn.Module):
    """A hierarchical sequence model (arXiv 2402.10211); see the module.

    Attributes:
        low: the stack within a chunk; causal or not. It is not the same object as `high`.
        high: the stack over chunks.
        num_targets: numbers that are predicted for each chunk.
        freq_ratio: samples k of a chunk.

    Example:
        >>> from functools import partial
        >>> from ssm import S4, Mamba
        >>> low = Backbone(partial(S4, state_size=4), num_layers=1, width=6, mlp_ratio=0)
        >>> high = Backbone(partial(Mamba, state_size=4), num_layers=1, width=8, mlp_ratio=0)
        >>> model = HiSS(low, high, num_targets=2, freq_ratio=5)
        >>> x = jnp.ones((1, 15, 3))
        >>> y, variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
        >>> y.shape
        (1, 3, 2)
        >>> state = model.apply(variables, 1, method="init_state")
        >>> held, state = jax.jit(partial(model.apply, method="step"))(variables, x[:, 0], state)
        >>> held.shape, int(state.samples)
        ((1, 2), 1)
    """

    low: Backbone
    high: Backbone
    num_targets: int
    freq_ratio: int = 10

    def setup(self) -> None:
        """Declare the embedding, the projection between the levels and the last layer."""
        for name in ("num_targets", "freq_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        kernel = nn.initializers.lecun_normal()
        # A block begins with a norm, which would leave the direction of a sample alone and take its size away. Beside a
        # bias as large as the rest, the direction tells the size too.
        bias = partitioned(nn.initializers.normal(1.0), "embed")
        into = partitioned(kernel, None, "embed")
        self.embed = nn.Dense(self.low.width, kernel_init=into, bias_init=bias, dtype=self.low.dtype)
        self.connect = nn.Dense(self.high.width, kernel_init=partitioned(kernel, None, "embed"), dtype=self.high.dtype)
        self.head = nn.Dense(self.num_targets, kernel_init=partitioned(kernel, "embed", None))

    def __call__(self, x: Array, *, segment_ids: Array | None = None, mask: Array | None = None) -> Array:
        """Predict the targets of each chunk.

        A recording whose length is no multiple of `freq_ratio` is filled up with samples that the mask leaves out: a
        chunk is then read at its last real sample. Chunks are counted from the beginning of the array.

        Args:
            x: (B, L, C) samples, L a multiple of `freq_ratio`.
            segment_ids: (B, L / k), one for each chunk, so that several recordings of whole chunks lie in one row;
                chunks of different runs do not see each other.
            mask: (B, L), true at real samples; what the others contain has no effect, NaN included. Both levels need
                mixers that take one.

        Returns:
            (B, L / k, targets), float32 at least; 0 for a chunk without a real sample.

        Raises:
            ValueError: an argument has another shape or kind than stated, or a mixer cannot do what is asked.
        """
        sizes: dict[str, int] = {}
        check_array("x", x, "B L C", sizes)
        batch, length = sizes["B"], sizes["L"]
        if length % self.freq_ratio:
            expected = f"a multiple of freq_ratio, {self.freq_ratio}; append samples that the mask leaves out"
            raise ValueError(f"x: got {length} samples, expected {expected}")
        chunks = length // self.freq_ratio
        check_per_token({"B": batch, "L": length}, None, mask)
        check_per_token({"B": batch, "L": chunks}, segment_ids, None)
        rows, real = chunked(x, self.freq_ratio), None if mask is None else chunked(mask, self.freq_ratio)
        features = self._of_chunks(rows, real).reshape(batch, chunks, -1)
        any_real = None if real is None else real.any(axis=1).reshape(batch, chunks)
        y, _ = self.high(features, segment_ids=segment_ids, mask=any_real)
        y = self._targets(y)
        return y if any_real is None else jnp.where(any_real[..., None], y, 0)

    def step(self, x: Array, state: HiSSState) -> tuple[Array, HiSSState]:
        """Read one sample of each row; the prediction changes with the last one of a chunk.

        Args:
            x: (B, C).
            state: from `init_state` or an earlier step.

        Returns:
            (B, targets), the prediction of the last whole chunk, NaN before the first; and the state.

        Raises:
            ValueError: a mixer of one of the levels has no step.
        """
        self.low.require(step=True)
        self.high.require(step=True)
        feature, low = self.low.step(self.embed(x), state.low)
        within = HiSSState(state.samples + 1, low, state.high, state.output)
        after = nn.cond(within.samples == self.freq_ratio, _end_of_chunk, _within_chunk, self, feature, within)
        return after.output, after

    def init_state(self, batch: int) -> HiSSState:
        """The state before the first sample of `batch` rows."""
        wide = jnp.promote_types(self.high.dtype or jnp.result_type(float), jnp.float32)
        levels = self.low.init_state(batch), self.high.init_state(batch)
        return HiSSState(jnp.zeros((), jnp.int32), *levels, jnp.full((batch, self.num_targets), jnp.nan, wide))

    def _of_chunks(self, rows: Array, mask: Array | None) -> Array:
        """What the upper level is told of each chunk (N, k, C): (N, width of the upper level)."""
        if mask is not None:
            # Before the embedding: 0 times NaN would be in the gradient of its kernel.
            rows = jnp.where(mask[..., None], rows, 0)
        read, _ = self.low(self.embed(rows), mask=mask)
        return self.connect(last_real(read, mask))

    def _targets(self, y: Array) -> Array:
        return self.head(y.astype(jnp.promote_types(y.dtype, jnp.float32)))


def _end_of_chunk(model: HiSS, feature: Array, state: HiSSState) -> HiSSState:
    """Tell the upper level, and empty the lower one."""
    y, high = model.high.step(model.connect(feature), state.high)
    empty = model.low.init_state(feature.shape[0])
    low = jax.tree.map(lambda new, old: new.astype(old.dtype), empty, state.low)
    return HiSSState(jnp.zeros_like(state.samples), low, high, model._targets(y).astype(state.output.dtype))


def _within_chunk(model: HiSS, feature: Array, state: HiSSState) -> HiSSState:
    del model, feature
    return state
