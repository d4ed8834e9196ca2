"""The residual stack around any mixer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lightnet.backbone.layers import over_layers, stacked, unstacked
from lightnet.backbone.mixer import Mixer, State, partitioned
from lightnet.scan.checks import check_per_token
from lightnet.scan.placement import spread
from lightnet.typing import Array

REMAT_POLICIES = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")


class MLP(nn.Module):
    """Two dense layers with an activation between, applied to each position by itself.

    Attributes:
        hidden: width of the hidden layer.
        activation: element-wise function.
        use_bias: whether the dense layers have biases.
        out_scale: standard deviation of the second kernel's initial values.
        dtype: of the computation; None takes that of the parameters it is given, float32 as they are initialised.
    """

    hidden: int
    activation: Callable[[Array], Array]
    use_bias: bool
    out_scale: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., D) to (..., D)."""
        up = partitioned(nn.initializers.normal(0.02), "embed", "mlp")
        down = partitioned(nn.initializers.normal(self.out_scale), "mlp", "embed")
        h = nn.Dense(self.hidden, use_bias=self.use_bias, kernel_init=up, dtype=self.dtype, name="up")(x)
        h = self.activation(h)
        return nn.Dense(x.shape[-1], use_bias=self.use_bias, kernel_init=down, dtype=self.dtype, name="down")(h)


class Drop(nn.Module):
    """Dropout (Srivastava et al. 2014), then stochastic depth (Huang et al. 2016, arXiv 1603.09382), of a branch.

    Both multiply what they keep by 1 / (1 - rate), and act where `apply` is given random numbers by the name
    "dropout", nowhere else.

    Attributes:
        dropout: rate at which single numbers are dropped.
        drop_path: rate at which the branch is, for each example by itself.

    Example:
        >>> import jax
        >>> y = Drop(drop_path=0.5).apply({}, jnp.ones((64, 3, 2)), rngs={"dropout": jax.random.key(0)})
        >>> sorted(set(y.sum(axis=(1, 2)).tolist()))
        [0.0, 12.0]
    """

    dropout: float = 0.0
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: Array, drop_path: Array | None = None) -> Array:
        """The branch (B, L, D), or what is left of it; `drop_path` in place of the attribute may be traced."""
        if not self.has_rng("dropout"):
            return x
        if self.dropout:
            drop = nn.Dropout(self.dropout, deterministic=False)
            # The barrier has it drawn once and stored, in a byte for each number. Otherwise the compiler for TPUs
            # draws it anew wherever it is used, three times for each branch, and takes seconds over every one of them.
            kept = jax.lax.optimization_barrier(drop(jnp.ones_like(x)) > 0)
            x = jnp.where(kept, x / (1 - self.dropout if self.dropout < 1 else 1), 0)
        if drop_path is None:
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=False)(x)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_path, (x.shape[0], 1, 1))
        return jnp.where(kept, x / (1 - drop_path).astype(x.dtype), 0)


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + mlp(norm(x)) if there is an mlp; see `Drop`."""

    mixer: Callable[..., Mixer]
    mlp: Callable[..., nn.Module] | None
    norm: Callable[..., nn.Module]
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self) -> None:
        """Declare the sublayers and their norms."""
        self.mix_norm = self.norm()
        self.mix = self.mixer()
        self.drop_mixed, self.drop_fed = (Drop(self.dropout, self.drop_path) for _ in range(2))
        if self.mlp is not None:
            self.mlp_norm = self.norm()
            self.feed_forward = self.mlp()

    def __call__(
        self,
        x: Array,
        state: State = None,
        drop_path: Array | None = None,
        *,
        segment_ids: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, State]:
        """Mix a whole sequence (B, L, D)."""
        y, state = self.mix(self.mix_norm(x), state, segment_ids=segment_ids, mask=mask)
        x = x + self.drop_mixed(y, drop_path)
        return x if self.mlp is None else x + self.drop_fed(self.feed_forward(self.mlp_norm(x)), drop_path), state

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Advance by one token (B, D)."""
        y, state = self.mix.step(self.mix_norm(x), state)
        x = x + y
        return x if self.mlp is None else x + self.feed_forward(self.mlp_norm(x)), state


