"""The functions of `lightnet.scan` as functions of arrays alone, and operands for them in every regime of gates.

Each takes its operands as a tuple with the initial state last, and returns a tuple; so gate and clock treat all alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from lightnet.scan import (
    AdditiveState,
    additive_global,
    additive_recurrence,
    causal_conv,
    diagonal_ssm,
    gated_linear_attention,
    linear_scan,
    selective_scan,
)

Operands: TypeAlias = tuple[Any, ...]
Shape: TypeAlias = tuple[int, ...]
GATES = ("mild", "sigmoid", "strong", "resets", "near zero", "mixture")
LOGITS = ("spread 1", "spread 10", "rising", "falling", "spread 50", "spread 1000")
RESET_STEP = 1e4  # a step size after which nothing of the state is left


@dataclass(frozen=True)
class Function:
    """One function of `lightnet.scan`.

    Attributes:
        name: of the public function, with what distinguishes this use of it.
        run: (*operands, **named) -> outputs, with the names `segment_ids`, `mask` and `implementation`.
        draw: (shape, regime, random) -> operands in double precision.
        regimes: of gates that its inputs can be drawn from.
        in_state_precision: from this operand on they stay in float32 when the others are bfloat16; -1 is the state.
    """

    name: str
    run: Callable[..., Operands]
    draw: Callable[[Shape, str, np.random.Generator], Operands]
    regimes: tuple[str, ...] = GATES
    in_state_precision: int = -1


def log_decays(regime: str, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Log decays of one regime; "resets" has 5 % of -inf.

    Args:
        regime: one of `GATES`.
        shape: of the array.
        random: generator.

    Returns:
        Numbers of at most 0.
    """
    if regime == "mixture":
        kinds = [log_decays(kind, shape, random) for kind in GATES if kind != "mixture"]
        return np.choose(random.integers(0, len(kinds), shape), kinds)
    if regime == "sigmoid":
        return -np.logaddexp(0, random.standard_normal(shape))
    if regime == "resets":
        return np.where(random.random(shape) < 0.05, -np.inf, log_decays("mild", shape, random))
    return {"mild": -0.1, "strong": -20.0, "near zero": -1e-6}[regime] * random.random(shape)


def rounded(operands: Operands, function: Function, dtype: Any) -> Operands:
    """The operands as a user would have them in float32 or bfloat16, whose states are float32; complex ones complex64.

    Args:
        operands: in double precision.
        function: whose they are.
        dtype: of the real operands.

    Returns:
        JAX arrays.
    """
    states = len(operands) + function.in_state_precision
    arrays = []
    for index, value in enumerate(operands):
        real = np.float32 if index >= states else dtype
        arrays.append(jax.numpy.asarray(value, np.complex64 if np.iscomplexobj(value) else real))
    return tuple(arrays)


def _linear(a: Any, b: Any, state: Any, **named: Any) -> Operands:
    return linear_scan(a, b, state, **named)


def _linear_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, _, channels = shape
    a = np.exp(log_decays(regime, shape, random))
    return a, random.standard_normal(shape), random.standard_normal((batch, channels))


def _constant_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    a, b, state = _linear_operands(shape, regime, random)
    return a[:1, :1], b, state


def _complex_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, _, channels = shape
    a = np.exp(log_decays(regime, shape, random)) * np.exp(1j * random.uniform(-np.pi, np.pi, shape))
    return a, _complex(shape, random), _complex((batch, channels), random)


def _diagonal(x: Any, a: Any, b: Any, c: Any, state: Any, **named: Any) -> Operands:
    return diagonal_ssm(x, a, b, c, state, **named)


def _diagonal_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, length, *channels_states = shape
    angle = random.uniform(-np.pi, np.pi, channels_states)
    a = np.exp(log_decays(regime, tuple(channels_states), random)) * np.exp(1j * angle)
    b, c, state = (_complex(size, random) for size in (channels_states, channels_states, (batch, *channels_states)))
    return random.standard_normal((batch, length, channels_states[0])), a, b, c, state


def _complex(shape: Any, random: np.random.Generator) -> np.ndarray:
    return random.standard_normal(shape) + 1j * random.standard_normal(shape)


