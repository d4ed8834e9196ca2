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


def cases(tiny: bool = False) -> list[Case]:
    """All cases.

    Args:
        tiny: whether at sizes that show only that everything runs, the cases that become the same left out.

    Returns:
        The cases.
    """
    found = [*_linear(), *_diagonal(), *_selective(), *_gated(), *_additive(), *_conv()]
    if not tiny:
        return found
    shrunk = [replace(case, shape=tiny_shape(case.shape)) for case in found]
    return [case for i, case in enumerate(shrunk) if case.title not in {before.title for before in shrunk[:i]}]


def tiny_shape(shape: Shape) -> Shape:
    """The same problem at a size that takes no time.

    Example:
        >>> tiny_shape((4, 2048, 1024))
        (2, 20, 8)
    """
    _, length, *rest = shape
    return 2, min(length, 20), *(min(size, 8) for size in rest)


def _jax(name: str, function: Callable[..., Operands], **settings: Any) -> Peer:
    return Peer(name, partial(jax_program, function), **settings)


def _loops(step: Step) -> tuple[Peer, ...]:
    """Python loops: NumPy, which has no backward pass, and torch."""

    return _numpy("NumPy loop", looped(step, np)), Peer("torch loop", partial(loop_program, step))


def _numpy(name: str, function: Callable[..., Operands]) -> Peer:
    def program(operands: Operands, cotangents: Operands | None) -> Program:
        if cotangents is not None:
            raise Missing("no gradients in NumPy")
        arrays = tuple(np.asarray(x) for x in operands)
        return Program(lambda: function(*arrays))

    return Peer(name, program)


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
    large, work = (4, 2048, 1024), partial(_linear_work, arrays=3)
    return [
        Case("linear", functions.LINEAR, large, work, asked + rest),
        Case("linear", functions.CONSTANT, large, partial(_linear_work, arrays=2), (full,)),
        *(Case("linear", functions.LINEAR, s, work, others + rest) for s in ((1, 4096, 256), (8, 1024, 64))),
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
        Case("selective", functions.MAMBA, (2, 1024, 768, 16), _mamba_work, layer, zero_state=True),
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
        Case("gated", functions.GATED, shape, _gated_work, (asked, *rest)),
        Case("gated", functions.PER_HEAD, shape, _per_head_work, (per_head, *rest)),
    ]


def _additive() -> list[Case]:
    step = baselines.ADDITIVE
    peers = (
        Peer("gated, given the gates", _given_gates, faster={BOTH: 1.5}),
        _jax("lax.scan", scanned(step)),
        _jax("vmap(lax.scan)", mapped(step)),
        *_loops(step),
    )
    work = _additive_work
    attention = partial(_jax, "dot_product_attention", baselines.attention, same=False)
    return [
        Case("additive", functions.ADDITIVE, (1, 2048, 4, 64), work, peers),
        Case("additive_global", functions.GLOBAL, (4, 1024, 8, 64), work, (attention(faster={FORWARD: 5, BOTH: 5}),)),
        Case("additive_global", functions.GLOBAL, (1, 4096, 8, 64), work, (attention(faster={FORWARD: 15, BOTH: 15}),)),
    ]


def _conv() -> list[Case]:
    peers = (_jax("lax.conv", baselines.convolved), _numpy("NumPy, sum of shifts", baselines.shifted))
    return [Case("conv", functions.CONV, (2, 1024, 1536, 4), _conv_work, peers)]


def _given_gates(operands: Operands, cotangents: Operands | None) -> Program:
    """`gated_linear_attention` with gates that were computed before the clock started."""
    weights = None if cotangents is None else (cotangents[0], cotangents[-1])
    return jax_program(functions.GATED.run, baselines.gates_of(*operands), weights)


def _over_time(numbers: int, backward: bool) -> float:
    """Bytes of operands and results; the backward pass has a cotangent for each result, a gradient for each operand."""
    return 4.0 * numbers * (2 if backward else 1)


def _linear_work(shape: Shape, backward: bool, arrays: int) -> Work:
    """a h + b; backward a dh and dh h."""
    elements = math.prod(shape)
    return Work(_over_time(arrays * elements, backward), 0, elements * (3 if backward else 1))


def _diagonal_work(shape: Shape, backward: bool) -> Work:
    """Real products: 4 of a h, 2 each of b x and Re(c h).

    Backward 4 each of a dh and dh h, 2 each of c dy, dy h, dh x and Re(b dh).
    """
    batch, length, channels, states = shape
    tokens = batch * length * channels
    return Work(_over_time(2 * tokens, backward), 0, tokens * states * (24 if backward else 8))


def _selective_work(shape: Shape, backward: bool, arrays: int = 3) -> Work:
    """dt A, decay h, (dt x) B and C h; the channels share B and C, and have other `arrays` of their own.

    Backward decay dh, C dy, dy h, dh B, dh (dt x), and dh h of the decay, which is multiplied by it, by A and by dt.
    """
    batch, length, channels, states = shape
    numbers = batch * length * (arrays * channels + 2 * states)
    return Work(_over_time(numbers, backward), math.prod(shape), math.prod(shape) * (13 if backward else 4))


def _mamba_work(shape: Shape, backward: bool) -> Work:
    """`_selective_work` with z, and an exponential for its gate."""
    work = _selective_work(shape, backward, arrays=4)
    return replace(work, exponentials=work.exponentials + math.prod(shape[:3]))


def _matrix_work(shape: Shape, backward: bool, numbers: int, exponentials: int) -> Work:
    """k v and q S; backward q do, S do, dS v and dS k. A decay may be left to q and k, and is not counted.

    Args:
        shape: (B, L, H, K).
        backward: whether with gradients.
        numbers: operands and results of a head at one token.
        exponentials: of a head at one token.
    """
    *tokens, size = shape
    heads = math.prod(tokens)
    products = heads * size**2 * (6 if backward else 2)
    return Work(_over_time(heads * numbers, backward), heads * exponentials, products)


def _gated_work(shape: Shape, backward: bool) -> Work:
    return _matrix_work(shape, backward, 5 * shape[-1], shape[-1])


def _per_head_work(shape: Shape, backward: bool) -> Work:
    return _matrix_work(shape, backward, 4 * shape[-1] + 1, 1)


def _additive_work(shape: Shape, backward: bool) -> Work:
    """Of the exponentials of the decay and of the key one is 1, that of the larger."""
    return _matrix_work(shape, backward, 4 * shape[-1], shape[-1])


def _conv_work(shape: Shape, backward: bool) -> Work:
    """A product for each tap; backward one for the gradient of the input and one for that of the tap."""
    batch, length, channels, width = shape
    elements = batch * length * channels
    return Work(_over_time(2 * elements, backward), 0, elements * width * (3 if backward else 1))