class Backbone(nn.Module):
    """A stack of pre-norm residual blocks around any mixer, with a final norm.

    Attributes:
        mixer: constructor of mixers, for example `functools.partial(SoftmaxAttention, num_heads=4)`. It is called
            with `width`, `dtype` and `out_scale`, the initial standard deviation of a projection that ends in the
            residual stream: 0.02 / sqrt(2 num_layers), as in GPT-2, so that its variance does not grow with depth.
        num_layers: number of blocks.
        width: channels D of the residual stream.
        mlp_ratio: hidden width of the MLP over D; 0 leaves the mixer alone in its block, as in Mamba.
        activation: of the MLP.
        use_bias: biases in the MLP and the norms.
        dtype: of the computation, but for the statistics of norms; parameters are initialised in float32. None computes
            in the precision of the parameters that are passed in.
        remat: what the backward pass finds stored of each block: "none" stores all; else a policy of
            `jax.checkpoint_policies` by name, "nothing_saveable" for the block's input alone, "dots_saveable" or
            "dots_with_no_batch_dims_saveable" for products of matrices too. The rest is computed again.
        channel_mixer: constructor of what acts on each position, such as `functools.partial(GLU, hidden=64)`, called
            with `dtype` and `out_scale`; None is the MLP.
        norm: constructor of norms, such as `functools.partial(flax.linen.RMSNorm, epsilon=1e-6)`, called with
            `scale_init` and `dtype`; None is LayerNorm.
        float32_residual: sum what the blocks add in float32 at least, whatever `dtype` is.
        dropout: rate at which numbers are dropped of what enters the first block and of what each branch adds. Only
            where `apply` is given random numbers: `model.apply(variables, x, rngs={"dropout": key})`; steps drop
            nothing.
        drop_path: rate at which the last block's branches are dropped, for each example by itself; that of the first is
            0, and in between it grows linearly. Under the same condition.
        scan_layers: compile one block and loop over all, whose parameters then lie in `blocks` with a leading axis
            named `layers` (`lightnet.backbone.stack_layers`). What is computed and the state stay the same, but for
            which numbers are drawn to be dropped.

    Example:
        >>> from functools import partial
        >>> import jax
        >>> from lightnet.mixers import SoftmaxAttention
        >>> backbone = Backbone(mixer=partial(SoftmaxAttention, num_heads=2), num_layers=2, width=8)
        >>> x = jnp.ones((1, 5, 8))
        >>> (y, state), variables = jax.jit(backbone.init_with_output)(jax.random.key(0), x)
        >>> y.shape
        (1, 5, 8)
    """

    mixer: Callable[..., Mixer]
    num_layers: int
    width: int
    mlp_ratio: int = 4
    activation: Callable[[Array], Array] = nn.gelu
    use_bias: bool = False
    dtype: Any = None
    remat: str = "none"
    channel_mixer: Callable[..., nn.Module] | None = None
    norm: Callable[..., nn.Module] | None = None
    float32_residual: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    scan_layers: bool = False

    def setup(self) -> None:
        """Declare the blocks and the final norm."""
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a rate from 0 and below 1")
        if self.num_layers < 1:
            raise ValueError(f"num_layers: got {self.num_layers}, expected at least 1")
        if self.mlp_ratio < 0:
            raise ValueError(f"mlp_ratio: got {self.mlp_ratio}, expected at least 0")
        if self.remat not in ("none", *REMAT_POLICIES):
            raise ValueError(f"remat: got {self.remat!r}, expected none, {', '.join(REMAT_POLICIES)}")
        out_scale = 0.02 / (2 * self.num_layers) ** 0.5

        def mixer() -> Mixer:
            return self.mixer(width=self.width, out_scale=out_scale, dtype=self.dtype)

        def mlp() -> nn.Module:
            if self.channel_mixer is not None:
                return self.channel_mixer(out_scale=out_scale, dtype=self.dtype)
            hidden = self.mlp_ratio * self.width
            return MLP(hidden, self.activation, self.use_bias, out_scale=out_scale, dtype=self.dtype)

        def norm() -> nn.Module:
            scale = partitioned(nn.initializers.ones, "embed")
            kind = self.norm or partial(nn.LayerNorm, epsilon=1e-5, use_bias=self.use_bias)
            return kind(scale_init=scale, dtype=self.dtype)

        alone = self.mlp_ratio == 0 and self.channel_mixer is None
        block = Block
        if self.remat != "none":
            # Nothing of one turn of a loop can be taken for something of another.
            policy = getattr(jax.checkpoint_policies, self.remat)
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan_layers)
        made = partial(block, mixer, None if alone else mlp, norm, self.dropout)
        self.blocks: Any = made() if self.scan_layers else [made(rate) for rate in self._rates()]
        self.drop_input = Drop(self.dropout)
        self.final_norm = norm()

    def __call__(
        self, x: Array, state: State = None, *, segment_ids: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, State]:
        """Apply the stack to a sequence.

        Args:
            x: (B, L, D).
            state: from `init_state` or an earlier call; None at the start of a sequence.
            segment_ids: (B, L); tokens of different runs do not see each other.
            mask: (B, L), true at real tokens. What a masked token contains has no effect, NaN included.

        Returns:
            (B, L, D) and the state after the last token.

        Raises:
            ValueError: an argument has another shape or kind than stated, or a mixer cannot do what is asked.
        """
        self._check(x, segment_ids, mask)
        x = self.drop_input(self._residual(x if mask is None else jnp.where(mask[..., None], x, 0)))
        per_token = {"segment_ids": segment_ids, "mask": mask}

        def apply(block: Block, x: Array, each: tuple[State, Array | None], same: Any) -> tuple[Array, State]:
            x, state = block(x, *each, **same)
            return spread(x, "B L W"), state

        x, state = self._through(apply, spread(x, "B L W"), state, per_token)
        return self.final_norm(x), state

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Advance by one token: (B, D) to (B, D), in the memory of the state."""
        x, state = self._through(lambda block, x, each, _: block.step(x, each[0]), self._residual(x), state)
        return self.final_norm(x), state

    def _through(self, apply: Callable, x: Array, state: State, same: Any = None) -> tuple[Array, State]:
        """Through all blocks, each with its entry of the state and, where it is not an attribute, its drop_path."""
        if self.scan_layers:
            rates = jnp.array(self._rates()) if self.drop_path else None
            given = (None if state is None else stacked(state), rates)
            x, after = over_layers(apply, self.num_layers)(self.blocks, x, given, same)
            return x, unstacked(after, self.num_layers)
        states = []
        for i, block in enumerate(self.blocks):
            x, after = apply(block, x, (None if state is None else state[i], None), same)
            states.append(after)
        return x, tuple(states)

    def _rates(self) -> list[float]:
        """`drop_path` of each block."""
        return [self.drop_path * i / max(1, self.num_layers - 1) for i in range(self.num_layers)]

    def _residual(self, x: Array) -> Array:
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if self.float32_residual else x

    def _check(self, x: Array, segment_ids: Array | None, mask: Array | None) -> None:
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.width:
            raise ValueError(f"x: got shape {list(x.shape)}, expected (B, L, {self.width}) with L from 1")
        check_per_token({"B": x.shape[0], "L": x.shape[1]}, segment_ids, mask)

    def require(self, **asked: bool) -> None:
        """Raise a ValueError unless every block's mixer has the capabilities asked for; see `Mixer.require`."""
        self._each(lambda block: block.mix.require(**asked))

    def init_state(self, batch: int) -> State:
        """The state before the first token, one entry per block."""
        return self._each(lambda block: block.mix.init_state(batch))

    def _each(self, ask: Callable[[Block], Any]) -> tuple[Any, ...]:
        """What every block answers."""
        if not self.scan_layers:
            return tuple(map(ask, self.blocks))
        # Outside of the loop a block would not find its parameters.
        _, answers = over_layers(lambda block, *_: (None, ask(block)), self.num_layers)(self.blocks, None, None, None)
        return unstacked(answers, self.num_layers)