def _selective(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, state: Any, **named: Any) -> Operands:
    return selective_scan(x, dt, A, B, C, D, z=z, initial_state=state, **named)


def _selective_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, length, channels, states = shape
    per_channel, per_state = (batch, length, channels), (batch, length, states)
    dt = np.minimum(-log_decays(regime, per_channel, random), RESET_STEP)
    # What a reset lets in is of the size of everything else, or only the resets would be compared.
    x = random.standard_normal(per_channel) / np.maximum(1, dt)
    A = -np.tile(np.arange(1.0, states + 1), (channels, 1)) / 4
    B, C = random.standard_normal(per_state), random.standard_normal(per_state)
    D, z = random.standard_normal(channels), random.standard_normal(per_channel)
    return x, dt, A, B, C, D, z, random.standard_normal((batch, channels, states))


def _plain_selective(x: Any, dt: Any, A: Any, B: Any, C: Any, state: Any, **named: Any) -> Operands:
    return selective_scan(x, dt, A, B, C, initial_state=state, **named)


def _plain_selective_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    *five, _, _, state = _selective_operands(shape, regime, random)
    return *five, state


def _gated(q: Any, k: Any, v: Any, log_decay: Any, state: Any, **named: Any) -> Operands:
    return gated_linear_attention(q, k, v, log_decay, initial_state=state, **named)


def _gated_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, _, heads, size = shape
    q, k, v = random.standard_normal((3, *shape))
    return q / size**0.5, k, v, log_decays(regime, shape, random), random.standard_normal((batch, heads, size, size))


def _per_head_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    q, k, v, log_decay, state = _gated_operands(shape, regime, random)
    return q, k, v, log_decay[..., :1], state


def _additive(q: Any, logits: Any, v: Any, maximum: Any, total: Any, state: Any, **named: Any) -> Operands:
    before = AdditiveState(maximum, total, state)
    o, after = additive_recurrence(q, logits, v, initial_state=before, **named)
    return o, *after


def _additive_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, _, heads, size = shape
    keys, total = (batch, heads, size), 1 + random.random((batch, heads, size))
    state = random.standard_normal((batch, heads, size, size))
    return *_global_operands(shape, regime, random), random.standard_normal(keys), total, state


def _global(q: Any, logits: Any, v: Any, **named: Any) -> Operands:
    return (additive_global(q, logits, v, **named),)


def _global_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    q, logits, v = random.standard_normal((3, *shape))
    time = np.linspace(0, 1, shape[1])[None, :, None, None]
    slopes = {"rising": 200.0, "falling": -200.0}
    logits = logits + slopes[regime] * time if regime in slopes else logits * float(regime.removeprefix("spread "))
    return q / shape[-1] ** 0.5, logits, v


def _conv(x: Any, w: Any, bias: Any, state: Any, **named: Any) -> Operands:
    return causal_conv(x, w, bias, initial_state=state, **named)


def _conv_operands(shape: Shape, regime: str, random: np.random.Generator) -> Operands:
    batch, length, channels, width = shape
    sizes = ((batch, length, channels), (width, channels), (channels,), (batch, width - 1, channels))
    return tuple(random.standard_normal(size) for size in sizes)


LINEAR = Function("linear_scan", _linear, _linear_operands)
CONSTANT = Function("linear_scan, constant decay", _linear, _constant_operands)
COMPLEX = Function("linear_scan, complex", _linear, _complex_operands)
DIAGONAL = Function("diagonal_ssm", _diagonal, _diagonal_operands)
SELECTIVE = Function("selective_scan", _plain_selective, _plain_selective_operands)
MAMBA = Function("selective_scan with D and z", _selective, _selective_operands)
GATED = Function("gated_linear_attention", _gated, _gated_operands)
PER_HEAD = Function("gated_linear_attention, decay per head", _gated, _per_head_operands)
ADDITIVE = Function("additive_recurrence", _additive, _additive_operands, LOGITS, -3)
GLOBAL = Function("additive_global", _global, _global_operands, LOGITS, 0)
CONV = Function("causal_conv", _conv, _conv_operands, ("no gates",))
