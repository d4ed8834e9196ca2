"""How the kernels of gated linear attention for TPUs cut up their arrays: by sequences, heads, blocks and chunks."""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.gated.chunk import LOG_ZERO
from lightnet.scan.kernels import KEEP, LANES, REAL
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

MOST = 12 * 2**20  # bytes of VMEM, of the 16 MB that a program has
Named = list[tuple[str, Any]]  # arrays, or their shapes, and how they are cut up


class Plan(NamedTuple):
    """Sizes of one call.

    Attributes:
        heads: of a program.
        groups: of heads with the same query and key in a program, or the part of one that is in it.
        members: heads of a whole group.
        key: size of a query and a key.
        value: size of a value.
        chunk: tokens of a chunk.
        tokens: of a block, which is in VMEM at once.
        blocks: of a sequence.
        half: whether the operands are of half precision.
        scalar: whether a decay is for a whole head.
    """

    heads: int
    groups: int
    members: int
    key: int
    value: int
    chunk: int
    tokens: int
    blocks: int
    half: bool
    scalar: bool

    @property
    def state(self) -> tuple[int, int]:
        """Its sizes; where each key channel has its decay, these lie along a row."""
        return (self.key, self.value) if self.scalar else (self.value, self.key)

    @property
    def slopes(self) -> int:
        """Gradients of queries, and of keys, that a program makes: heads that are made together give one together."""
        return self.groups if self.scalar else self.heads


def room(tokens: int, heads: int, key: int, value: int, chunk: int, half: bool, scalar: bool) -> int:
    """Bytes of VMEM that the backward pass takes, with two of each block, and what registers do not hold of a chunk."""
    given = 2 * tokens * heads * ((2 if half else 4) * (4 * key + 3 * value) + (0 if scalar else 8 * key))
    states = (tokens // chunk + 7) * heads * 4 * key * value
    spilled = (16 + 4 * heads) * (2 - half if scalar else 3) * chunk * 4 * max(key, value, LANES)
    return given + states + spilled


def call(
    kernel: Any, plan: Plan, inputs: Named, outputs: Named, scratch: list, *, backwards: bool, interpret: bool
) -> list[Array]:
    """Run a kernel over sequences, heads and blocks of tokens; each array is cut up as its name says."""
    batch, heads = next(x for name, x in inputs if name == "state").shape[:2]
    outcome = pl.pallas_call(
        partial(kernel, plan=plan, flagged=inputs[0][0] == "flags"),
        grid=(batch, heads // plan.heads, plan.blocks),
        in_specs=[_block(name, plan, backwards) for name, _ in inputs],
        out_specs=[_block(name, plan, backwards) for name, _ in outputs],
        out_shape=[x for _, x in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*(x for _, x in inputs))
    return list(outcome)


def _block(name: str, plan: Plan, backwards: bool) -> pl.BlockSpec:
    def at(t: Any) -> Any:
        return plan.blocks - 1 - t if backwards else t

    if name == "state":
        return pl.BlockSpec((None, plan.heads, *plan.state), lambda b, h, t: (b, h, 0, 0))
    if name == "states":
        return pl.BlockSpec((None, None, plan.heads, *plan.state), lambda b, h, t: (b, at(t), h, 0, 0))
    if name == "flags":
        return pl.BlockSpec((None, plan.tokens, 1), lambda b, h, t: (b, at(t), 0))
    if name == "rows":
        shape = (None, None, plan.tokens // plan.chunk, plan.heads, plan.chunk)
        return pl.BlockSpec(shape, lambda b, h, t: (b, h, at(t), 0, 0))
    if name == "group":
        per_group, width = plan.members * plan.groups, plan.groups * plan.key
        return pl.BlockSpec((None, plan.tokens, width), lambda b, h, t: (b, at(t), lax.div(h * plan.heads, per_group)))
    width = {"key": plan.heads * plan.key, "value": plan.heads * plan.value, "slope": plan.slopes * plan.key}[name]
    return pl.BlockSpec((None, plan.tokens, width), lambda b, h, t: (b, at(t), h))


def as_rows(log_decay: Array, tokens: Tokens, plan: Plan) -> Array:
    """Decays of heads (B, L, H, 1) as rows (B, H / heads, chunks, heads, C).

    They are 0 at masked tokens and behind the last one. What is below `LOG_ZERO` is so much, as is that of a token that
    begins a run; its gradient is exactly 0.
    """
    batch, length, heads, _ = log_decay.shape
    keep, real = (None if flag is None else flag[..., None] for flag in tokens)
    x = log_decay[..., 0].astype(jnp.float32)
    x = jnp.where(x < LOG_ZERO, LOG_ZERO, x)
    x = x if keep is None else jnp.where(keep, x, LOG_ZERO)
    x = x if real is None else jnp.where(real, x, 0)
    x = jnp.pad(x, ((0, 0), (0, plan.blocks * plan.tokens - length), (0, 0)))
    return x.reshape(batch, -1, plan.chunk, heads // plan.heads, plan.heads).transpose(0, 3, 1, 4, 2)


class Chunk:
    """Reads and writes one chunk of a block, head by head; what stands at masked tokens is 0."""

    def __init__(self, flags: list, plan: Plan, c: Any) -> None:
        self.plan, self.index = plan, c
        self.rows = pl.ds(pl.multiple_of(c * plan.chunk, plan.chunk), plan.chunk)
        flag = flags[0][self.rows, :] if flags else None
        self.keep: Any = None if flag is None else (flag & KEEP) != 0
        self.real: Any = None if flag is None else (flag & REAL) != 0

    def __call__(self, ref: Any, i: int, size: int, *, narrow: bool = False) -> Array:
        """Columns (C, size) of the i-th head or group of the program, in float32, or as they are."""
        x = ref[self.rows, i * size : (i + 1) * size]
        if narrow and self.real is None:
            return x
        x = self._clean(x.astype(jnp.float32))
        return x.astype(ref.dtype) if narrow else x

    def decay(self, ref: Any, i: int) -> Array:
        """(C, K) of a decay per key channel, with a reset where a run begins."""
        decay = self(ref, i, self.plan.key)
        return decay if self.keep is None else jnp.where(self.keep | ~self.real, decay, LOG_ZERO)

    def group(self, i: int) -> int:
        """Of the i-th head of the program."""
        return i // self.plan.members if self.plan.heads >= self.plan.members else 0

    def write(self, ref: Any, i: int, x: Array) -> None:
        """To the i-th columns."""
        size = x.shape[1]
        ref[self.rows, i * size : (i + 1) * size] = self._clean(x).astype(ref.dtype)

    def _clean(self, x: Array) -> Array:
        return x if self.real is None else jnp.where(self.real, x, 0.0)
