"""What is timed: function, size, peers, and what is asked of the ratio of their times and temporaries."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.scan_benchmark import baselines, functions
from experiments.scan_benchmark.baselines import Step, looped, mapped, scanned
from experiments.scan_benchmark.functions import Function, Operands, Shape
from experiments.scan_benchmark.machine import Work
from experiments.scan_benchmark.measure import BOTH, FORWARD, Missing, Program, jax_program
from experiments.scan_benchmark.torch_peers import loop_program, mamba_program


@dataclass(frozen=True)
class Peer:
    """What a function is compared with.

    Attributes:
        name: in the table.
        prepare: (operands, cotangents) -> program; raises `Missing` where it cannot run.
        faster: phase -> how many times faster we should be.
        temporaries: phase -> the fraction of its temporaries that ours should be at most.
        same: whether its first output should be ours.
    """

    name: str
    prepare: Callable[[Operands, Operands | None], Program]
    faster: Mapping[str, float] = field(default_factory=dict)
    temporaries: Mapping[str, float] = field(default_factory=dict)
    same: bool = True


@dataclass(frozen=True)
class Case:
    """One function at one size.

    Attributes:
        group: what `--only` calls it.
        function: ours.
        shape: of the problem.
        work: (shape, whether the backward pass belongs to it) -> what no implementation can do without.
        peers: competitors.
        zero_state: whether the initial state is 0, because a peer knows no other.
    """

    group: str
    function: Function
    shape: Shape
    work: Callable[[Shape, bool], Work]
    peers: tuple[Peer, ...]
    zero_state: bool = False

    @property
    def title(self) -> str:
        """Name and size."""
        return f"{self.function.name} {self.shape}"


def cases(full: bool = True) -> list[Case]:
    """All cases.

    Args:
        full: whether at their full sizes; else at some that show only that everything runs.

    Returns:
        The cases.
    """
    found = [*_linear(), *_diagonal(), *_selective(), *_gated(), *_additive()]
    return found if full else [replace(case, shape=smaller(case.shape)) for case in found]


def smaller(shape: Shape) -> Shape:
    """The same problem at a size that takes no time.

    Example:
        >>> smaller((4, 2048, 1024))
        (2, 48, 8)
    """
    batch, length, *rest = shape
    return min(batch, 2), min(length, 48), *(min(size, 8) for size in rest)


def _jax(name: str, function: Callable[..., Operands], **settings: Any) -> Peer:
    return Peer(name, partial(jax_program, function), **settings)


def _loops(step: Step) -> tuple[Peer, ...]:
    """Python loops: NumPy, which has no backward pass, and torch."""

    def numpy_program(operands: Operands, cotangents: Operands | None) -> Program:
        if cotangents is not None:
            raise Missing("no gradients in NumPy")
        arrays = tuple(np.asarray(x) for x in operands)
        return Program(lambda: looped(step, np)(*arrays))

    return Peer("NumPy loop", numpy_program), Peer("torch loop", partial(loop_program, step))


def _linear() -> list[Case]:
    step = baselines.LINEAR
    asked = (
        _jax("lax.scan", scanned(step), faster={FORWARD: 3, BOTH: 1.7}),
        _jax(
            "associative_scan",
            baselines.linear_associative,
            faster={FORWARD: 4, BOTH: 3},
            temporaries={FORWARD: 0},
        ),
    )
    others = (_jax("lax.scan", scanned(step)), _jax("associative_scan", baselines.linear_associative))
    rest = (_jax("vmap(lax.scan)", mapped(step)), *_loops(step))
    full = Peer("the same, a (B, L, D)", _full_decay, temporaries={FORWARD: 1, BOTH: 1})
    large = (4, 2048, 1024)
    return [
        Case("linear", functions.LINEAR, large, _linear_work, asked + rest),
        Case("linear", functions.CONSTANT, large, _constant_work, (full,)),
        *(Case("linear", functions.LINEAR, s, _linear_work, others + rest) for s in ((1, 4096, 256), (8, 1024, 64))),
    ]


def _full_decay(operands: Operands, cotangents: Operands | None) -> Program:
    """`linear_scan` with the decay written out for every token."""
    a, b, state = operands
    return jax_program(functions.LINEAR.run, (jnp.array(jnp.broadcast_to(a, b.shape)), b, state), cotangents)


def _diagonal() -> list[Case]:
    step = baselines.DIAGONAL
    peers = (
        _jax("lax.scan", scanned(step)),
        _jax("vmap(lax.scan)", mapped(step)),
        _jax("associative_scan", baselines.diagonal_associative),
        *_loops(step),
    )
    return [Case("diagonal", functions.DIAGONAL, (1, 1024, 512, 16), _diagonal_work, peers)]


def _selective() -> list[Case]:
    step = baselines.SELECTIVE
    peers = (
        _jax("lax.scan", scanned(step), faster={FORWARD: 2, BOTH: 1.3}),
        _jax("vmap(lax.scan)", mapped(step)),
        _jax(
            "associative_scan",
            baselines.selective_associative,
            faster={FORWARD: 15, BOTH: 4},
            temporaries={FORWARD: 0.05},
        ),
        *_loops(step),
    )
    layer = (
        Peer("transformers", mamba_program, faster={BOTH: 10}),
        _jax("lax.scan", scanned(baselines.MAMBA)),
        Peer("torch loop", partial(loop_program, baselines.MAMBA)),
    )
    return [
        Case("selective", functions.SELECTIVE, (1, 1024, 512, 16), _selective_work, peers),
        Case("selective", functions.MAMBA, (2, 1024, 768, 16), _selective_work, layer, zero_state=True),
    ]


def _gated() -> list[Case]:
    step, shape = baselines.GATED, (1, 2048, 4, 64)
    rest = (
        _jax("vmap(lax.scan)", mapped(step)),
        _jax("associative_scan", baselines.gated_associative),
        *_loops(step),
    )
    asked = _jax("lax.scan", scanned(step), faster={BOTH: 3}, temporaries={BOTH: 0.1})
    per_head = _jax("lax.scan", scanned(step))
    return [
        Case("gated", functions.GATED, shape, partial(_matrix_work, arrays=5), (asked, *rest)),
        Case("gated", functions.PER_HEAD, shape, partial(_matrix_work, arrays=4), (per_head, *rest)),
    ]


def _additive() -> list[Case]:
    step = baselines.ADDITIVE
    peers = (
        Peer("gated, given the gates", _given_gates, faster={BOTH: 1.5}),
        _jax("lax.scan", scanned(step)),
        _jax("vmap(lax.scan)", mapped(step)),
        *_loops(step),
    )
    work = partial(_matrix_work, arrays=4)
    attention = partial(_jax, "dot_product_attention", baselines.attention, same=False)
    return [
        Case("additive", functions.ADDITIVE, (1, 2048, 4, 64), work, peers),
        Case("additive_global", functions.GLOBAL, (4, 1024, 8, 64), work, (attention(faster={FORWARD: 5, BOTH: 5}),)),
        Case("additive_global", functions.GLOBAL, (1, 4096, 8, 64), work, (attention(faster={FORWARD: 15, BOTH: 15}),)),
    ]


def _given_gates(operands: Operands, cotangents: Operands | None) -> Program:
    """`gated_linear_attention` with gates that were computed before the clock started."""
    weights = None if cotangents is None else (cotangents[0], cotangents[-1])
    return jax_program(functions.GATED.run, baselines.gates_of(*operands), weights)


def _linear_work(shape: Shape, backward: bool) -> Work:
    elements = math.prod(shape)
    return Work(4 * elements * (8 if backward else 3), 0, elements * (3 if backward else 1))


def _constant_work(shape: Shape, backward: bool) -> Work:
    elements = math.prod(shape)
    return Work(4 * elements * (5 if backward else 2), 0, elements * (3 if backward else 1))


def _diagonal_work(shape: Shape, backward: bool) -> Work:
    """Complex: a h, b x and Re(c h) are 8 real products; backward makes h anew (6) and goes through 14 more."""
    tokens, states = math.prod(shape[:3]), math.prod(shape)
    return Work(4 * tokens * (5 if backward else 2), 0, states * (28 if backward else 8))


def _selective_work(shape: Shape, backward: bool) -> Work:
    """Forward dt A, (dt x) B, the update and the readout; backward makes h anew (3) and takes 9 products more."""
    batch, length, channels, states = shape
    per_channel, per_state, all_states = batch * length * channels, batch * length * states, math.prod(shape)
    arrays = 8 * per_channel + 6 * per_state if backward else 3 * per_channel + 2 * per_state
    return Work(4 * arrays, all_states * (2 if backward else 1), all_states * (16 if backward else 4))


def _matrix_work(shape: Shape, backward: bool, arrays: int) -> Work:
    """A key times a value and a query times a state; backward makes the states anew and has four such products."""
    elements = math.prod(shape)
    passes = 3 * arrays - 1 if backward else arrays
    return Work(4 * elements * passes, elements * (2 if backward else 1), elements * shape[-1] * (7 if backward else 2))
